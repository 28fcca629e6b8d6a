"""Text is text: no tokenizer.json turns it into control tokens, or into other tokens each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_jax.data import Tokenizer, TokenizerConfig, load_tokenizer
from llm_jax.data.plain_text import control_names, names_cut

from .conftest import write_jsonl

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEF/"
CONTROL = ["<pad>", "</s>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NAMED = {"eos_token": "</s>", "pad_token": "<pad>"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
TO_SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FALLBACK: dict[str, Any] = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "decoder": {"type": "Sequence", "decoders": [TO_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}]},
}


def added(i: int, content: str, special: bool = True) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, **plain, "special": special}


def tree_of(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    tokens = [added(i, name) for i, name in enumerate(CONTROL)]
    return {"version": "1.0", **empty, "added_tokens": tokens, "model": model, **parts}


def unigram(letters: str, *, fallback: bool, more: tuple[str, ...] = (), **parts: Any) -> dict[str, Any]:
    """As T5 has it: control tokens are the most likely pieces."""
    vocab = [[name, 0.0] for name in CONTROL]
    vocab += [[name, 0.0] for name in BYTES] if fallback else []
    vocab += [[letter, -5.0] for letter in f"▁{letters}"] + [[piece, -4.0] for piece in more]
    extra = [added(len(vocab) + i, f"<extra_id_{i}>") for i in range(3)]
    vocab += [[token["content"], 0.0] for token in extra]
    tree = tree_of({"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": fallback}, **parts)
    tree["added_tokens"] += extra
    return tree


def bpe(pieces: list[str], merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    """As conversions of SentencePiece's BPE have it: merges of any two pieces that form a piece."""
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, **settings}
    vocab = {piece: i for i, piece in enumerate([*CONTROL, *BYTES, "▁", *LETTERS, "<", ">", *pieces])}
    return tree_of({**model, "vocab": vocab, "merges": merges}, **FALLBACK)


TREES = {
    "T5: no piece for <": unigram(LETTERS, fallback=False, pre_tokenizer=METASPACE, decoder=METASPACE),
    "T5, in a sequence": unigram(
        LETTERS, fallback=False, decoder=METASPACE,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]},
    ),
    "unigram with bytes": unigram(LETTERS, fallback=True, **FALLBACK),
    "unigram, letters of all names": unigram(LETTERS + "<>_", fallback=True, **FALLBACK),
    "unigram, pieces across the cut": unigram(LETTERS + "<>", fallback=True, more=("</", "a<", "b</"), **FALLBACK),
    "BPE, merges": bpe(["</", "s>", "<s"], [["<", "/"], ["s", ">"], ["</", "s>"]]),
    "BPE, merges of bytes": bpe(["<0", "x4", "1>", "x41>"], [["<", "0"], ["x", "4"], ["1", ">"], ["x4", "1>"], ["<0", "x41>"]]),
    "BPE, whole words": bpe([], [], ignore_merges=True),
}  # fmt: skip
TEXTS = [
    "</s>",
    "a</s>b",
    "<pad><unk>",
    "x <unk> y",
    "<0x41>",
    "<0x0A>a",
    "<extra_id_0> a",
    "</s",
    "<<//ss>>",
]


def make(folder: Path, tree: dict[str, Any], **config: Any) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or NAMED))
    return load_tokenizer(folder)


@pytest.mark.parametrize("kind", TREES)
def test_the_name_of_a_control_token_in_a_text_is_text(tmp_path, kind):
    tokenizer, lossy = make(tmp_path, TREES[kind]), kind.startswith("T5")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        silent = [i for i in ids if not tokenizer.token_bytes[i]]
        assert not silent or (lossy and set(silent) == {2}), text  # T5 has no token for <
        if not lossy:
            assert tokenizer.decode(ids) == text
            assert int(tokenizer.token_bytes[ids].sum()) == len(text.encode())
    assert tokenizer.decode([tokenizer.eos_id]) == ""


@pytest.mark.parametrize("kind", TREES)
def test_other_texts_have_the_tokens_that_the_library_makes(tmp_path, kind):
    import tokenizers

    tokenizer, backend = make(tmp_path, TREES[kind]), tokenizers.Tokenizer.from_str(json.dumps(TREES[kind]))
    for text in ("the words of a text", "a<b/c>d", "x  y\n\tz", "日本 é", "</", "<div></div>"):
        if ("<" in text or "日" in text) and kind.startswith("T5"):
            continue
        assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids


def test_a_name_whose_letters_are_likelier_needs_no_cut():
    tree = unigram(LETTERS + "<>_", fallback=True)
    for piece in tree["model"]["vocab"]:
        piece[1] = -1e6 if piece[0] in control_names(tree) else piece[1]
    assert names_cut(tree) == tree
    tree["model"]["vocab"] = [piece for piece in tree["model"]["vocab"] if piece[0] != "/"]
    step = names_cut(tree)["pre_tokenizer"]
    assert step["pattern"]["Regex"] == "<(?=/s>)"
    assert names_cut(names_cut(tree)) == names_cut(tree)


def test_a_corpus_has_no_end_of_document_inside_a_document(make_corpus, tmp_path):
    """`make` of conftest.py, with a tokenizer like T5's."""
    make(tmp_path / "t5", TREES["unigram with bytes"])
    corpus = make_corpus(
        write_jsonl(tmp_path / "x.jsonl", [f"{i} a</s>b" for i in range(80)]),
        tokenizer=TokenizerConfig(file=str(tmp_path / "t5")),
    )
    batch, end = corpus.batch(0), corpus.tokenizer.eos_id  # which is also BOS here
    inside = (batch["tokens"][:, 1:-1] == end) & (batch["positions"][:, 1:-1] > 0)
    assert (batch["positions"][:, 2:][inside] == 0).all()
    assert corpus.tokenizer.decode(batch["tokens"].reshape(-1)).count("a</s>b") >= 8


