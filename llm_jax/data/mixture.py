"""Which source of a mixture each training row comes from, by arithmetic on the row's number alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def interleaved(shares: Sequence[float], rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source of each row of a mixture, and which row of that source it is; both int64 [N].

    `shares` are the sources' parts of the whole, `rows_N` any rows of the mixture, counted from 0. Each
    source's rows are taken in order, none is left out or taken twice, and after n rows a source has given its
    share of n, to within one row. The rule is that of Grain 0.2's `MapDataset.mix`: shares become whole
    proportions, the smallest 100; the first source takes a row wherever its share of all rows so far grows by
    one, and the others share the rest.
    """
    scale = 100 / min(shares)
    proportions = [int(share * scale) for share in shares]
    total = sum(proportions)
    # The pattern repeats after `total` rows, so products stay below total². Where that exceeds int64, numbers
    # are Python's integers.
    number_N = np.asarray(rows_N, np.int64 if total < 2**31 else object)
    period_N, before_N = number_N // total, number_N % total
    source_N, row_N = (np.zeros(len(before_N), np.int64) for _ in range(2))
    free_N, after_N, remaining = np.ones(len(before_N), bool), before_N + 1, total
    for source, proportion in enumerate(proportions):
        others_before_N, others_after_N = (
            n * (remaining - proportion) // remaining for n in (before_N, after_N)
        )
        count_N = after_N - others_after_N
        taken_N = free_N & (before_N - others_before_N != count_N).astype(bool)
        source_N[taken_N] = source
        row_N[taken_N] = (period_N * proportion + count_N - 1)[taken_N]
        free_N &= ~taken_N
        remaining, before_N, after_N = remaining - proportion, others_before_N, others_after_N
    return source_N, row_N
