"""Rows of whole examples: none is cut, and the rest of a row is padding."""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data.rows import EndlessRows, Row, empty_row, place_document, shuffled


class WholeRows(EndlessRows):
    """The endless rows of one source, each filled with as many whole examples as fit.

    Which examples share a row is a plan that depends on their lengths and the seed alone: each example of a
    shuffled order goes into the fullest row that still has room for it (best fit). Every epoch has the same
    rows, in an order of its own. So every example is seen once an epoch, in one piece.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        starts_N: np.ndarray,
        lengths_N: np.ndarray,
        *,
        length: int,
        seed: int | None,
        **more: Any,
    ):
        """The arguments are those of `EndlessRows`.

        Raises UserError for an example that is longer than a row.
        """
        if len(lengths_N) and lengths_N.max() > length:
            longest = int(np.argmax(lengths_N))
            raise UserError(
                f"train.sequence_length={length}: example {longest} has {int(lengths_N[longest]):,} "
                "tokens, and examples aren't cut. "
                "Use longer sequences, or leave out long examples."
            )
        super().__init__(tokens, starts_N, lengths_N, length=length, seed=seed, **more)
        self.plan = best_fit(lengths_N, length, seed)
        """For each row of an epoch, the indices of its examples."""
        self.round_rows = max(1, len(self.plan))
        self.epoch_tokens = self.round_rows * length

    def row(self, index: int, *, epochs: int | None = None) -> Row:
        """Row `index` in the order of the plan, arrays [T]; a row after `epochs` epochs is padding."""
        row, filled = empty_row(self.length), 0
        if not self.plan or (epochs is not None and index >= epochs * self.round_rows):
            return row
        for segment, example in enumerate(self.plan[index % self.round_rows], 1):
            begin, end = int(self.starts_N[example]), int(self.starts_N[example] + self.lengths_N[example])
            weights = None if self.weights is None else self.weights[begin:end]
            filled += place_document(row, filled, segment, self.tokens[begin:end], weights)
        return row

    def documents_in_rows(self, first: int, stop: int) -> np.ndarray:
        """int64 [stop - first]: the examples in each row of the plan, its padding counted as one."""
        counts_N = np.array([len(examples) + 1 for examples in self.plan] or [1])
        return counts_N[np.arange(first, stop) % self.round_rows]

    def documents_in_epoch(self) -> np.ndarray:
        """int64: the examples in each row of an epoch, its padding counted as one."""
        return self.documents_in_rows(0, self.round_rows)


def best_fit(lengths_N: np.ndarray, length: int, seed: int | None) -> list[list[int]]:
    """Examples in rows of at most `length` tokens: each goes into the fullest row that has room, in an order
    shuffled by the seed.
    """
    order_N = np.arange(len(lengths_N)) if seed is None else shuffled(len(lengths_N), seed, 0)
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (tokens that are free, row), sorted
    for example in order_N.tolist():
        size = int(lengths_N[example])
        i = bisect.bisect_left(open_rows, (size, -1))
        free, row = open_rows.pop(i) if i < len(open_rows) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(example)
        if free > size:
            bisect.insort(open_rows, (free - size, row))
    return rows
