"""Text while its tokens come: whole characters only, and none of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

CONTEXT = 8
"""Tokens before the new ones that are decoded with them: SentencePiece writes the first word of what it decodes without its space."""
UNFINISHED = 3
"""A character's bytes that may still be completed are at most so many, and at most so many U+FFFD at the end of what is decoded."""


class Detokenizer:
    """Token ids, one at a time, to the text that each adds. What is added in all is what the tokenizer makes of all tokens at once."""

    def __init__(self, decode: Callable[[Iterable[int]], str], before: Sequence[int] = ()):
        """before: the tokens of the prompt, whose text is not given out again."""
        self.decode = decode
        self.context = list(before[-CONTEXT:])
        self.pending: list[int] = []
        """Tokens since the last one that ended a character."""
        self.given = 0
        """Characters of the pending tokens that have been given out."""

    def push(self, token: int) -> str:
        """The text that is certain now: the end waits while it may be the beginning of a character."""
        self.pending.append(token)
        text = self.text()
        broken = len(text) - len(text.rstrip("\ufffd"))
        certain = len(text) - min(broken, UNFINISHED)
        new, self.given = text[self.given : certain], max(certain, self.given)
        if not broken:
            self.context, self.pending, self.given = [*self.context, *self.pending][-CONTEXT:], [], 0
        return new

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        new, self.given = self.text()[self.given :], len(self.text())
        return new

    def text(self) -> str:
        """What the pending tokens add to the context's text."""
        return self.decode([*self.context, *self.pending])[len(self.decode(self.context)) :]


class StopStrings:
    """Text, piece by piece, up to the first of some strings that is there whole; that string itself is not given out."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.held = ""
        """The end of the text so far that may be the beginning of a stop string."""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that can be given out now. Sets `found`; after that there is no more."""
        if self.found is not None:
            return ""
        self.held += text
        whole = [(at + len(stop), at, stop) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if whole:  # the first to be whole, as if the text came letter by letter: it doesn't matter how it is cut
            _, at, self.found = min(whole)
            out, self.held = self.held[:at], ""
            return out
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n])), default=0)
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out

    def flush(self) -> str:
        """What was held back and became no stop string."""
        out, self.held = self.held, ""
        return out
