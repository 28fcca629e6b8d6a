"""A tokenizer.json decodes every text, counts its bytes, and has its control tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import TokenizerConfig, load_tokenizer
from llm_jax.data.sentencepiece_tokenizer import train

from .conftest import documents
from .test_sentencepiece_tokenizer import HARD

# also Qwen's, but digits
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|eot_id|>"]


def make_folder(kind: str, folder: Path, **config: Any) -> Path:
    """A folder with a tokenizer.json as each family has it, trained on a few words; `config`:
    tokenizer_config.json.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "gpt2":  # also Pythia, OLMo 2
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
    elif kind == "llama3":
        backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
        split = pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
    else:  # SentencePiece's BPE converted, as Llama 2, Mistral 7B and Gemma have it
        backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        steps = [normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), *steps] if kind == "llama2" else steps
        )
        strip = [decoders.Strip(" ", 1, 0)] if kind == "llama2" else []
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
    fallback = [] if kind in ("gpt2", "llama3") else ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = [] if fallback else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=fallback, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(documents(300), trainer)
    tree = json.loads(backend.to_str())
    tree["added_tokens"] = [
        token for token in tree["added_tokens"] if token["content"] == "<unk>"
    ]  # byte pieces are none
    backend = tokenizers.Tokenizer.from_str(json.dumps(tree))
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens(["        "])  # Pythia's tokens of many spaces: added, and not special
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config or {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]})
    )
    return folder


KINDS = ("gpt2", "llama3", "gemma")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: make_folder(kind, tmp_path_factory.mktemp(kind)) for kind in (*KINDS, "llama2")}


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back_whole_and_its_bytes_are_counted(folders, kind):
    tokenizer = load_tokenizer(folders[kind])
    assert tokenizer.lossless or kind == "gemma"  # whose U+2581 in a text becomes a space, so it isn't
    for text in [*HARD, *SPECIAL, f"a {SPECIAL[1]} in a text", "x          y"]:
        if kind == "gemma":
            text = text.replace("▁", "")
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert int(tokenizer.token_bytes[ids].sum()) == len(text.encode()), ids
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)


def test_a_space_put_before_the_text_is_reported_as_not_lossless(folders):
    tokenizer = load_tokenizer(folders["llama2"])
    assert tokenizer.decode(tokenizer.encode("the model")) == "the model"
    assert not tokenizer.lossless


def test_a_normalizer_is_reported_as_not_lossless(folders, tmp_path):
    """Qwen's NFC: an e and an accent become one character."""
    tree = json.loads((folders["llama3"] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tree, "normalizer": {"type": "NFC"}}))
    (tmp_path / "tokenizer_config.json").write_bytes(
        (folders["llama3"] / "tokenizer_config.json").read_bytes()
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "\u00e9"
    assert not tokenizer.lossless


def test_a_document_is_what_the_library_makes_of_it(folders):
    """Our encode is the library's, whatever it does with whitespace between documents' parts."""
    import tokenizers

    for kind, folder in folders.items():
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer = load_tokenizer(folder)
        for text in documents(50, seed=1):
            assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids, kind
            assert [i for part in tokenizer.encode_chunks(text) for i in part] == tokenizer.encode(text)


def test_control_tokens_are_silent_and_have_no_bytes(folders):
    tokenizer = load_tokenizer(folders["llama3"])
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("hello"), tokenizer.eos_id]) == "hello"
    assert tokenizer.token_bytes[[tokenizer.bos_id, tokenizer.eos_id]].tolist() == [0, 0]
    assert (
        tokenizer.vocab_size
        == len(tokenizer.token_bytes)
        == len(tokenizer.vocabulary())
        == max(tokenizer.encode("        ")) + 1
    )
    assert tokenizer.vocabulary()[tokenizer.bos_id] == SPECIAL[0]


BOS, EOS, PAD, EOT = range(4)
"""Files that name the tokens of SPECIAL, and the ids that are found.

The last id is an EOS that ends generated text only.
"""


