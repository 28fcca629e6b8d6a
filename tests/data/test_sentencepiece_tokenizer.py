"""The tokenizer gives back every text, counts its bytes, and is the same wherever it is trained."""

from __future__ import annotations

import io
import random
import unicodedata

import pytest
import sentencepiece

from llm_jax.core.errors import UserError
from llm_jax.data import Tokenizer, TokenizerConfig, load_tokenizer
from llm_jax.data.sentencepiece_tokenizer import train, with_space

from .conftest import documents

HARD = [
    "", " ", "    ", "\t\tx", "\n\n\n", "a\r\nb\rc", "trailing   ", "   leading", "x\x00y", "naïve café",
    "e\u0301 vs \u00e9", "ﬁ ligature ½ ²", "日本語テキスト", "😀👩‍👩‍👧‍👦🏳️‍🌈", "▁ a ▁▁ b▁", "\ufeffBOM",
    "<s></s><unk><pad><0x41>", "\u2028\u00a0\u3000", "1234567890", "def f(x):\n\treturn  x\n",
    "\U0010ffff\ue000", "x" * 5000, "\ufffd",
]  # fmt: skip


HAN = [chr(0x4E00 + i) for i in range(120)]
RNG = random.Random(0)
CHINESE = ["".join(RNG.choices(HAN, k=400)) for _ in range(60)]
DNA = ["".join(RNG.choices("ACGT\n", k=4000)) for _ in range(10)]
NUMBERS = ["\t".join(map(str, range(200)))] * 5
SPACELESS = {
    "3 spaces": {"bpe": ([*CHINESE, "see page 12"], 420), "unigram": ([*CHINESE, "see page 12"], 385)},
    "letters": {"bpe": (DNA, 280), "unigram": (DNA, 266)},
    "no room for a merge": {"bpe": (NUMBERS, 271), "unigram": (NUMBERS, 271)},
}
"""Texts of few spaces or none, with vocabularies that they have enough pieces for."""


