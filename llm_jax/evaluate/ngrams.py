"""Which of several texts share an n-gram with a corpus: n tokens in a row, where a token is a word, a number
or a single other character, and case doesn't count.

Line ends are tokens of code, and are arbitrary in prose, whose lines are broken anywhere. So texts are read
both ways, with the end of a line as a token (blank lines and indentation aren't) and without, and what is
shared in either way counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

N = 10
"""Tokens of an n-gram. GPT-3's authors took 8 to 13 words (Brown et al. 2020, appendix C)."""
TOKEN = re.compile(r"\w+|[^\w\s]|\n\s*")
LINE_END = 1
"""The number of this token. 0 is that of tokens which are in none of the texts, so in no shared n-gram."""
BASE = np.uint64(0x9E3779B97F4A7C15)
"""Of the polynomial hash of an n-gram, modulo 2^64. What it finds is compared token by token."""


class Overlap(NamedTuple):
    """What a text shares with a corpus, in the way of reading in which that is more."""

    tokens: int
    covered: int
    """Tokens of the text that are in a shared n-gram."""
    n: int
    where: str = ""
    """The document that has the first shared n-gram; empty if there is none."""

    @property
    def checked(self) -> bool:
        """Whether the text is long enough to share an n-gram."""
        return self.tokens >= self.n

    @property
    def share(self) -> float:
        """The part of the text's tokens that is in shared n-grams."""
        return self.covered / self.tokens if self.tokens else 0.0


def tokens_of(text: str) -> list[str]:
    """The tokens of a text; a line end, and blank space after it, is a line end.

    >>> tokens_of("def f(x_1):  # Übung 42\\n\\n    pass")
    ['def', 'f', '(', 'x_1', ')', ':', '#', 'übung', '42', '\\n', 'pass']
    """
    return ["\n" if token[0] == "\n" else token for token in TOKEN.findall(text.strip().lower())]


def find_overlaps(texts: Sequence[str], documents: Iterable[tuple[str, str]], n: int = N) -> list[Overlap]:
    """What each text shares with a corpus, which is read once.

    documents: (where, text) of each. Memory is that of the texts' n-grams and of one document.
    """
    number = {"\n": LINE_END}
    ids = [
        np.array([number.setdefault(token, len(number) + 1) for token in tokens_of(text)], np.uint64)
        for text in texts
    ]
    readings = [ids, [without_line_ends(row) for row in ids]]
    wanted = [ordered_hashes(rows, n) for rows in readings]
    exact = [{gram for row in rows for gram in grams_of(row, n)} for rows in readings]
    found: list[dict[bytes, str]] = [{}, {}]
    for where, text in documents:
        row = np.array([number.get(token, 0) for token in tokens_of(text)], np.uint64)
        for way, read in enumerate((row, without_line_ends(row))):
            for i in np.flatnonzero(is_in(hashes_of(read, n), wanted[way])).tolist():
                if (gram := read[i : i + n].tobytes()) in exact[way]:
                    found[way].setdefault(gram, where)
    ways = [[overlap(row, there, n) for row in rows] for rows, there in zip(readings, found, strict=True)]
    return [max(both, key=lambda one: one.share) for both in zip(*ways, strict=True)]


def without_line_ends(ids: np.ndarray) -> np.ndarray:
    """Token numbers without those of line ends."""
    return ids[ids != LINE_END]


def grams_of(ids: np.ndarray, n: int) -> list[bytes]:
    """The n-grams of token numbers, as bytes."""
    return [ids[i : i + n].tobytes() for i in range(len(ids) - n + 1)]


def ordered_hashes(rows: Sequence[np.ndarray], n: int) -> np.ndarray:
    """The hashes of all n-grams of texts, in order, each once."""
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *(hashes_of(row, n) for row in rows)]))


def overlap(ids: np.ndarray, found: dict[bytes, str], n: int) -> Overlap:
    """What a text, by its token numbers, shares with a corpus; found: its n-grams → where they are."""
    covered, first = np.zeros(len(ids), bool), ""
    for i, gram in enumerate(grams_of(ids, n)):
        if (where := found.get(gram)) is not None:
            covered[i : i + n] = True
            first = first or where
    return Overlap(len(ids), int(covered.sum()), n, first)


def hashes_of(ids: np.ndarray, n: int) -> np.ndarray:
    """The hash of each n-gram of token numbers, uint64 [len(ids) - n + 1]."""
    count = max(0, len(ids) - n + 1)
    hashes = np.zeros(count, np.uint64)
    for shift in range(n):
        hashes = hashes * BASE + ids[shift : shift + count]
    return hashes


def is_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Whether each value is in an array that is in order."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values
