"""Tokens of a text for display: id, bytes and a printable label of each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data.tokenizer import Tokenizer

SPACE = "\u2581"
VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Token:
    """One token of a vocabulary."""

    id: int
    data: bytes
    """The bytes that the token stands for in a text; empty for a control token."""
    name: str = ""
    """Name of a token without bytes, such as a control token."""

    @property
    def label(self) -> str:
        """Printable text: white space made visible, bytes of incomplete characters as ⟨E2⟩, unprintable
        characters as ⟨U+A0⟩.

        >>> [Token(0, data).label for data in (b" a\\n", b"\\xe2", "\\xa0".encode())]
        ['·a↵', '⟨E2⟩', '⟨U+A0⟩']
        >>> Token(1, b"", "<s>").label
        '<s>'
        """
        if self.name:
            return self.name
        try:
            return "".join(
                VISIBLE.get(c, c if c.isprintable() else f"⟨U+{ord(c):02X}⟩") for c in self.data.decode()
            )
        except UnicodeDecodeError:
            return "".join(chr(b) if 32 < b < 127 else VISIBLE.get(chr(b), f"⟨{b:02X}⟩") for b in self.data)

    @property
    def hex(self) -> str:
        """The bytes as hexadecimal digits, separated by spaces."""
        return self.data.hex(" ")


class Vocabulary:
    """All tokens of a tokenizer by id. For a model without one (None), tokens without bytes."""

    def __init__(self, tokenizer: Tokenizer | None):
        self.written: list[str] = tokenizer.vocabulary() if tokenizer else []
        self.sizes: list[int] = tokenizer.token_bytes.tolist() if tokenizer else []

    def __getitem__(self, i: int) -> Token:
        """The token of an id. Ids past the vocabulary, which pad the embedding, are named by their number."""
        i = int(i)
        if i >= len(self.written):
            return Token(i, b"", f"#{i}")
        written, size = self.written[i], self.sizes[i]
        return Token(i, token_bytes(written, size)) if size else Token(i, b"", written or f"#{i}")

    def tokens(self, ids: Iterable[int]) -> list[Token]:
        """The token of each id."""
        return [self[i] for i in ids]

    def plain(self, vocab: int) -> np.ndarray:
        """Ids of tokens that have bytes; without a tokenizer, all ids below `vocab`."""
        return np.flatnonzero(self.sizes) if self.sizes else np.arange(vocab)


def token_bytes(written: str, size: int) -> bytes:
    """The `size` bytes that a vocabulary entry stands for, from its written form.

    Forms: a byte as <0x0A>; text in which SentencePiece writes spaces as ▁; a character for every byte
    (byte-level). The form is the first one that has `size` bytes.

    >>> token_bytes("<0x0A>", 1), token_bytes("▁né", 4), token_bytes("ĠnÃ©", 4)
    (b'\\n', b' n\\xc3\\xa9', b' n\\xc3\\xa9')
    """
    if size == 1 and (found := re.fullmatch("<0x([0-9A-F]{2})>", written)):
        return bytes([int(found[1], 16)])
    for text in (written.replace(SPACE, " "), written):
        if len(text.encode()) == size:
            return text.encode()
    if len(written) == size and all(c in BYTE_OF for c in written):
        return bytes(BYTE_OF[c] for c in written)
    return written.encode()


def byte_characters() -> dict[str, int]:
    """The byte of each character that byte-level tokenizers write (GPT-2, Radford et al. 2019): printable
    Latin-1 as it is, other bytes from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


BYTE_OF = byte_characters()


def find_word(tokens: list[Token], word: str, context: str) -> list[int]:
    """Positions of the tokens that the last whole-word occurrence of `word` overlaps.

    The search runs over the joined bytes of the tokens, so it doesn't depend on what a tokenizer puts before
    or between words. Raises UserError if the word isn't there. context: the text, for that error.
    """
    text = b"".join(p.data for p in tokens).decode(errors="surrogateescape")
    pattern = re.escape(word)
    found = list(re.finditer(rf"(?<!\w){pattern}(?!\w)", text))
    if not found and not word.isascii():  # some scripts write no spaces
        found = list(re.finditer(pattern, text))
    if not found:
        raise UserError(
            f"word={word}: is no word of the context {context!r}. "
            "Give a word that both contexts contain, spelled alike"
        )
    start, end = (len(text[:at].encode(errors="surrogateescape")) for at in found[-1].span())
    ends, at = [], 0
    for p in tokens:
        at += len(p.data)
        ends.append(at)
    return [
        i
        for i, (p, last) in enumerate(zip(tokens, ends, strict=True))
        if p.data and last > start and last - len(p.data) < end
    ]
