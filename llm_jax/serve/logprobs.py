"""Log-probabilities in the two shapes of OpenAI's API: that of completions, and that of chats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_jax.evaluate.scorer import Scored
from llm_jax.generate.request import Event
from llm_jax.serve.token_strings import TokenStrings

LEAST = -9999.0
"""Stands for less, since JSON has no infinity."""


class ScoredToken(NamedTuple):
    """A token with its log-probability, and the most likely ones in its place."""

    id: int
    logprob: float | None
    """In nats; None for the first token of a text, which nothing predicts."""
    top: tuple[tuple[int, float], ...]
    """(id, log-probability), best first."""


def of_event(event: Event) -> ScoredToken:
    """A token that was generated. Its log-probability is that of the list, where it is in it: sums in another
    order may differ in the last bit, and clients compare the two for equality."""
    return ScoredToken(event.token, dict(event.top).get(event.token, event.logprob), event.top)


def of_prompt(ids: Sequence[int], scored: Scored | None) -> list[ScoredToken]:
    """The tokens of a prompt. scored: all but the first; None where there are no others."""
    tokens = [ScoredToken(ids[0], None, ())]
    if scored is not None:
        for i, own, top_ids, top in zip(
            ids[1:], scored.logprobs.tolist(), scored.top_ids.tolist(), scored.top_logprobs.tolist(),
            strict=True,
        ):  # fmt: skip
            tokens.append(ScoredToken(i, own, tuple(zip(top_ids, top, strict=True))))
    return tokens


class CompletionLogprobs:
    """Log-probabilities of a completion: {tokens, token_logprobs, top_logprobs, text_offset}, part by
    part."""

    def __init__(self, strings: TokenStrings, most: int, as_ids: bool):
        """most: likely tokens at each position, beside the chosen one. as_ids: tokens are "token_id:17"."""
        self.strings, self.most, self.as_ids = strings, most, as_ids
        self.offset = 0
        """Characters of the text before the next token."""

    def name(self, i: int) -> str:
        """The string of a token."""
        return f"token_id:{i}" if self.as_ids else self.strings.text(i)

    def part(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """The next tokens of the text."""
        offsets = []
        for token in tokens:
            offsets.append(self.offset)
            self.offset += self.strings.characters(token.id)
        return {
            "tokens": [self.name(token.id) for token in tokens],
            "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in tokens],
            "top_logprobs": [self.top(token) for token in tokens],
            "text_offset": offsets,
        }

    def top(self, token: ScoredToken) -> dict[str, float] | None:
        """The most likely tokens by their strings, and the chosen one. Of equal strings the likeliest is
        kept."""
        if token.logprob is None:
            return None
        named: dict[str, float] = {}
        for i, logprob in (*token.top[: self.most], (token.id, token.logprob)):
            named.setdefault(self.name(i), finite(logprob))
        return named


def chat_logprobs(
    tokens: Sequence[ScoredToken], strings: TokenStrings, most: int, as_ids: bool
) -> dict[str, Any]:
    """Log-probabilities of an answer: {content: [{token, logprob, bytes, top_logprobs}]}."""

    def entry(i: int, logprob: float) -> dict[str, Any]:
        name = f"token_id:{i}" if as_ids else strings.text(i)
        return {"token": name, "logprob": finite(logprob), "bytes": strings.bytes(i)}

    content = [
        {**entry(token.id, token.logprob or 0.0), "top_logprobs": [entry(*one) for one in token.top[:most]]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def finite(logprob: float) -> float:
    """A log-probability that JSON can write."""
    return max(logprob, LEAST)