@pytest.fixture(name="make_corpus")
def fixture_make_corpus(request):
    return request.getfixturevalue("make")


@pytest.mark.parametrize("where", ["added, not special", "in the vocabulary only"])
def test_an_eos_that_the_file_does_not_call_special_ends_no_text(tmp_path, where):
    """As fine-tuned models name an <|im_end|> of theirs."""
    tree = bpe(["<|im_end|>"], [])
    i = tree["model"]["vocab"].pop("<|im_end|>")
    if where == "added, not special":
        tree["added_tokens"].append(added(i, "<|im_end|>", special=False))
    else:
        tree["model"]["vocab"]["<|im_end|>"] = i
        tree["model"]["ignore_merges"] = True
    tokenizer = make(tmp_path, tree, eos_token="<|im_end|>")
    assert tokenizer.eos_id == i
    for text in ("<|im_end|>", "a<|im_end|>b"):
        assert i not in tokenizer.encode(text)
        assert tokenizer.decode([*tokenizer.encode(text), i]) == text
    assert tokenizer.token_bytes[i] == 0
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_an_id_in_config_json_makes_no_word_a_control_token(tmp_path):
    """Defaults of a configuration's class name ids that are words of the tokenizer."""
    tree = bpe([], [])
    word = tree["model"]["vocab"]["a"]
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": word}))
    tokenizer = make(tmp_path, tree)
    assert tokenizer.bos_id == word
    assert tokenizer.decode(tokenizer.encode("a cat")) == "a cat"


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_dropout_is_off_and_named(tmp_path, rate):
    merges = [["a", "b"], ["c", "d"], ["ab", "cd"]]
    plain = make(tmp_path / "plain", bpe(["ab", "cd", "abcd"], merges))
    tokenizer = make(tmp_path / "random", bpe(["ab", "cd", "abcd"], merges, dropout=rate))
    assert {tuple(tokenizer.encode("abcd" * 50)) for _ in range(5)} == {tuple(plain.encode("abcd" * 50))}
    assert tokenizer.lossless == plain.lossless
    assert "dropout is off" in tokenizer.remarks
    assert tokenizer.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    "asked",
    [
        {"truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}},
        {"padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "<pad>"}},
    ],
)  # fmt: skip
def test_lengths_that_a_file_asks_for_are_off_and_named(tmp_path, asked):
    tokenizer = make(tmp_path, {**bpe([], []), **asked})
    assert len(tokenizer.encode("abcdef")) == 6
    assert tokenizer.remarks[0] == f"{next(iter(asked))} is off"


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_a_token_that_takes_the_spaces_around_it_is_named(tmp_path, side):
    tree = bpe([], [])
    tree["added_tokens"].append({**added(len(tree["model"]["vocab"]), "<sep>", special=False), side: True})
    tokenizer = make(tmp_path, tree)
    assert tokenizer.decode(tokenizer.encode("a <sep> b")) != "a <sep> b"
    assert any(remark.startswith("'a<sep>b <sep> c' becomes") for remark in tokenizer.remarks)


UNUSED = {
    "a token": ({"added_tokens_decoder": {"400": {"content": "<|im_start|>"}}}, "tokenizer.json has no <|im_start|>, which tokenizer_config.json names"),
    "tokens": ({"added_tokens_decoder": {"400": {"content": "<a>"}, "2": {"content": "<unk>"}, "401": {"content": "<b>"}}}, "tokenizer.json has no <a> and 1 more, which tokenizer_config.json names"),
    "a space": ({"add_prefix_space": True}, "tokenizer_config.json's add_prefix_space=true has no effect"),
    "nothing": ({"add_prefix_space": False, "added_tokens_decoder": {"1": {"content": "</s>"}}}, None),
    "nonsense": ({"add_prefix_space": 3, "added_tokens_decoder": [1]}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSED)
def test_what_only_tokenizer_config_json_asks_for_is_named(tmp_path, name):
    asked, remark = UNUSED[name]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    tree = bpe([], [])
    bare = make(tmp_path / "bare", {**tree, "pre_tokenizer": steps})
    tokenizer = make(tmp_path / "asked", {**tree, "pre_tokenizer": steps}, **NAMED, **asked)
    assert [one for one in tokenizer.remarks if one not in bare.remarks] == ([remark] if remark else [])


CHANGES = {
    "a space before the text": ({"pre_tokenizer": METASPACE}, "'the model' becomes ' the model'"),
    "lower case": ({"normalizer": {"type": "Sequence", "normalizers": [FALLBACK["normalizer"], {"type": "Lowercase"}]}}, "'A' becomes 'a'"),
    "white space at the ends": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Strip", "strip_left": True, "strip_right": True}, FALLBACK["normalizer"]]}}, "' the' becomes 'the'"),
    "composed": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, FALLBACK["normalizer"]]}}, r"'e\u0301' becomes '\xe9'"),
    "no bytes": ({"model": {**bpe([], [])["model"], "byte_fallback": False}}, r"'\xe9' becomes ''"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_tokenizer_changes_is_said_with_an_example(tmp_path, name):
    parts, remark = CHANGES[name]
    tokenizer = make(tmp_path, {**bpe([], []), **parts})
    assert remark in tokenizer.remarks
    assert not tokenizer.lossless
