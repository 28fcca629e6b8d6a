"""Texts as the tokens that a model sees: ids, the bytes that each stands for, and how it is written on a page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data import Tokenizer

SPACE = "\u2581"
VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Token:
    """One token."""

    id: int
    data: bytes
    """What it stands for in a text; empty for a control token."""
    name: str = ""
    """What a control token is called; and one without bytes."""

    @property
    def label(self) -> str:
        """How it is written on a page: white space visible, bytes that are no whole characters as ⟨E2⟩, characters without a look as ⟨U+A0⟩.

        >>> Token(7, b" a\\n").label, Token(8, b"\\xe2").label, Token(9, "\\xa0".encode()).label, Token(1, b"", "<s>").label
        ('·a↵', '⟨E2⟩', '⟨U+A0⟩', '<s>')
        """
        if self.name:
            return self.name
        try:
            return "".join(VISIBLE.get(c, c if c.isprintable() else f"⟨U+{ord(c):02X}⟩") for c in self.data.decode())
        except UnicodeDecodeError:
            return "".join(chr(b) if 32 < b < 127 else VISIBLE.get(chr(b), f"⟨{b:02X}⟩") for b in self.data)

    @property
    def hex(self) -> str:
        """Its bytes as hexadecimal digits."""
        return self.data.hex(" ")


class Vocabulary:
    """Every token of a tokenizer; without one, ids without bytes."""

    def __init__(self, tokenizer: Tokenizer | None):
        self.written: list[str] = tokenizer.pieces() if tokenizer else []
        self.sizes: list[int] = tokenizer.token_bytes.tolist() if tokenizer else []

    def __getitem__(self, i: int) -> Token:
        """The token of an id. One past the vocabulary (rows that pad the embedding) is called by its number."""
        i = int(i)
        if i >= len(self.written):
            return Token(i, b"", f"#{i}")
        written, size = self.written[i], self.sizes[i]
        return Token(i, spelled(written, size)) if size else Token(i, b"", written or f"#{i}")

    def pieces(self, ids: Iterable[int]) -> list[Token]:
        """The tokens of some ids."""
        return [self[i] for i in ids]

    def plain(self, vocab: int) -> np.ndarray:
        """The ids that stand for some text; without a tokenizer all `vocab` of them."""
        return np.flatnonzero(self.sizes) if self.sizes else np.arange(vocab)


def spelled(written: str, size: int) -> bytes:
    """The `size` bytes that a piece stands for, from how its tokenizer writes it.

    A byte as <0x0A>; or text, where SentencePiece's spaces are ▁; or, byte-level, a character for every byte. Which one, the size tells.

    >>> spelled("<0x0A>", 1), spelled("▁né", 4), spelled("ĠnÃ©", 4)
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
    """How byte-level tokenizers write bytes (GPT-2, Radford et al. 2019): printable Latin-1 as it is, the others from U+0100 on, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


BYTE_OF = byte_characters()


def find_word(parts: list[Token], word: str, context: str) -> list[int]:
    """The positions of the tokens that the last whole-word occurrence of `word` lies in.

    Looked for in the text that the tokens' bytes are, so that it doesn't matter what a tokenizer puts before or between words.
    Raises UserError where the word isn't there.
    """
    text = b"".join(p.data for p in parts).decode(errors="surrogateescape")
    spelled = re.escape(word)
    found = list(re.finditer(rf"(?<!\w){spelled}(?!\w)", text))
    if not found and not word.isascii():  # there are scripts without spaces
        found = list(re.finditer(spelled, text))
    if not found:
        raise UserError(f"word={word}: is no word of the context {context!r}; both contexts must have it, written alike")
    start, end = (len(text[:at].encode(errors="surrogateescape")) for at in found[-1].span())
    ends, at = [], 0
    for p in parts:
        at += len(p.data)
        ends.append(at)
    return [i for i, (p, last) in enumerate(zip(parts, ends, strict=True)) if p.data and last > start and last - len(p.data) < end]