def without_space(kind: str) -> bytes:
    """A model of letters as SentencePiece trains it, which has no space."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(RNG.choices("abcdefth", k=400)) for _ in range(20)]),
        model_writer=model, model_type=kind, vocab_size=270, byte_fallback=True, add_dummy_prefix=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=3,
    )  # fmt: skip
    return model.getvalue()


VOCAB = 310  # about what unigram finds in these 13 words: its pieces end where words do


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request) -> Tokenizer:
    return train(documents(300), TokenizerConfig(vocab=VOCAB, kind=request.param))


@pytest.mark.parametrize("text", HARD, ids=lambda text: ascii(text)[:20])
def test_any_text_comes_back_whole(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_bytes[ids].sum()) == len(text.encode())


def test_random_unicode_comes_back_whole(tokenizer):
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(
            c for c in (chr(rng.randrange(0x110000)) for _ in range(40)) if unicodedata.category(c) != "Cs"
        )
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert int(tokenizer.token_bytes[ids].sum()) == len(text.encode())


def test_text_longer_than_a_chunk_comes_back_whole(tokenizer, monkeypatch):
    monkeypatch.setattr("llm_jax.data.sentencepiece_tokenizer._CHUNK_CHARS", 50)
    for text in ("\n".join(documents(20)), "y▁" * 500, "\n" * 300):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_pieces(tokenizer):
    assert len(tokenizer.encode("20261124")) == 8


def test_control_pieces_are_where_they_are_promised(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.token_bytes[[0, 1, 2, 3]].tolist() == [0, 0, 0, 0]
    assert tokenizer.decode([1, *tokenizer.encode("hello"), 2]) == "hello"
    assert tokenizer.vocab_size == VOCAB == len(tokenizer.token_bytes)
    assert tokenizer.lossless


def test_code_gets_whitespace_pieces():
    """Indents, and a line's end with the next line's indent, are single pieces: half of code is such."""
    code = [
        f"class A{i}:\n    def f(self):\n        return self.x\n\n    def g(self):\n        return self.y\n"
        for i in range(50)
    ]
    pieces = train(code, TokenizerConfig(vocab=330)).vocabulary()  # room for 40 merges
    assert "\u2581" * 8 in pieces
    assert any("\n\u2581\u2581\u2581\u2581" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_twice_gives_the_same_model(kind):
    models = {train(documents(100), TokenizerConfig(vocab=305, kind=kind)).fingerprint for _ in range(2)}
    assert len(models) == 1


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    for path in (tmp_path / "t", tmp_path / "t" / "tokenizer.model"):
        loaded = load_tokenizer(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode("the model") == tokenizer.encode("the model")


def test_a_vocabulary_that_is_too_large_raises_with_the_limit():
    with pytest.raises(
        UserError, match=r"tokenizer\.vocab=5000: too large for this text; at most (\d+)"
    ) as error:
        train(["a few words only"] * 3, TokenizerConfig(vocab=5000))
    most = int(str(error.value).rsplit(" ", 1)[1])
    assert train(["a few words only"] * 3, TokenizerConfig(vocab=most)).vocab_size == most


def test_a_vocabulary_that_is_too_small_raises_with_the_limit():
    with pytest.raises(
        UserError, match=r"tokenizer\.vocab=262: too small for the characters of this text; at least (\d+)"
    ) as error:
        train(documents(50), TokenizerConfig(vocab=262))
    least = int(str(error.value).rsplit(" ", 1)[1])
    assert train(documents(50), TokenizerConfig(vocab=least)).vocab_size == least


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("name", SPACELESS)
def test_a_space_is_in_the_vocabulary_of_every_text(name, kind):
    """Also where SentencePiece leaves it out, for fewer than 1 in 2,000 characters."""
    texts, vocab = SPACELESS[name][kind]
    trained = train(texts, TokenizerConfig(vocab=vocab, kind=kind))
    assert trained.vocab_size == vocab
    assert trained.lossless
    for text in ("see page 12", " ", "  a\t b ", texts[0][:50], "▁ ▁"):
        ids = trained.encode(text)
        assert trained.decode(ids) == text
        assert int(trained.token_bytes[ids].sum()) == len(text.encode())
    assert trained.encode(" ") == [trained.vocabulary().index("▁")]


def test_text_beside_a_character_that_sentencepiece_reserves_is_learned_from():
    """It would skip each text with U+2585, of which bars on a terminal are made."""
    texts = [f"{text} \u2585\u2585\u2585 {text}" for text in documents(100)]
    trained = train(texts, TokenizerConfig(vocab=360))
    assert any("model" in piece for piece in trained.vocabulary())
    assert trained.lossless
    assert trained.decode(trained.encode(texts[0])) == texts[0]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_model_of_texts_with_spaces_is_as_sentencepiece_trained_it(kind):
    """So that the ids of tokenizers that were trained before stay as they are."""
    model = train(documents(100), TokenizerConfig(vocab=305, kind=kind)).model
    assert with_space(model) is model


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_that_has_no_space_keeps_its_ids_and_says_what_it_does(tmp_path, kind):
    """As they were trained before: spaces are the bytes of U+2581."""
    (tmp_path / "tokenizer.model").write_bytes(without_space(kind))
    loaded = load_tokenizer(tmp_path)
    names = loaded.vocabulary()
    assert [names[i] for i in loaded.encode("a b")] == ["a", "<0xE2>", "<0x96>", "<0x81>", "b"]
    assert not loaded.lossless
    assert "' the' becomes '\\u2581the'" in loaded.remarks


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_real_texts_come_back_whole(texts, kind):
    """Every real text at hand, German and English, through a tokenizer trained on one of them."""
    trained = train([(texts / "tinystories_238.txt").read_text()], TokenizerConfig(vocab=700, kind=kind))
    for path in sorted(texts.iterdir()):
        text = path.read_text()
        ids = trained.encode(text)
        assert trained.decode(ids) == text, path
        assert int(trained.token_bytes[ids].sum()) == len(text.encode()), path


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(UserError, match="not valid Unicode"):
        tokenizer.encode("\ud83d")


def test_missing_or_wrong_tokenizer_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.file=.*no such file"):
        load_tokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model at all")
    with pytest.raises(UserError, match=r"not a SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")


def test_a_file_that_normalises_is_used_unchanged_with_a_warning(make, small, tmp_path):
    prefix = str(tmp_path / "plain")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents(200)),
        model_prefix=prefix,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    corpus = make(small, tokenizer=TokenizerConfig(file=f"{prefix}.model"))
    assert not corpus.tokenizer.lossless
    assert "a space comes before each 65,536 characters of a text" in corpus.tokenizer.remarks
    assert corpus.batch(0)["tokens"].max() < corpus.tokenizer.vocab_size
