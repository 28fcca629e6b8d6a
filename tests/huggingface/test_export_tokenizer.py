"""A tokenizer that was trained here, written as tokenizer.json, tokenises every text the same."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import TokenizerConfig, load_tokenizer
from llm_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer, train
from llm_jax.huggingface.export_tokenizer import export_tokenizer
from tests.data.conftest import documents
from tests.data.test_sentencepiece_tokenizer import HARD, SPACELESS, without_space

ROOT = Path(__file__).parents[2]
KINDS = [
    "Grüße aus Köln: Straße, Öl, ÄRGER – „zitiert“ und ‚so‘.", "日本語のテキスト、中文字符測試。한국어", "مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🏳️‍🌈 😀😀😀", "3.14159, 1,000,000 0x41 <0x41><0xE2>",
    "\x00\x01\x07\x1b[0m\x7f\x85", "▁▁ ▁a ▁", "a▁b c",
    *(" " * n + "x" + "\n" * n + "\t" * n + "y" for n in range(1, 40)),
]  # fmt: skip


def code() -> list[str]:
    """This project's own code and documents."""
    return [path.read_text() for path in sorted([*ROOT.glob("llm_jax/*/*.py"), *ROOT.glob("docs/*.md")])]


def texts() -> list[str]:
    rng = random.Random(0)
    anything = [
        "".join(c for c in map(chr, rng.choices(range(0x110000), k=60)) if unicodedata.category(c) != "Cs")
        for _ in range(100)
    ]
    return [*HARD, *KINDS, *anything, *documents(100, seed=3), *code()]


def trained(kind: str) -> SentencePieceTokenizer:
    return train([*code()[:60], *KINDS], TokenizerConfig(vocab=2000 if kind == "bpe" else 900, kind=kind))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_every_text_becomes_the_same_tokens_and_comes_back(kind, tmp_path):
    """BPE without an exception.

    Unigram's ways to cut a text may be as likely as one another up to rounding, as spaces in runs are:
    SentencePiece sums log-probabilities in float32 (1e-7 of the sum was seen between the two ways),
    tokenizers in float64.
    """
    ours = trained(kind)
    export_tokenizer(ours, tmp_path)
    theirs = load_tokenizer(tmp_path)
    differ = [text for text in texts() if theirs.encode(text) != ours.encode(text)]
    if kind == "bpe":
        assert not differ
    else:
        logprob = [
            value for _, value in json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
        ]
    assert all(theirs.token_bytes[theirs.encode(text)].sum() == len(text.encode()) for text in texts())
    for text in differ:
        as_likely = [sum(logprob[i] for i in tokenizer.encode(text)) for tokenizer in (ours, theirs)]
        assert as_likely[0] == pytest.approx(as_likely[1], rel=1e-6)
    assert len(differ) < 0.4 * len(texts())
    assert all(theirs.decode(ours.encode(text)) == text for text in texts())
    assert theirs.lossless
    assert (theirs.token_bytes == ours.token_bytes).all()
    assert (theirs.bos_id, theirs.eos_id, theirs.pad_id, theirs.vocab_size) == (
        ours.bos_id,
        ours.eos_id,
        ours.pad_id,
        ours.vocab_size,
    )


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("name", SPACELESS)
def test_tokenizers_of_texts_with_few_spaces_and_without_are_exported(name, kind, tmp_path):
    sample, vocab = SPACELESS[name][kind]
    ours = train(sample, TokenizerConfig(vocab=vocab, kind=kind))
    export_tokenizer(ours, tmp_path)
    theirs = load_tokenizer(tmp_path)
    for text in (*HARD, *KINDS, sample[0], "see page 12"):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(theirs.encode(text)) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_that_has_no_space_is_exported_with_its_ids(kind, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(without_space(kind))
    ours = load_tokenizer(tmp_path)
    export_tokenizer(ours, tmp_path / "out")
    theirs = load_tokenizer(tmp_path / "out")
    for text in ("a b", "  the\tcab ", "▁ a", "abcdef" * 20):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(theirs.encode(text)) == ours.decode(ours.encode(text))


NAMES = ("</s>", "a</s>b", "<s>", "x <unk> y", "<pad>", "<0x41>", "<0x0A>", "<0xZZ>", "<s></s><<pad>>", "</s")


@pytest.mark.parametrize("letters", ["", "<", "</s> <pad> unk 0x4A", "</s </ a< s> <0 x4 d> k>"])
def test_names_of_control_tokens_in_a_text_are_text_in_the_export(letters, tmp_path):
    """Whatever letters and pieces of the names the unigram vocabulary has, and whoever reads the file."""
    import tokenizers

    words = f"some plain words of a small text that is long enough to learn from {letters}".split()
    rng = random.Random(0)
    sample = [" ".join(rng.choices(words, k=80)) + "\n" for _ in range(100)]
    ours = train(sample, TokenizerConfig(vocab=300, kind="unigram"))
    export_tokenizer(ours, tmp_path / "first")
    theirs = load_tokenizer(tmp_path / "first")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "first" / "tokenizer.json"))
    library.encode_special_tokens = True  # as transformers does with split_special_tokens
    for text in (*NAMES, *(f"{a}{b}" for a in NAMES for b in NAMES), sample[0]):
        assert theirs.encode(text) == ours.encode(text)
        assert library.encode(text, add_special_tokens=False).ids == ours.encode(text)
        assert theirs.decode(theirs.encode(text)) == text
    export_tokenizer(theirs, tmp_path / "second")
    assert load_tokenizer(tmp_path / "second").fingerprint == theirs.fingerprint