@pytest.mark.parametrize(
    ("files", "bos", "eos", "eos_ids", "pad"),
    [
        ({"tokenizer_config.json": {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS], "pad_token": SPECIAL[PAD]}}, BOS, EOS, [EOS], PAD),
        ({"tokenizer_config.json": {"bos_token": {"content": SPECIAL[BOS]}, "eos_token": {"content": SPECIAL[EOS]}}}, BOS, EOS, [EOS], None),
        ({"special_tokens_map.json": {"bos_token": SPECIAL[BOS], "eos_token": {"content": SPECIAL[EOS]}}}, BOS, EOS, [EOS], None),
        ({"config.json": {"bos_token_id": BOS, "eos_token_id": [EOS, EOT], "pad_token_id": -1}}, BOS, EOS, [EOS, EOT], None),
        (
            {"tokenizer_config.json": {"bos_token": None, "eos_token": SPECIAL[EOT]}, "generation_config.json": {"eos_token_id": [EOT, EOS]}},
            EOT, EOT, [EOT, EOS], None,
        ),
        ({"tokenizer_config.json": {"bos_token": None, "eos_token": SPECIAL[EOT]}, "config.json": {"bos_token_id": EOS}}, EOS, EOT, [EOT], None),
        ({"generation_config.json": {"eos_token_id": EOS, "bos_token_id": None}}, EOS, EOS, [EOS], None),
        ({"tokenizer_config.json": {"bos_token": {}, "eos_token": [SPECIAL[EOT]]}, "config.json": {"eos_token_id": EOS}}, EOS, EOS, [EOS], None),
    ],
    ids=["tokens", "5.x objects", "map", "ids, several EOS", "Qwen: no BOS", "Qwen with config.json", "EOS only", "no tokens"],
)  # fmt: skip
def test_control_tokens_are_found_in_every_spelling(folders, tmp_path, files, bos, eos, eos_ids, pad):
    (tmp_path / "tokenizer.json").write_bytes((folders["llama3"] / "tokenizer.json").read_bytes())
    first = load_tokenizer(folders["llama3"]).bos_id
    for name, tree in files.items():
        shifted = {key: shift(value, first) if key.endswith("_id") else value for key, value in tree.items()}
        (tmp_path / name).write_text(json.dumps(shifted))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (first + bos, first + eos)
    assert tokenizer.eos_ids == tuple(first + i for i in eos_ids)
    assert tokenizer.pad_id == (0 if pad is None else first + pad)
    tokenizer.save(tmp_path / "saved")  # where config.json is not
    saved = load_tokenizer(tmp_path / "saved")
    assert [getattr(saved, name) for name in ("bos_id", "eos_id", "eos_ids", "pad_id", "fingerprint")] == [
        getattr(tokenizer, name) for name in ("bos_id", "eos_id", "eos_ids", "pad_id", "fingerprint")
    ]


def shift(value: Any, first: int) -> Any:
    if isinstance(value, list):
        return [shift(i, first) for i in value]
    return value if value is None or value < 0 else first + value


def test_files_are_kept_as_they_were(folders, tmp_path):
    (folders["gpt2"] / "merges.txt").write_text("#version: 0.2\n")
    load_tokenizer(folders["gpt2"]).save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (folders["gpt2"] / name).read_bytes()


