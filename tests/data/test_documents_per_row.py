"""The room that fused attention needs: computed from document offsets, and counted in every batch."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.data import documents_per_row
from llm_jax.data.packing import PackedRows

from .conftest import documents, write_jsonl


def runs(segments_BT: np.ndarray) -> np.ndarray:
    """Runs of equal ids in each row: what the kernel sees as a document."""
    return 1 + (np.diff(segments_BT, axis=1) != 0).sum(1)


def brute_force(corpus, steps: int, group: int, held_out_group: int) -> int:
    """`Corpus.max_documents_per_row` by counting the documents of every batch."""
    sums = [runs(corpus.batch(s)["segments"]).reshape(-1, group).sum(1).max() for s in range(steps)]
    held_out = [
        runs(b["segments"]).reshape(-1, held_out_group).sum(1).max()
        for b in corpus.held_out_batches(corpus.batch_size)
    ]
    return max(-(-max(sums) // group), -(-max(held_out) // held_out_group))


@pytest.mark.parametrize(("group", "held_out_group"), [(1, 1), (2, 4), (8, 8)])
@pytest.mark.parametrize(
    "length", [16, 100, 2000]
)  # rows shorter than most documents, longer, and longer than an epoch's share
def test_room_is_exactly_what_the_batches_need(make, small, length, group, held_out_group):
    corpus = make(small, sequence_length=length)
    computed = corpus.max_documents_per_row(steps=30, group=group, held_out_group=held_out_group)
    assert computed == brute_force(corpus, 30, group, held_out_group)


def test_room_for_a_mixture_is_exactly_what_the_batches_need(make, small, tmp_path):
    short = write_jsonl(tmp_path / "short.jsonl", [f"{i} a" for i in range(300)])
    other = write_jsonl(tmp_path / "other.jsonl", documents(40, seed=5))
    for weights in ((3.0, 1.0, 0.35), (0.2, 5.0, 1.0)):
        mixture = dict(zip(map(str, (small, short, other)), weights, strict=True))
        corpus = make("unused", mixture=mixture, sequence_length=100)
        assert corpus.max_documents_per_row(steps=40, group=2, held_out_group=4) == brute_force(
            corpus, 40, 2, 4
        )


@pytest.mark.parametrize("chunk", [1, 10, 1 << 18])  # rows that are counted at once
def test_every_row_of_a_mixture_is_counted_in_its_place(make, small, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(documents_per_row, "CHUNK_ROWS", chunk)
    other = write_jsonl(tmp_path / "other.jsonl", documents(40, seed=5))
    corpus = make("unused", mixture={str(small): 1.0, str(other): 0.3}, sequence_length=100)
    parts, shares = [part.train for part in corpus._parts], [part.share for part in corpus._parts]
    counts = np.concatenate(list(documents_per_row.training_row_documents(parts, shares, 80, 4)))
    assert counts.tolist() == np.concatenate([runs(corpus.batch(s)["segments"]) for s in range(10)]).tolist()


def test_an_epoch_shorter_than_a_row_is_counted_as_often_as_it_is_in_it():
    packed = PackedRows(np.arange(1, 11), np.array([0, 4]), np.array([4, 6]), length=32, seed=0)
    expected = [int(packed.row(i)["segments"].max()) for i in range(2, 9)]
    assert packed.documents_in_rows(2, 9).tolist() == expected
