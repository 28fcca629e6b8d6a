"""How many documents one device's rows of a batch hold at most, over a whole run: what fused attention must have room for.

A device's rows are neighbours in the order of rows, and every device and microbatch has as many. So the answer is the
largest sum over groups of neighbours. It is found from where documents begin, without reading a token, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.data.packing import PackedRows

CHUNK_ROWS = 1 << 18
"""Rows that are counted at once: a bound on memory."""


def most_in_groups(counts: Iterator[np.ndarray], group: int) -> int:
    """The largest sum over `group` neighbours in a stream of arrays, whole groups each."""
    return max((int(count_N.reshape(-1, group).sum(1).max()) for count_N in counts), default=0)


def documents_in_run(parts: Sequence[PackedRows], shares: Sequence[float], rows: int, group: int) -> Iterator[np.ndarray]:
    """The documents in each of the first `rows` training rows (a multiple of `group`), in arrays of whole groups.

    `shares` mixes the parts row by row, as `grain.MapDataset.mix` does.
    """
    size = max(1, CHUNK_ROWS // group) * group
    readers = [_Counts(packed) for packed in parts]
    for first in range(0, rows, size):
        count_N = np.zeros(min(size, rows - first), np.int64)
        for p, mask_N in enumerate(interleaved(shares, first, len(count_N)) if len(parts) > 1 else [np.ones(len(count_N), bool)]):
            count_N[mask_N] = readers[p].take(int(mask_N.sum()))
        yield count_N


class _Counts:
    """The documents in the rows of one source, in the order of training, from the first row on."""

    def __init__(self, packed: PackedRows):
        self.packed, self.next_round = packed, 0
        self.left = np.zeros(0, np.int64)

    def take(self, count: int) -> np.ndarray:
        """int64 [count], of the next rows."""
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


def documents_in_rows(packed: PackedRows, first: int, stop: int) -> np.ndarray:
    """int64 [stop - first]: the documents in each row of the stream: the one it begins with, and each that begins inside."""
    T = packed.length
    count_N = np.ones(stop - first, np.int64)
    at, end = first * T, stop * T
    while at < end:
        epoch, offset = divmod(at, packed.epoch_tokens)
        begins_N = packed.begins(epoch)
        upto = min(offset + end - at, packed.epoch_tokens)
        inside_N = begins_N[np.searchsorted(begins_N, offset) : np.searchsorted(begins_N, upto)] - offset + at
        count_N += np.bincount(inside_N[inside_N % T > 0] // T - first, minlength=stop - first)
        at += upto - offset
    return count_N


def documents_in_held_out(parts: Sequence[PackedRows], group: int) -> Iterator[np.ndarray]:
    """The same for the held-out rows of all parts and the empty rows that fill the last group; padding counts as a document."""
    count_N = np.concatenate([_single_epoch(packed) for packed in parts])
    yield np.concatenate([count_N, np.ones(-len(count_N) % group, np.int64)])


def _single_epoch(packed: PackedRows) -> np.ndarray:
    T, tokens = packed.length, packed.epoch_tokens
    begins_N = packed.begins(0)
    count_N = 1 + np.bincount(begins_N[begins_N % T > 0] // T, minlength=-(-tokens // T))
    count_N[-1:] += tokens % T > 0
    return count_N


def interleaved(shares: Sequence[float], first: int, count: int) -> list[np.ndarray]:
    """bool [count] for each part of a mixture: which of the rows from `first` on are its own. The i-th row of a part is its row i.

    Grain's rule for whole proportions (`grain`, transformations/mix.py), for many rows at once, and compared with Grain
    at some of them, lest another version has another rule.
    """
    scale = 100 / min(shares)
    proportions = [int(share * scale) for share in shares]
    before_N = np.arange(first, first + count)
    after_N, remaining = before_N + 1, sum(proportions)
    free_N, masks = np.ones(count, bool), []
    for proportion in proportions:
        left_N, left_after_N = (n * (remaining - proportion) // remaining for n in (before_N, after_N))
        mask_N = free_N & (before_N - left_N != after_N - left_after_N)
        masks.append(mask_N)
        free_N &= ~mask_N
        remaining, before_N, after_N = remaining - proportion, left_N, left_after_N
    _check_with_grain(shares, masks, first)
    return masks


def _check_with_grain(shares: Sequence[float], masks: list[np.ndarray], first: int, checked: int = 64) -> None:
    import grain

    parts = grain.MapDataset.mix([grain.MapDataset.source(_Part(p)) for p in range(len(shares))], list(shares))
    for i in np.linspace(0, len(masks[0]) - 1, checked).astype(int).tolist():
        if not masks[parts[first + i]][i]:
            raise RuntimeError(f"Grain {grain.__version__} mixes row {first + i} in another way than is computed here")


class _Part:
    """A source whose every record is its own number."""

    def __init__(self, number: int):
        self.number = number

    def __len__(self) -> int:
        return np.iinfo(np.int64).max

    def __getitem__(self, index: int) -> int:
        return self.number