def test_an_export_of_before_is_read_with_the_tokens_of_its_model(tmp_path):
    """It had no step that cuts names of control tokens."""
    ours = train(documents(100), TokenizerConfig(vocab=305, kind="unigram"))
    export_tokenizer(ours, tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    now, tree["pre_tokenizer"] = load_tokenizer(tmp_path), None
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    before = load_tokenizer(tmp_path)
    for text in NAMES:
        assert before.encode(text) == now.encode(text) == ours.encode(text)


def test_real_texts_become_the_same_tokens(shared, tmp_path):
    folder = shared / "data" / "text"
    files = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    files += [json.loads(line)["text"] for line in (folder / "de_eltec_7_novels.jsonl").open()]
    ours = train([text[:200_000] for text in files], TokenizerConfig(vocab=4096))
    export_tokenizer(ours, tmp_path)
    theirs = load_tokenizer(tmp_path)
    for text in files:
        for part in (text[i : i + 60_000] for i in range(0, min(len(text), 300_000), 60_000)):
            assert theirs.encode(part) == ours.encode(part)


def test_a_text_begins_as_documents_do(tmp_path):
    import tokenizers

    ours = train(documents(100), TokenizerConfig(vocab=310))
    export_tokenizer(ours, tmp_path)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("the model").ids == [
        ours.bos_id,
        *ours.encode("the model"),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_files_of_hugging_face_are_written_as_they_were(tmp_path):
    export_tokenizer(train(documents(100), TokenizerConfig(vocab=310)), tmp_path / "first")
    (tmp_path / "first" / "chat_template.jinja").write_text("{{ messages }}")
    export_tokenizer(load_tokenizer(tmp_path / "first"), tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert not (tmp_path / "second" / "about.json").exists()


def test_a_space_before_the_text_is_put_there_too(tmp_path):
    """As Llama 2's SentencePiece model does. (U+2581 in a text, which begins a new text here, is
    left out.)
    """
    import sentencepiece

    prefix = str(tmp_path / "llama2")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents(200)), model_prefix=prefix, vocab_size=400, hard_vocab_limit=False,
        minloglevel=3, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    ours = load_tokenizer(f"{prefix}.model")
    export_tokenizer(ours, tmp_path / "out")
    theirs = load_tokenizer(tmp_path / "out")
    assert ours.vocabulary()[ours.encode("the")[0]].startswith("▁")
    for text in (text.replace("▁", "") for text in texts()):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(theirs.encode(text)) == text


def test_what_cannot_be_exported_is_refused(tmp_path):
    import sentencepiece

    prefix = str(tmp_path / "plain")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents(200)),
        model_prefix=prefix,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    with pytest.raises(UserError, match=r"normalises text \(nmt_nfkc\) and drops spaces") as error:
        export_tokenizer(load_tokenizer(f"{prefix}.model"), tmp_path / "out")
    assert "has no pieces for bytes" in str(error.value)
    assert not (tmp_path / "out").exists()
