"""Detokenizing one token at a time: the parts join to the tokenizer's text, and no stop string is shown,
wherever tokens are cut."""

from __future__ import annotations

import random

import pytest

from llm_jax.data import TokenizerConfig
from llm_jax.data.sentencepiece_tokenizer import train
from llm_jax.generate.detokenizer import Detokenizer, StopStrings
from tests.data.conftest import documents

TEXTS = (
    " a  b\t\n\n    if x_1:\r\n é 日本 😀 \u00a0ﬁ  ",
    "😀😀é\ufffd!",
    "\ufffd\ufffd\ufffd\ufffd\ufffd",
    "plain",
    "",
)


@pytest.fixture(scope="module")
def tokenizer():
    return train(documents(100), TokenizerConfig(vocab=320))


class Bytes:
    """A tokenizer whose tokens are one to three bytes, cut anywhere."""

    def __init__(self, seed: int):
        self.random, self.tokens = random.Random(seed), []

    def encode(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            n = self.random.randint(1, 3)
            self.tokens.append(data[:n])
            ids.append(len(self.tokens) - 1)
            data = data[n:]
        return ids

    def decode(self, ids) -> str:
        return b"".join(self.tokens[i] for i in ids).decode(errors="replace")


def pushed(decode, before: list[int], ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(decode, before)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_parts_are_the_whole_text(tokenizer, text):
    prompt = tokenizer.encode("def é")
    parts = pushed(tokenizer.decode, [tokenizer.bos_id, *prompt], tokenizer.encode(text))
    assert "".join(parts) == text
    for seed in range(20):
        cut = Bytes(seed)
        assert "".join(pushed(cut.decode, cut.encode("é😀"), cut.encode(text))) == text


def test_half_a_character_waits_for_its_other_half(tokenizer):
    parts = pushed(tokenizer.decode, [], tokenizer.encode("a😀b"))
    assert not any("\ufffd" in part for part in parts)
    assert "😀" in parts


def test_bytes_that_are_not_utf8_are_returned_as_they_decode(tokenizer):
    """Random bytes: broken characters of every kind, beside whole ones."""
    one_byte = [i for i, size in enumerate(tokenizer.token_bytes) if size == 1]
    generator = random.Random(0)
    for _ in range(50):
        ids = [generator.choice(one_byte) for _ in range(30)] + tokenizer.encode("😀")
        assert "".join(pushed(tokenizer.decode, [], ids)) == tokenizer.decode(ids)


def test_a_word_after_the_prompt_keeps_its_space():
    """With a tokenizer like Llama 2's, whose text begins with a space that decoding removes."""
    words = ["▁the", "▁end", "s", "▁"]

    def decode(ids) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert pushed(decode, [0], [1, 2, 3, 1]) == [" end", "s", " ", " end", ""]
    assert pushed(decode, [], [0, 1]) == ["the", " end", ""]


@pytest.mark.parametrize(
    ("stops", "text", "shown", "found"),
    [
        (["\n\n"], "one\n\ntwo", "one", "\n\n"),
        (["abcd", "bc"], "xabcx", "xa", "bc"),
        (["abab"], "aababab", "a", "abab"),
        (["b", "ab"], "xab", "x", "ab"),
        (["abcd", "bc"], "xabcd", "xa", "bc"),
        (["end"], "never en", "never en", None),
        ([], "all of it", "all of it", None),
        (["x"], "x", "", "x"),
    ],
)
def test_text_ends_before_the_first_whole_stop_string_however_it_is_cut(stops, text, shown, found):
    for cuts in range(2 ** (len(text) - 1)) if len(text) < 9 else (0, 1, 2 ** (len(text) - 1) - 1):
        parts = [text[0]]
        for i, character in enumerate(text[1:]):
            parts[-1:] = [parts[-1], character] if cuts >> i & 1 else [parts[-1] + character]
        stop = StopStrings(stops)
        out = [stop.push(part) for part in parts]
        assert "".join(out) + stop.flush() == shown
        assert stop.found == found
        if found:
            assert "".join(out) == shown
