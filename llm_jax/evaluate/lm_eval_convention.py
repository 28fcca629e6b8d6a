"""How lm-evaluation-harness (0.4.13, backend `hf`) makes token ids of texts, for runs that it drives and for
comparisons with it. Imports no JAX.

Against `evaluate.encode`, this project's own convention, there are three differences: the boundary is the
number of the context's tokens, after spaces at its end were moved to the continuation; the name of a control
token in a text may be that token; and rolling documents of a tokenizer that puts BOS before texts get it
twice, so that log p(BOS | BOS) is part of their score.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_jax.core.errors import UserError
from llm_jax.data import Tokenizer
from llm_jax.evaluate.token_paths import ScoreRequest


@dataclass(frozen=True)
class HarnessConvention:
    """The ids of one model's texts."""

    tokenizer: Tokenizer
    bos: int | None
    """The token that the tokenizer puts before every text; None: it puts none."""
    prefix: int
    """What an empty context stands for: BOS, or EOS for a tokenizer without BOS."""
    length: int
    """The most tokens that the model reads; contexts are cut on the left to that."""
    bos_twice: bool = False
    """Whether rolling documents get BOS from the tokenizer and as their prefix, as the backend `hf` has it;
    else once."""
    control: bool = True
    """Whether the name of a control token in a text is that token, as for transformers unless the tokenizer's
    files have split_special_tokens."""

    @property
    def line(self) -> str:
        """The convention in words."""
        bos = f"BOS (id {self.bos}) before every context" if self.bos is not None else "no BOS"
        twice = ", twice in rolling documents" if self.bos is not None and self.bos_twice else ""
        return (
            f"as lm-evaluation-harness: {bos}{twice}; an empty context is the token {self.prefix}; boundary "
            f"after the context's own tokens; at most {self.length:,} tokens, cut on the left"
        )

    def bare_ids(self, text: str) -> list[int]:
        """The ids of a text alone."""
        return (self.tokenizer.encode_with_control if self.control else self.tokenizer.encode)(text)

    def ids(self, text: str) -> list[int]:
        """The ids of a text, after BOS where the tokenizer puts one."""
        ids = self.bare_ids(text)
        return ids if self.bos is None or ids[:1] == [self.bos] else [self.bos, *ids]

    def pair(self, context: str, continuation: str) -> ScoreRequest:
        """The ids of a context and its continuation. Raises UserError for a continuation that adds none."""
        if not context:
            scored = self.bare_ids(continuation)
            before = [self.prefix]
            if scored[:1] == before:
                before, scored = scored[:1], scored[1:]
        else:
            bare = context.rstrip()
            continuation = context[len(bare) :] + continuation
            before = self.ids(bare)
            scored = self.ids(bare + continuation)[len(before) :]
        if not scored:
            raise UserError(f"the continuation {continuation[:40]!r} adds no tokens to its context")
        whole = (*before, *scored)[-(self.length + 1) :]
        return ScoreRequest(whole[: -len(scored)], whole[-len(scored) :])

    def rolling(self, text: str) -> list[ScoreRequest]:
        """The windows of a document: together they score each of its tokens once, each of them reads as much
        as the model can."""
        tokens = self.ids(text) if self.bos_twice else self.bare_ids(text)
        return list(windows(tokens, self.prefix, self.length))

    def prompt(self, text: str, new_tokens: int) -> tuple[int, ...]:
        """The ids of a text to be continued, cut on the left to leave room for the new tokens."""
        return tuple(self.ids(text)[-(self.length - new_tokens) :])


def windows(tokens: list[int], prefix: int, length: int) -> Iterator[ScoreRequest]:
    """Requests that score each token once, in windows of at most `length` tokens that are read.

    All but the last are disjoint; the last one is moved back to read as much as the others.

    >>> for window in windows(list(range(10)), -1, 4):
    ...     print(window.context, window.continuation)
    (-1,) (0, 1, 2, 3)
    (3,) (4, 5, 6, 7)
    (5, 6, 7) (8, 9)
    """
    done = min(length, len(tokens))
    if tokens:
        yield ScoreRequest((prefix,), tuple(tokens[:done]))
    while done < len(tokens):
        new = min(len(tokens) - done, length)
        end = done + new
        yield ScoreRequest(tuple(tokens[end - length - 1 : done]), tuple(tokens[done:end]))
        done = end
