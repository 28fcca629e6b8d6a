"""Turns tokens into text one at a time: whole characters only, up to the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

CONTEXT = 8
"""Number of earlier tokens that are decoded together with new ones: SentencePiece drops the space before the
first word of what it decodes."""
UNFINISHED = 3
"""An incomplete UTF-8 character has at most this many bytes, and decodes to at most this many U+FFFD at the
end of the text."""


class Detokenizer:
    """The text that each token adds. Joined, it equals the tokenizer's decoding of all tokens at once.

    So text that `decode` has returned must not change with later tokens, U+FFFD of an incomplete character at
    its end aside.
    """

    def __init__(self, decode: Callable[[Iterable[int]], str], before: Sequence[int] = ()):
        """decode: token ids → text. before: the tokens of the prompt, whose text is not returned; a character
        that the prompt begins is, if the first tokens complete it.
        """
        self.decode = decode
        self.context: list[int] = []
        self.context_text = ""
        self.pending: list[int] = []
        """Tokens after the last one that ended a character."""
        self.returned = 0
        """Characters of the pending tokens that have been returned."""
        self.shown = 0
        """U+FFFD at the end of the prompt: the prompt's, unless they become a character."""
        self.push(*self.recent(before)[0])
        self.shown = len(self.text()) - self.returned

    def push(self, *tokens: int) -> str:
        """Adds tokens and returns the new text that later tokens can't change; the bytes of an incomplete
        character wait."""
        self.pending += tokens
        text = self.text()
        broken = len(text) - len(text.rstrip("\ufffd"))
        new = self.new(text[: len(text) - min(broken, UNFINISHED)])
        if not broken:
            self.context, self.context_text = self.recent([*self.context, *self.pending])
            self.pending, self.returned = [], 0
        return new

    def flush(self) -> str:
        """The rest of the text after the last token: bytes that never became a character, as U+FFFD."""
        return self.new(self.text())

    def new(self, text: str) -> str:
        """The part of the pending tokens' text that was neither returned nor shown as the prompt's end."""
        new, self.returned = text[self.returned :], max(len(text), self.returned)
        of_prompt = min(self.shown, len(new) - len(new.lstrip("\ufffd")))
        self.shown = self.shown - of_prompt if of_prompt == len(new) else 0
        return new[of_prompt:]

    def text(self) -> str:
        """The text that the pending tokens add to that of the context."""
        return self.decode([*self.context, *self.pending])[len(self.context_text) :]

    def recent(self, tokens: Sequence[int]) -> tuple[list[int], str]:
        """The last tokens, at least CONTEXT of them and so many that they have text, if any have; their
        text."""
        count = CONTEXT
        while not (text := self.decode(tokens[-count:])) and count < len(tokens):
            count *= 2
        return list(tokens[-count:]), text


class StopStrings:
    """Passes text on, part by part, up to the first stop string that is complete. The stop string is not
    passed on."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.withheld = ""
        """The end of the text so far that may be the beginning of a stop string."""
        self.found: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> str:
        """Adds text and returns what can't be part of a stop string. Sets `found` at the first complete one;
        returns "" from then on."""
        if self.found is not None:
            return ""
        self.withheld += text
        whole = [(at + len(stop), at, stop) for stop in self.stops if (at := self.withheld.find(stop)) >= 0]
        if (
            whole
        ):  # the first to be complete, as if the text came letter by letter: how it is cut doesn't matter
            _, at, self.found = min(whole)
            out, self.withheld = self.withheld[:at], ""
            return out
        keep = max(
            (n for stop in self.stops for n in range(1, len(stop)) if self.withheld.endswith(stop[:n])),
            default=0,
        )
        out, self.withheld = (
            self.withheld[: len(self.withheld) - keep],
            self.withheld[len(self.withheld) - keep :],
        )
        return out

    def flush(self) -> str:
        """The text that was withheld and became no stop string."""
        out, self.withheld = self.withheld, ""
        return out
