"""Packing: shuffled documents end to end, cut into rows that are shuffled again, with random access."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_jax.data.rows import EndlessRows, Row, empty_row, place_document, shuffled


class PackedRows(EndlessRows):
    """The endless rows of one source: epoch after epoch, each with its documents in a new order.

    The stream is epoch 0's documents end to end, then epoch 1's, and so on; its row `i` is the tokens `i * T
    .. i * T + T - 1`. So every token of every epoch is in exactly one row, a document that is cut at a row's
    end continues in the next row, and a row may end one epoch and begin the next.

    In that order a long document would fill batch after batch. So training takes the stream's rows in rounds
    of as many rows as an epoch fills, and shuffles the rows within each round.
    """

    def __init__(
        self, tokens: np.ndarray, starts_N: np.ndarray, lengths_N: np.ndarray, *, length: int, **more: Any
    ):
        """The arguments are those of `EndlessRows`."""
        super().__init__(tokens, starts_N, lengths_N, length=length, **more)
        self.epoch_tokens = int(lengths_N.sum())
        self.round_rows = max(1, self.epoch_tokens // max(length, 1))
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def row(self, index: int, *, epochs: int | None = None) -> Row:
        """Row `index` of the stream, arrays [T]; whatever lies after `epochs` epochs is padding."""
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

    def documents_in_rows(self, first: int, stop: int) -> np.ndarray:
        """int64 [stop - first]: the documents in each row of the stream, the one that a row begins inside of
        included.
        """
        T = self.length
        count_N = np.ones(stop - first, np.int64)
        at, end = first * T, stop * T
        while at < end:
            epoch, offset = divmod(at, self.epoch_tokens)
            offsets_N = self.offsets(epoch)
            upto = min(offset + end - at, self.epoch_tokens)
            inside = slice(np.searchsorted(offsets_N, offset), np.searchsorted(offsets_N, upto))
            inside_N = offsets_N[inside] - offset + at
            count_N += np.bincount(inside_N[inside_N % T > 0] // T - first, minlength=stop - first)
            at += upto - offset
        return count_N

    def documents_in_epoch(self) -> np.ndarray:
        """int64: the documents in each row of epoch 0 alone; padding at its end counts as one."""
        T, tokens = self.length, self.epoch_tokens
        offsets_N = self.offsets(0)
        count_N = 1 + np.bincount(offsets_N[offsets_N % T > 0] // T, minlength=-(-tokens // T))
        count_N[-1:] += tokens % T > 0
        return count_N

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
