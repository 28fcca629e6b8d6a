"""How many documents the rows of one device hold at most, over a whole run: what fused attention must have room for.

A device's rows of one batch are neighbours: rows are cut into groups of equal size, for microbatches and devices alike.
So the answer is a maximum over groups of rows, found from the lengths of the documents without reading a token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llm_jax.data.packing import PackedRows

CHUNK_ROWS = 1 << 18
"""Rows that are counted at once: a bound on memory."""


def most_in_groups(counts: Iterator[np.ndarray], group: int) -> int:
    """The largest sum over `group` neighbours of a stream of counts; every array in it is a multiple of `group` long."""
    return max((int(count.reshape(-1, group).sum(1).max()) for count in counts if len(count)), default=0)


def chunks(rows: int, group: int) -> Iterator[np.ndarray]:
    """The numbers 0 .. rows - 1 in arrays that are multiples of `group` long (as `rows` must be)."""
    size = max(1, CHUNK_ROWS // group) * group
    for first in range(0, rows, size):
        yield np.arange(first, min(first + size, rows))


def documents_in_rows(packed: PackedRows, first: int, stop: int) -> np.ndarray:
    """int64 [stop - first]: the documents in each of the rows `first` .. `stop - 1`: one, and one for each that begins inside."""
    T = packed.length
    counts = np.ones(stop - first, np.int64)
    at, end = first * T, stop * T
    while at < end:
        epoch, offset = divmod(at, packed.epoch_tokens)
        begin = at - offset
        upto = min(end - begin, packed.epoch_tokens)
        begins_N = packed.begins(epoch)
        inside = begin + begins_N[np.searchsorted(begins_N, offset) : np.searchsorted(begins_N, upto)]
        counts += np.bincount(inside[inside % T > 0] // T - first, minlength=stop - first)
        at = begin + upto
    return counts


def documents_in_held_out(packed: PackedRows) -> np.ndarray:
    """The same for the rows of the only epoch of a held-out set; the padding that ends the last one counts too."""
    T, tokens = packed.length, packed.epoch_tokens
    begins_N = packed.begins(0)
    counts = 1 + np.bincount(begins_N[begins_N % T > 0] // T, minlength=-(-tokens // T))
    counts[-1:] += tokens % T > 0
    return counts


def mixed(rows_N: np.ndarray, proportions: list[int]) -> list[np.ndarray]:
    """Which rows of each part of a mixture are in these (increasing) rows: a mask of them a part; Grain's interleaving."""
    remaining, before, after = sum(proportions), rows_N.astype(np.int64), rows_N.astype(np.int64) + 1
    left = np.ones(len(rows_N), bool)
    masks = []
    for p in proportions:
        next_before, next_after = (k * (remaining - p) // remaining for k in (before, after))
        mask = left & ((before - next_before) != (after - next_after))
        masks.append(mask)
        left &= ~mask
        remaining, before, after = remaining - p, next_before, next_after
    return masks
