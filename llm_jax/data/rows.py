"""Rows of tokens, endless and with random access: what all ways to fill them with documents share."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Row = dict[str, np.ndarray]
RowKind = Literal["cut", "whole", "pairs", "labelled"]
"""How documents fill rows: end to end and cut at rows' ends ("cut"), or never cut: any ("whole"), pairs of
answers ("pairs"), or answers with labels and mismatched answers ("labelled").
"""
_ROUNDS = 1 << 32
"""Added to a round's number where a seed needs one, so that the orders of rows and of documents are
unrelated.
"""


class EndlessRows:
    """The endless rows of one source, in rounds of about an epoch whose rows are shuffled among each other.

    A subclass says which documents are in which row (`row`), and sets `round_rows` and `epoch_tokens`.
    """

    round_rows: int
    """The rows of a round."""
    epoch_tokens: int
    """Positions of an epoch's rows."""

    def __init__(
        self,
        tokens: np.ndarray,
        starts_N: np.ndarray,
        lengths_N: np.ndarray,
        *,
        length: int,
        seed: int | None,
        weights: np.ndarray | None = None,
        values_N: np.ndarray | None = None,
    ):
        """`tokens` holds all documents; document `n` is `tokens[starts_N[n]:][:lengths_N[n]]`.

        `length` is T, the tokens of a row. `seed` shuffles the documents of each epoch and the rows of each
        round; with None neither is shuffled. `weights`: uint8, of each token; None: every token is trained.
        values_N: float32, a number that goes with each document, for rows that have one.
        """
        self.tokens, self.starts_N, self.lengths_N, self.weights = tokens, starts_N, lengths_N, weights
        self.length, self.seed = length, seed
        self.values_N = values_N
        self.numbers: dict[str, np.ndarray] = {}
        """More arrays of each row by name, from a float32 number for each of `tokens`: that of a position
        is its target's. Rows that cut documents have none."""
        self._round: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return np.iinfo(np.int64).max // max(self.length, 1)

    def __getitem__(self, index: int) -> Row:
        """Row `index` in the order of training: tokens, targets, weights, segments, positions, each [T]."""
        round_index, i = divmod(index, self.round_rows)
        return self.row(round_index * self.round_rows + int(self.row_order(round_index)[i]))

    def empty_row(self) -> Row:
        """A row of padding, with all arrays of a row."""
        return {
            **empty_row(self.length),
            **{name: np.zeros(self.length, np.float32) for name in self.numbers},
        }

    def row(self, index: int, *, epochs: int | None = None) -> Row:
        """Row `index` before any shuffling of rows, arrays [T]; whatever lies after `epochs` epochs is
        padding (segment 0, weight 0).
        """
        raise NotImplementedError

    def documents_in_rows(self, first: int, stop: int) -> np.ndarray:
        """int64 [stop - first]: the documents in each row, before any shuffling of rows; padding counts as
        one.
        """
        raise NotImplementedError

    def documents_in_epoch(self) -> np.ndarray:
        """int64: the documents in each row of epoch 0 alone; padding counts as one."""
        raise NotImplementedError

    def row_order(self, round_index: int) -> np.ndarray:
        """int64 [round_rows]: the rows of a round, as numbers from 0, in the order of training."""
        found = self._round
        if found is None or found[0] != round_index:
            order_N = np.arange(self.round_rows)
            if self.seed is not None:
                order_N = shuffled(self.round_rows, self.seed, _ROUNDS + round_index)
            self._round = found = round_index, order_N
        return found[1]  # not the attribute: another thread may have replaced it


def empty_row(length: int) -> Row:
    """A row of padding, arrays [length] of zeros: int32, and float32 weights."""
    row: Row = {key: np.zeros(length, np.int32) for key in ("tokens", "targets", "segments", "positions")}
    row["weights"] = np.zeros(length, np.float32)
    return row


def place_document(row: Row, at: int, segment: int, tokens: np.ndarray, weights: np.ndarray | None) -> int:
    """Writes a document's tokens into a row from position `at`; returns how many.

    `tokens` has one token more than fits if the document continues in the next row: it is the last target.
    `weights`: of each token (as a target); None: 1.
    """
    take = min(len(tokens), len(row["tokens"]) - at)
    targets = max(0, min(len(tokens) - 1, take))
    row["tokens"][at : at + take] = tokens[:take]
    row["targets"][at : at + targets] = tokens[1 : 1 + targets]
    row["weights"][at : at + targets] = 1 if weights is None else weights[1 : 1 + targets]
    row["segments"][at : at + take] = segment
    row["positions"][at : at + take] = np.arange(take)
    return take


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(count)`, int64, that depends on (seed, epoch) alone, not on NumPy's version or
    the machine.

    Numbers are sorted by a SplitMix64 hash of (seed, epoch, index); Steele et al., OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.uint64(seed % 2**64)) + np.uint64(epoch))
        return np.argsort(_mix(key + np.arange(count, dtype=np.uint64)), kind="stable")


def _mix(x: Any) -> Any:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
