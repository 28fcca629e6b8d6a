"""Control tokens are added to a tokenizer of any kind: texts keep their ids, and the names are tokens where asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import TokenizerConfig, load_tokenizer, vocabulary_size
from llm_jax.data.added_control import with_control
from llm_jax.data.sentencepiece_tokenizer import train
from llm_jax.huggingface.export_tokenizer import export_tokenizer

NAMES = ("<|im_start|>", "<|im_end|>")
TEXTS = ["a text, 12 b", "x<|im_end|>y", "  naïve 日本\n\n", "<|im_start|>"]


@pytest.fixture(scope="module", params=["bpe", "unigram", "tokenizer.json"])
def tokenizer(request, tmp_path_factory):
    if request.param == "tokenizer.json":
        return load_tokenizer(Path(__file__).parent / "chat_tokenizer")
    text = "a text with words like naïve 日本 and 12 of them\n" * 40
    return train([text], TokenizerConfig(vocab=320 if request.param == "bpe" else 286, kind=request.param))


def test_texts_keep_their_ids_and_names_are_tokens_where_that_is_asked_for(tokenizer, tmp_path):
    names = ("<|new|>", "<|over|>")
    lines: list[str] = []
    made = with_control(tokenizer, names, tmp_path, lines.append)
    size = tokenizer.vocab_size
    assert made.vocab_size == size + 2
    assert [made.control_tokens[name] for name in names] == [size, size + 1]
    assert made.eos_ids == (*tokenizer.eos_ids, size + 1)
    assert (made.eos_id, made.bos_id) == (tokenizer.eos_id, tokenizer.bos_id)
    for text in (*TEXTS, "x<|new|>y"):
        assert made.encode(text) == tokenizer.encode(text)
        assert made.decode(made.encode(text)) == text
    assert made.encode_with_control("<|new|>a<|over|>") == [size, *tokenizer.encode("a"), size + 1]
    assert made.decode([size, *tokenizer.encode("a"), size + 1]) == "a"
    assert lines == [
        f"tokenizer: <|new|> ({size}), <|over|> ({size + 1}) added; generation stops at <|over|> too"
    ]
    assert made.fingerprint != tokenizer.fingerprint
    assert with_control(made, names, tmp_path, lines.append) is made
    assert len(lines) == 1


def test_saved_exported_and_read_again_it_is_the_tokenizer(tokenizer, tmp_path):
    made = with_control(tokenizer, ("<|over|>",), tmp_path, lambda line: None)
    made.save(tmp_path / "saved")
    export_tokenizer(made, tmp_path / "exported")
    for folder in ("saved", "exported"):
        again = load_tokenizer(tmp_path / folder)
        assert again.encode_with_control("x<|over|>") == made.encode_with_control("x<|over|>")
        assert again.eos_id == made.eos_id
    assert load_tokenizer(tmp_path / "saved").eos_ids == made.eos_ids


def test_what_a_tokenizer_has_is_not_added_again(tmp_path):
    tokenizer = load_tokenizer(Path(__file__).parent / "chat_tokenizer")
    assert with_control(tokenizer, NAMES, tmp_path, lambda line: None) is tokenizer
    config = TokenizerConfig(file=str(Path(__file__).parent / "chat_tokenizer"), control=(*NAMES, "<|new|>"))
    assert vocabulary_size(config) == tokenizer.vocab_size + 1
    assert vocabulary_size(TokenizerConfig(vocab=300, control=NAMES)) == 302


@pytest.mark.parametrize("control", [("",), ("a b",), ("a", "a"), ("a\n",)])
def test_a_name_that_is_none_is_refused(control):
    with pytest.raises(UserError, match=r"tokenizer.control="):
        TokenizerConfig(control=control).check()
