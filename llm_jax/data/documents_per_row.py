"""The most documents in one device's rows of a batch, over a whole run: fused attention needs the bound.

A device's rows are neighbours in the order of rows, and every device and microbatch has equally many. So the
answer is the largest sum over groups of neighbouring rows. It is computed from the offsets of documents,
without reading a token, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.data.mixture import interleaved
from llm_jax.data.packing import PackedRows
from llm_jax.data.whole_rows import WholeRows

CHUNK_ROWS = 1 << 18
"""Rows that are counted at once: a bound on memory."""


def largest_group_sum(counts: Iterator[np.ndarray], group: int) -> int:
    """The largest sum over `group` neighbours in a stream of int arrays, each of whole groups; 0 for an empty
    stream.
    """
    return max((int(count_N.reshape(-1, group).sum(1).max()) for count_N in counts), default=0)


def training_row_documents(
    sources: Sequence[PackedRows | WholeRows], shares: Sequence[float], rows: int, group: int
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

    def __init__(self, packed: PackedRows | WholeRows):
        self.packed, self.next_round = packed, 0
        self.left = np.zeros(0, np.int64)

    def next(self, count: int) -> np.ndarray:
        """int64 [count]: the documents in each of the next `count` rows."""
        arrays, missing = [self.left], count - len(self.left)
        while missing > 0:
            first = self.next_round * self.packed.round_rows
            counts_N = documents_in_rows(self.packed, first, first + self.packed.round_rows)
            arrays.append(counts_N[self.packed.row_order(self.next_round)])
            missing -= self.packed.round_rows
            self.next_round += 1
        joined_N = np.concatenate(arrays)
        self.left = joined_N[count:]
        return joined_N[:count]


def documents_in_rows(packed: PackedRows | WholeRows, first: int, stop: int) -> np.ndarray:
    """int64 [stop - first]: the documents in each row of the stream, the one that a row begins inside of
    included.
    """
    if isinstance(packed, WholeRows):
        return packed.documents_in_rows(first, stop)
    T = packed.length
    count_N = np.ones(stop - first, np.int64)
    at, end = first * T, stop * T
    while at < end:
        epoch, offset = divmod(at, packed.epoch_tokens)
        offsets_N = packed.offsets(epoch)
        upto = min(offset + end - at, packed.epoch_tokens)
        inside_N = (
            offsets_N[np.searchsorted(offsets_N, offset) : np.searchsorted(offsets_N, upto)] - offset + at
        )
        count_N += np.bincount(inside_N[inside_N % T > 0] // T - first, minlength=stop - first)
        at += upto - offset
    return count_N


def held_out_row_documents(sources: Sequence[PackedRows | WholeRows], group: int) -> Iterator[np.ndarray]:
    """The documents in each held-out row of all sources and in the empty rows that fill the last group: one
    int64 array.

    Padding counts as a document.
    """
    count_N = np.concatenate([_single_epoch(packed) for packed in sources])
    yield np.concatenate([count_N, np.ones(-len(count_N) % group, np.int64)])


def _single_epoch(packed: PackedRows | WholeRows) -> np.ndarray:
    """int64: the documents in each row of epoch 0 alone; padding at its end counts as one."""
    if isinstance(packed, WholeRows):
        return packed.documents_in_rows(0, packed.round_rows)
    T, tokens = packed.length, packed.epoch_tokens
    offsets_N = packed.offsets(0)
    count_N = 1 + np.bincount(offsets_N[offsets_N % T > 0] // T, minlength=-(-tokens // T))
    count_N[-1:] += tokens % T > 0
    return count_N
