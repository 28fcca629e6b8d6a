"""Packing: shuffled documents end to end, cut into rows that are shuffled again, with random access."""

from __future__ import annotations

from typing import Any

import numpy as np

Row = dict[str, np.ndarray]
_ROUNDS = 1 << 32
"""Added to a round's number where a seed needs one, so that the orders of rows and of documents are
unrelated.
"""


class PackedRows:
    """The endless rows of one source: epoch after epoch, each with its documents in a new order.

    The stream is epoch 0's documents end to end, then epoch 1's, and so on; its row `i` is the tokens `i * T
    .. i * T + T - 1`. So every token of every epoch is in exactly one row, a document that is cut at a row's
    end continues in the next row, and a row may end one epoch and begin the next.

    In that order a long document would fill batch after batch. So training takes the stream's rows in rounds
    of as many rows as an epoch fills, and shuffles the rows within each round.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        starts_N: np.ndarray,
        lengths_N: np.ndarray,
        *,
        length: int,
        seed: int | None,
        weights: np.ndarray | None = None,
    ):
        """`tokens` holds all documents; document `n` is `tokens[starts_N[n]:][:lengths_N[n]]`.

        `length` is T, the tokens of a row. `seed` shuffles the documents of each epoch and the rows of each
        round; with None neither is shuffled. `weights`: uint8, of each token; None: every token is trained.
        """
        self.tokens, self.starts_N, self.lengths_N, self.weights = tokens, starts_N, lengths_N, weights
        self.length, self.seed = length, seed
        self.epoch_tokens = int(lengths_N.sum())
        self.round_rows = max(1, self.epoch_tokens // max(length, 1))
        """The rows of a round, which are shuffled among each other."""
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._round: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return np.iinfo(np.int64).max // max(self.length, 1)

    def __getitem__(self, index: int) -> Row:
        """Row `index` in the order of training: tokens, targets, weights, segments, positions, each [T]."""
        round_index, i = divmod(index, self.round_rows)
        return self.row(round_index * self.round_rows + int(self.row_order(round_index)[i]))

    def row(self, index: int, *, epochs: int | None = None) -> Row:
        """Row `index` of the stream, arrays [T]; whatever lies after `epochs` epochs is padding (segment 0,
        weight 0).
        """
        row = empty_row(self.length)
        filled, segment = 0, 0
        epoch, offset = divmod(index * self.length, self.epoch_tokens)
        while filled < self.length and (epochs is None or epoch < epochs):
            order_N, offsets_N = self._epoch(epoch)
            k = int(np.searchsorted(offsets_N, offset, side="right")) - 1
            while filled < self.length and k < len(order_N):
                document = order_N[k]
                skipped = offset - int(offsets_N[k])
                begin = int(self.starts_N[document]) + skipped
                remaining = int(self.lengths_N[document]) - skipped
                segment += 1
                end = begin + min(remaining, self.length - filled + 1)
                weights = None if self.weights is None else self.weights[begin:end]
                take = place_document(row, filled, segment, self.tokens[begin:end], weights)
                filled, offset, k = filled + take, offset + take, k + 1
            epoch, offset = epoch + 1, 0
        return row

    def row_order(self, round_index: int) -> np.ndarray:
        """int64 [round_rows]: the rows of a round, as numbers from 0, in the order of training."""
        found = self._round
        if found is None or found[0] != round_index:
            order_N = np.arange(self.round_rows)
            if self.seed is not None:
                order_N = shuffled(self.round_rows, self.seed, _ROUNDS + round_index)
            self._round = found = round_index, order_N
        return found[1]  # not the attribute: another thread may have replaced it

    def offsets(self, epoch: int) -> np.ndarray:
        """int64 [N], increasing: the offset of each document in the stream of an epoch, in tokens."""
        return self._epoch(epoch)[1]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the documents in an epoch and their offsets in it, in tokens; both int64 [N]."""
        found = self._orders.get(epoch)
        if found is None:
            order_N = np.arange(len(self.lengths_N))
            if self.seed is not None:
                order_N = shuffled(len(self.lengths_N), self.seed, epoch)
            lengths_N = self.lengths_N[order_N]
            found = order_N, np.cumsum(lengths_N) - lengths_N
            # A row needs two epochs at most; a reader that jumps between epochs computes an order again.
            self._orders = dict([*list(self._orders.items())[-1:], (epoch, found)])
        return found


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
