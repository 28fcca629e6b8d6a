"""The most documents in one device's rows of a batch, over a whole run: fused attention needs the bound.

A device's rows are neighbours in the order of rows, and every device and microbatch has equally many. So the
answer is the largest sum over groups of neighbouring rows. It is computed from the offsets of documents,
without reading a token, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.data.mixture import interleaved
from llm_jax.data.rows import EndlessRows

CHUNK_ROWS = 1 << 18
"""Rows that are counted at once: a bound on memory."""


def largest_group_sum(counts: Iterator[np.ndarray], group: int) -> int:
    """The largest sum over `group` neighbours in a stream of int arrays, each of whole groups; 0 for an empty
    stream.
    """
    return max((int(count_N.reshape(-1, group).sum(1).max()) for count_N in counts), default=0)


def training_row_documents(
    sources: Sequence[EndlessRows], shares: Sequence[float], rows: int, group: int
) -> Iterator[np.ndarray]:
    """The documents in each of the first `rows` training rows (a multiple of `group`): int64 arrays of whole
    groups.

    The rows of `sources` are interleaved by their `shares` (`llm_jax.data.mixture`).
    """
    size = max(1, CHUNK_ROWS // group) * group
    readers = [_SourceCounts(packed) for packed in sources]
    for first in range(0, rows, size):
        count_N = np.zeros(min(size, rows - first), np.int64)
        source_N, _ = interleaved(shares, np.arange(first, first + len(count_N)))
        for source, reader in enumerate(readers):
            mask_N = source_N == source
            count_N[mask_N] = reader.next(int(mask_N.sum()))
        yield count_N


class _SourceCounts:
    """The number of documents in each training row of one source, read in order from row 0."""

    def __init__(self, packed: EndlessRows):
        self.packed, self.next_round = packed, 0
        self.left = np.zeros(0, np.int64)

    def next(self, count: int) -> np.ndarray:
        """int64 [count]: the documents in each of the next `count` rows."""
        arrays, missing = [self.left], count - len(self.left)
        while missing > 0:
            first = self.next_round * self.packed.round_rows
            counts_N = self.packed.documents_in_rows(first, first + self.packed.round_rows)
            arrays.append(counts_N[self.packed.row_order(self.next_round)])
            missing -= self.packed.round_rows
            self.next_round += 1
        joined_N = np.concatenate(arrays)
        self.left = joined_N[count:]
        return joined_N[:count]


def held_out_row_documents(sources: Sequence[EndlessRows], group: int) -> Iterator[np.ndarray]:
    """The documents in each held-out row of all sources and in the empty rows that fill the last group: one
    int64 array.

    Padding counts as a document.
    """
    count_N = np.concatenate([packed.documents_in_epoch() for packed in sources])
    yield np.concatenate([count_N, np.ones(-len(count_N) % group, np.int64)])
