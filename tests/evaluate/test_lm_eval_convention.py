"""The ids of lm-evaluation-harness's backend `hf`, by hand for a tokenizer of letters."""

from __future__ import annotations

import dataclasses

import pytest

from llm_jax.core.errors import UserError
from llm_jax.evaluate.lm_eval_convention import HarnessConvention
from tests.generate.test_engine import Letters


class Merging(Letters):
    """Letters, of which "a " before a letter and the letter are one token."""

    def encode_with_control(self, text: str) -> list[int]:
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text.replace("ab", "\x7f")]


def convention(bos: int | None = 1, length: int = 100, bos_twice: bool = False) -> HarnessConvention:
    return HarnessConvention(Merging(), bos, 1, length, bos_twice)  # type: ignore[arg-type]


def ids(text: str) -> tuple[int, ...]:
    return tuple(Merging().encode(text))


def test_the_boundary_is_after_as_many_tokens_as_the_context_has():
    """So a token that spans it is neither read nor scored: here "b" is lost."""
    assert convention().pair("x", "yz") == ((1, *ids("x")), ids("yz"))
    assert convention().pair("xa", "bz") == ((1, *ids("xa")), ids("z"))
    with pytest.raises(UserError, match="the continuation 'b' adds no tokens"):
        convention().pair("xa", "b")


def test_spaces_at_the_end_of_a_context_are_the_continuations():
    assert convention().pair("x  ", "y") == ((1, *ids("x")), ids("  y"))


def test_an_empty_context_is_the_prefix():
    assert convention(None).pair("", "yz") == ((1,), ids("yz"))
    assert convention().pair("", "yz") == ((1,), ids("yz"))


def test_what_is_too_long_loses_its_beginning_with_bos():
    assert convention(length=4).pair("uvwx", "yz") == (ids("vwx"), ids("yz"))
    assert convention(length=4).prompt("uvwx", 2) == ids("wx")


def test_rolling_documents_have_bos_twice_only_where_asked():
    """The backend scores log p(BOS | BOS) with a tokenizer that puts BOS before texts."""
    once, twice = convention().rolling("xyz"), convention(bos_twice=True).rolling("xyz")
    assert once == [((1,), ids("xyz"))]
    assert twice == [((1,), (1, *ids("xyz")))]
    assert convention(None, bos_twice=True).rolling("xyz") == once
    windows = convention(length=4).rolling("abcdefghij"[2:] + "kl")
    assert sum((window.continuation for window in windows), ()) == ids("cdefghijkl")
    assert all(len(context) + len(continuation) == 5 for context, continuation in windows)


class Named(Merging):
    """Letters, and a control token whose name is "!"."""

    def encode_with_control(self, text: str) -> list[int]:
        return [9 if c == "!" else i for c, i in zip(text, self.encode(text), strict=True)]


def test_names_of_control_tokens_are_text_where_the_tokenizers_files_say_so():
    made = HarnessConvention(Named(), 1, 1, 100)  # type: ignore[arg-type]
    assert made.pair("x!", "y").context == (1, *ids("x"), 9)
    assert dataclasses.replace(made, control=False).pair("x!", "y").context == (1, *ids("x!"))
    assert [window.continuation for window in made.rolling("!y")] == [(9, *ids("y"))]
