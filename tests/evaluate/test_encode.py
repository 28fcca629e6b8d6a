"""Text as token ids: one BOS, a boundary that is never lost, and nothing cut in silence."""

from __future__ import annotations

import dataclasses

import pytest

from llm_jax.core.errors import UserError
from llm_jax.evaluate.encode import Convention, TooLong, encode, encode_prompt


class Words:
    """A tokenizer of characters, with a few longer pieces that it prefers."""

    def __init__(self, *pieces: str, bos: str = "") -> None:
        self.pieces = sorted(pieces, key=len, reverse=True)
        self.bos = bos

    def encode(self, text: str) -> list[int]:
        """Greedy, from the left; ids are those of the pieces, then of the characters."""
        ids, at = [], 0
        while at < len(text):
            piece = next((p for p in self.pieces if text.startswith(p, at)), text[at])
            ids.append(100 + self.pieces.index(piece) if piece in self.pieces else ord(piece))
            at += len(piece)
        return ([1] if self.bos else []) + ids


CONVENTION = Convention(bos=1, prefix=1, length=20)


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def test_the_continuation_is_what_the_context_does_not_begin_with():
    found = encode(Words(), CONVENTION, "ab", "cd")
    assert (found.context, found.continuation) == ((1, *ids("ab")), ids("cd"))
    assert (found.merged, found.dropped) == (False, 0)


def test_a_token_across_the_boundary_is_scored_and_counted_as_merged():
    found = encode(Words("bc"), CONVENTION, "ab", "cd")
    assert (found.context, found.continuation) == ((1, *ids("a")), (100, ord("d")))
    assert found.merged


def test_a_continuation_is_never_empty():
    class Trims(Words):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.rstrip())

    found = encode(Trims(), CONVENTION, "ab", " ")
    assert found.continuation == ids("b")
    with pytest.raises(UserError, match="has no tokens"):
        encode(Trims(), CONVENTION, "", " ")


def test_there_is_at_most_one_bos():
    found = encode(Words(bos="1"), CONVENTION, "ab", "cd")
    assert found.context == (1, *ids("ab"))
    assert encode_prompt(Words(bos="1"), CONVENTION, "ab", 1).context == (1, *ids("ab"))


@pytest.mark.parametrize(("bos", "context"), [(1, (1,)), (None, (2,))])
def test_an_empty_context_is_bos_or_the_token_that_stands_for_it(bos: int | None, context: tuple[int, ...]):
    convention = Convention(bos=bos, prefix=2 if bos is None else bos, length=20)
    found = encode(Words(), convention, "", "ab")
    assert (found.context, found.continuation) == (context, ids("ab"))


def test_without_bos_a_context_is_its_text():
    assert encode(Words(), Convention(None, 2, 20), "ab", "c").context == ids("ab")


def test_a_context_is_cut_on_its_left_after_bos_only_where_that_is_asked_for():
    exact = encode(Words(), CONVENTION, "x" * 18, "yz")  # 21 tokens, of which the last is not read
    assert exact.dropped == 0
    with pytest.raises(TooLong, match="has 21 tokens, and the model reads 20"):
        encode(Words(), CONVENTION, "x" * 19, "yz")
    left = dataclasses.replace(CONVENTION, too_long="left")
    found = encode(Words(), left, "a" + "x" * 18, "yz")
    assert (found.context, found.dropped) == ((1, *ids("x" * 18)), 1)
    with pytest.raises(TooLong):
        encode(Words(), left, "a", "y" * 21)


def test_a_prompt_leaves_room_for_its_answer():
    assert encode_prompt(Words(), CONVENTION, "x" * 9, 11).dropped == 0
    with pytest.raises(TooLong):
        encode_prompt(Words(), CONVENTION, "x" * 10, 11)


def test_the_convention_is_stated():
    assert CONVENTION.line == (
        "BOS (id 1) before every context; boundary by common token prefix; at most 20 tokens, too_long=refuse"
    )
    assert "no BOS" in Convention(None, 2, 20).line
