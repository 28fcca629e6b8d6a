"""A number for each token of documents, such as the log-probability that a model gives to it: computed
once, and kept in the cache beside the tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_jax.data import cache
from llm_jax.data.whole_rows import WholeRows

Batch = dict[str, np.ndarray]
Place = tuple[WholeRows, int]
"""Rows, and the number of one of them in the order of their plan."""


@dataclass(frozen=True)
class TokenNumbers:
    """The numbers of the documents of some rows, in one file: NaN where there is none yet."""

    file: Path
    """Where they are in the cache."""
    size: int
    """The number of tokens of all documents, those of other rows too."""
    needed: Sequence[Place]
    """The rows that a run will see, each once."""

    def missing(self) -> list[int]:
        """Which of the needed rows have documents without numbers."""
        if not self.file.exists():
            return list(range(len(self.needed)))
        numbers = self.mapped()
        return [
            i
            for i, (rows, index) in enumerate(self.needed)
            if any(np.isnan(numbers[begin + 1 : begin + 2]).any() for _, begin, _ in rows.places(index))
        ]

    def compute(
        self, which: Sequence[int], score: Callable[[Batch], np.ndarray], batch_size: int
    ) -> np.ndarray:
        """The numbers of some of the needed rows, float32 for each token, NaN elsewhere.

        score: gives a number, [B, T], for each target of a batch; the last one is filled up with padding.
        """
        numbers = np.full(self.size, np.nan, np.float32)
        for first in range(0, len(which), batch_size):
            places = [self.needed[i] for i in which[first : first + batch_size]]
            made = [rows.row(index) for rows, index in places]
            made += [places[0][0].empty_row()] * (batch_size - len(made))
            batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
            values_BT = np.asarray(score(batch), np.float32)
            values_BT = np.where(np.isnan(values_BT), np.inf, values_BT)  # NaN is what was not computed
            for (rows, index), values_T in zip(places, values_BT, strict=False):
                rows.collect(index, values_T, numbers)
        return numbers

    def save(self, numbers: np.ndarray) -> None:
        """Adds numbers to the file. Raises UserError where there is no room.

        The file is replaced as a whole: whoever has mapped the old one keeps that.
        """
        folder = self.file.parent
        with cache.writable(folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
            if self.file.exists():
                numbers = np.where(np.isnan(numbers), self.mapped(), numbers)
            temporary = cache.temporary_beside(self.file)
            numbers.astype(np.float32).tofile(temporary)
            os.replace(temporary, self.file)

    def mapped(self) -> np.ndarray:
        """The numbers in the file, float32, mapped."""
        return np.memmap(self.file, np.float32, "r") if self.size else np.zeros(0, np.float32)

    def attach(self, name: str) -> None:
        """Gives the rows an array more: the numbers of their targets."""
        numbers = self.mapped()
        for rows in {id(rows): rows for rows, _ in self.needed}.values():
            rows.numbers[name] = numbers
