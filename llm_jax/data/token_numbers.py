"""A number for each token of documents, such as the log-probability that a model gives to it: computed
once, and kept in the cache beside the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_jax.data import cache
from llm_jax.data.rows import Row
from llm_jax.data.whole_rows import WholeRows

_FILE = "numbers"
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class TokenNumbers:
    """The numbers of all documents of some rows, in one file."""

    folder: Path
    """Where they are in the cache."""
    rows: Sequence[WholeRows]
    """Rows of the same tokens: together they have all documents, each once an epoch."""

    @property
    def exist(self) -> bool:
        """Whether they were computed before."""
        return self.folder.exists()

    def compute(self, score: Callable[[Batch], np.ndarray], batch_size: int) -> np.ndarray:
        """float32, a number for each token. score: gives a number, [B, T], for each target of a batch."""
        numbers = np.zeros(len(self.rows[0].tokens), np.float32)
        for places, batch in self.batches(batch_size):
            values_BT = np.asarray(score(batch), np.float32)
            for (rows, index), values_T in zip(places, values_BT, strict=False):
                rows.collect(index, values_T, numbers)
        return numbers

    def batches(self, batch_size: int) -> Iterator[tuple[list[tuple[WholeRows, int]], Batch]]:
        """(the rows, the batch) until every document was there; the last batch is filled up with padding."""
        all_rows = [(rows, index) for rows in self.rows for index in range(len(rows.plan))]
        for first in range(0, len(all_rows), batch_size):
            places = all_rows[first : first + batch_size]
            made: list[Row] = [rows.row(index) for rows, index in places]
            made += [self.rows[0].empty_row()] * (batch_size - len(made))
            yield places, {name: np.stack([row[name] for row in made]) for name in made[0]}

    def save(self, numbers: np.ndarray) -> None:
        """Writes them into the cache. Raises UserError where there is no room."""
        with cache.writable(self.folder.parents[1]):
            cache.build_once(self.folder, lambda folder: numbers.astype(np.float32).tofile(folder / _FILE))

    def attach(self, name: str) -> None:
        """Gives each of the rows an array more: the numbers of its targets."""
        file = self.folder / _FILE
        numbers = np.memmap(file, np.float32, "r") if file.stat().st_size else np.zeros(0, np.float32)
        for rows in self.rows:
            rows.numbers[name] = numbers