def test_what_a_folder_has_decides(folders, tmp_path):
    """Ours, those of run folders made before, whose tokenizer.json is a few words about the model, and
    Hugging Face's.
    """
    trained = train(documents(100), TokenizerConfig(vocab=310))
    trained.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == trained.fingerprint
    (tmp_path / "about.json").rename(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).fingerprint == trained.fingerprint
    for path in (folders["gpt2"], folders["gpt2"] / "tokenizer.json"):
        assert load_tokenizer(path).vocabulary()[-1] == "        "
    (tmp_path / "tokenizer.json").write_bytes((folders["gpt2"] / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[1]}))
    assert (
        load_tokenizer(tmp_path).vocabulary()[-1] == "        "
    )  # beside a tokenizer.model, as in Llama 2's folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has neither a Hugging Face tokenizer.json nor a tokenizer.model"),
        ({"tokenizer/about.json": "{}"}, "a run's is in tokenizer/ below it: give that"),
        ({"tokenizer.json": ""}, "tokenizer.json: is empty; copy it again"),
        ({"tokenizer.model": ""}, "tokenizer.model: is empty; copy it again"),
        ({"tokenizer.json": "{"}, "is not valid JSON"),
        ({"tokenizer.json": '{"model": {"type": "BPE"}}'}, "can't be read by tokenizers"),
        (
            {"tokenizer.json": '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'},
            "model.type=WordLevel: must be one of BPE, Unigram",
        ),
        (
            {"tokenizer.json": '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'},
            "name eos_token in a tokenizer_config.json",
        ),
    ],
)
def test_a_folder_without_a_usable_tokenizer_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(f"tokenizer.file={tmp_path}: ")
    assert "\n" not in str(error.value)


def test_half_a_surrogate_pair_is_refused(folders):
    with pytest.raises(UserError, match="not valid Unicode"):
        load_tokenizer(folders["gpt2"]).encode("\ud83d")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_corpus_is_tokenised_with_it(folders, make, tmp_path, workers):
    """In this process and in workers: documents are BOS, text, EOS."""
    from .conftest import write_jsonl

    texts = [f"{i} the model, <|end_of_text|> and 日本" for i in range(300)]
    path = write_jsonl(tmp_path / "texts.jsonl", texts)
    corpus = make(
        path,
        tokenizer=TokenizerConfig(file=str(folders["llama3"])),
        workers=workers,
        cache_dir=str(tmp_path / "cache"),
    )
    tokenizer = corpus.tokenizer
    tokens = corpus.batch(0)["tokens"].reshape(-1).tolist()
    begin = tokens.index(tokenizer.bos_id)
    document = tokens[begin : tokens.index(tokenizer.eos_id, begin) + 1]
    assert tokenizer.decode(document) in texts
    assert document == [tokenizer.bos_id, *tokenizer.encode(tokenizer.decode(document)), tokenizer.eos_id]


def test_a_byte_order_mark_before_its_files_is_no_part_of_them(folders, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (folders["gpt2"] / name).read_bytes())
    marked = load_tokenizer(tmp_path)
    assert marked.fingerprint == load_tokenizer(folders["gpt2"]).fingerprint
    marked.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved" / "tokenizer.json").fingerprint == marked.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"\xef\xbb\xbf{}", "is JSON, but no tokenizer.json: it has no model"),
        ("tokenizer_config.json", b'{"eos_token": "a"}', "is JSON, but no tokenizer.json: it has no model"),
        ("tokenizer.json", '{"model": {}}'.encode("utf-16"), "is UTF-16; convert it to UTF-8"),
        ("tokenizer.json", b"<!DOCTYPE html>", "is not valid JSON"),
        ("tokenizer.json", b"{'model': 1}", "is not valid JSON"),
        ("tokenizer.model", b"<!DOCTYPE html>", "is not a SentencePiece model"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named_for_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path / name)
    assert str(error.value).startswith(f"tokenizer.file={tmp_path / name}: ")


@pytest.mark.parametrize("given", ["gap", "taken"])
def test_added_tokens_have_the_ids_that_the_library_gives_them(tmp_path, given):
    """It passes over those of a file that leave a gap, or that another token has."""
    folder = make_folder("gpt2", tmp_path)
    tree = json.loads((folder / "tokenizer.json").read_text())
    before = load_tokenizer(folder)
    wrong = 5000 if given == "gap" else 7
    for token in tree["added_tokens"]:
        if token["id"] == before.eos_id:
            token["id"] = wrong
            name = token["content"]
    tree["added_tokens"].sort(key=lambda token: token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    after = load_tokenizer(folder)
    assert after.control_tokens[name] == after.eos_id != wrong
    assert after.encode_with_control(name) == [after.eos_id]
    assert after.decode(after.encode(text := 'a text, with "signs"')) == text
    assert any("not" in r and "as in tokenizer.json" in r and " has the id " in r for r in after.remarks)
