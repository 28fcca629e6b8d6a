"""Rows of whole examples: none is cut, and the rest of a row is padding."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data.rows import EndlessRows, Row, place_document, shuffled


class WholeRows(EndlessRows):
    """The endless rows of one source, each filled with as many whole examples as fit.

    Which examples share a row is a plan that depends on their lengths and the seed alone: each example of a
    shuffled order goes into the fullest row that still has room for it (best fit). Every epoch has the same
    rows, in an order of its own. So every example is seen once an epoch, in one piece.
    """

    documents_per_example = 1
    """An example is so many documents, one after the other: they share a row."""

    def __init__(
        self,
        tokens: np.ndarray,
        starts_N: np.ndarray,
        lengths_N: np.ndarray,
        *,
        length: int,
        seed: int | None,
        plan: list[list[int]] | None = None,
        **more: Any,
    ):
        """The arguments are those of `EndlessRows`. plan: for each row its examples, where it isn't to be
        made.

        Raises UserError for an example that is longer than a row.
        """
        super().__init__(tokens, starts_N, lengths_N, length=length, seed=seed, **more)
        sizes_N = self.example_sizes()
        if len(sizes_N) and sizes_N.max() > length:
            longest = int(np.argmax(sizes_N))
            raise UserError(
                f"train.sequence_length={length}: example {longest} has {int(sizes_N[longest]):,} "
                "tokens, and examples aren't cut. "
                "Use longer sequences, or leave out long examples."
            )
        self.plan = best_fit(sizes_N, length, seed) if plan is None else plan
        """For each row of an epoch, the indices of its examples."""
        self.round_rows = max(1, len(self.plan))
        self.epoch_tokens = self.round_rows * length

    def example_sizes(self) -> np.ndarray:
        """int64 [examples]: the positions that each example takes of a row."""
        return self.lengths_N.reshape(-1, self.documents_per_example).sum(1)

    def row(self, index: int, *, epochs: int | None = None) -> Row:
        """Row `index` in the order of the plan, arrays [T]; a row after `epochs` epochs is padding."""
        row = self.empty_row()
        if not self.plan or (epochs is not None and index >= epochs * self.round_rows):
            return row
        for segment, (filled, begin, end) in enumerate(self.places(index), 1):
            weights = None if self.weights is None else self.weights[begin:end]
            place_document(row, filled, segment, self.tokens[begin:end], weights)
            for name, values in self.numbers.items():
                row[name][filled : filled + end - begin - 1] = values[begin + 1 : end]
        return row

    def places(self, index: int) -> Iterator[tuple[int, int, int]]:
        """(position in the row, begin, end) of the documents of row `index`: `tokens[begin:end]` are
        there."""
        filled, per = 0, self.documents_per_example
        for example in self.plan[index % self.round_rows]:
            for document in range(example * per, (example + 1) * per):
                begin = int(self.starts_N[document])
                end = begin + int(self.lengths_N[document])
                yield filled, begin, end
                filled += end - begin

    def collect(self, index: int, values_T: np.ndarray, numbers: np.ndarray) -> None:
        """The inverse of `row` for one of its `numbers`: the values of row `index`, of targets, go to their
        tokens in `numbers`."""
        for filled, begin, end in self.places(index):
            numbers[begin + 1 : end] = values_T[filled : filled + end - begin - 1]

    def documents_in_rows(self, first: int, stop: int) -> np.ndarray:
        """int64 [stop - first]: the documents in each row of the plan, its padding counted as one."""
        counts_N = np.array([len(examples) * self.documents_per_example + 1 for examples in self.plan] or [1])
        return counts_N[np.arange(first, stop) % self.round_rows]

    def documents_in_epoch(self) -> np.ndarray:
        """int64: the documents in each row of an epoch, its padding counted as one."""
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
