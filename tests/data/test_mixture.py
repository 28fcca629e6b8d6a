"""The source of each row of a mixture, compared with the rule in Python's integers and with Grain 0.2.18."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from llm_jax.data import batch_sha
from llm_jax.data.mixture import interleaved

from .conftest import documents, write_jsonl


def reference(shares: tuple[float, ...], row: int) -> tuple[int, int]:
    """(source, row of the source) of one row of a mixture, in Python's own integers: whole proportions,
    smallest 100.
    """
    proportions = [int(share * (100 / min(shares))) for share in shares]
    before, after, remaining = row, row + 1, sum(proportions)
    for source, proportion in enumerate(proportions):
        others_before, others_after = (n * (remaining - proportion) // remaining for n in (before, after))
        if before - others_before != after - others_after:
            return source, after - others_after - 1
        before, after, remaining = others_before, others_after, remaining - proportion
    raise AssertionError("no source takes the row")


# sha256 of the (source, row) pairs that grain.MapDataset.mix of Grain 0.2.18 gave for rows 12345.. and
# 10^12..
GRAIN = {
    (0.5, 0.5): "73b46d69054ad267",
    (0.9, 0.1): "bdd1b8d25caf3c81",
    (0.07, 0.61, 0.32): "6f2f2fd4bd3265bd",
    (0.001, 0.999): "7df15dc6aabd46a3",
    (1e-9, 1 - 1e-9): "567ea38810719393",
}


@pytest.mark.parametrize("shares", GRAIN)
def test_rows_of_a_mixture_come_from_the_sources_that_grain_takes_them_from(shares):
    rows_N = np.concatenate([np.arange(12345, 12345 + 700), np.arange(10**12, 10**12 + 20)])
    source_N, row_N = interleaved(shares, rows_N)
    pairs = list(zip(source_N.tolist(), row_N.tolist(), strict=True))
    assert pairs == [reference(shares, row) for row in rows_N.tolist()]
    assert hashlib.sha256(str(pairs).encode()).hexdigest()[:16] == GRAIN[shares]


def test_batches_of_a_mixture_are_those_that_grain_mixed(make, tmp_path, monkeypatch):
    """The sha was recorded when `grain.MapDataset.mix` mixed the rows."""
    monkeypatch.chdir(tmp_path)  # names of sources are relative, and don't matter to a batch
    texts = {"a.jsonl": documents(400), "b.jsonl": documents(300, seed=5), "c.jsonl": documents(100, seed=6)}
    for name, records in texts.items():
        write_jsonl(tmp_path / name, records)
    mixture = dict(zip(texts, (3.0, 1.0, 0.35), strict=True))
    corpus = make("unused", mixture=mixture, sequence_length=64, batch_size=16)
    shas = [batch_sha(corpus.batch(step)) for step in [*range(60), 1000, 99_999, 10**7]]
    shas.append(batch_sha(corpus.batch(7, range(4, 9))))
    digest = hashlib.sha256("".join(shas).encode()).hexdigest()
    assert digest == "a803eb7147310f8db5a84294decb1e0bcaca4cf32da2cc923036f7ac0605ecce"
