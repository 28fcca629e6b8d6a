"""Packing against a naive reference that builds the whole stream and walks over it."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.data.packing import PackedRows, shuffled


def naive_rows(
    documents: list[list[int]], orders: list[np.ndarray], length: int
) -> list[dict[str, list[float]]]:
    """The rows of a stream, one token at a time."""
    stream = []  # (document's serial number, token, next token or None)
    serial = 0
    for order in orders:
        for d in order:
            document = documents[d]
            stream += [(serial, t, n) for t, n in zip(document, [*document[1:], None], strict=True)]
            serial += 1
    rows = []
    for start in range(0, len(stream) - length + 1, length):
        row: dict[str, list[float]] = {
            key: [] for key in ("tokens", "targets", "weights", "segments", "positions")
        }
        previous, segment, position = None, 0, 0
        for owner, token, target in stream[start : start + length]:
            if owner != previous:
                previous, segment, position = owner, segment + 1, 0
            row["tokens"].append(token)
            row["targets"].append(target or 0)
            row["weights"].append(float(target is not None))
            row["segments"].append(segment)
            row["positions"].append(position)
            position += 1
        rows.append(row)
    return rows


@pytest.mark.parametrize("length", [1, 5, 16, 64])
@pytest.mark.parametrize("seed", [None, 0, 12345678901])
def test_rows_agree_with_a_naive_reference_over_three_epochs(length, seed):
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 1000, size=n).tolist() for n in rng.integers(2, 60, size=25)]
    lengths_N = np.array([len(d) for d in documents])
    packed = PackedRows(
        np.concatenate(documents).astype(np.uint16),
        np.cumsum(lengths_N) - lengths_N,
        lengths_N,
        length=length,
        seed=seed,
    )
    orders = [np.arange(25) if seed is None else shuffled(25, seed, epoch) for epoch in range(3)]
    for index, expected in enumerate(naive_rows(documents, orders, length)):
        row = packed.row(index)
        for key in expected:
            assert row[key].tolist() == expected[key], (index, key)


def test_training_takes_each_row_of_the_stream_once_a_round_and_neighbours_apart():
    packed = PackedRows(
        np.arange(1, 6001, dtype=np.uint16), np.array([0, 5000]), np.array([5000, 1000]), length=10, seed=3
    )
    assert packed.round_rows == 600
    rounds = [[packed[r * 600 + i]["tokens"].tolist() for i in range(600)] for r in range(2)]
    for r, rows in enumerate(rounds):
        assert sorted(rows) == sorted(packed.row(r * 600 + i)["tokens"].tolist() for i in range(600))
    following = sum(
        second[0] == first[-1] + 1 for first, second in zip(rounds[0], rounds[0][1:], strict=False)
    )
    assert following < 10  # in the order of the stream it would be nearly all; by chance, one
    assert rounds[0] != rounds[1]


def test_a_documents_last_position_in_a_row_still_has_its_target():
    packed = PackedRows(
        np.arange(10, 20, dtype=np.uint16), np.array([0]), np.array([10]), length=4, seed=None
    )
    assert packed.row(0)["targets"].tolist() == [11, 12, 13, 14]
    assert packed.row(2)["targets"].tolist() == [
        19,
        0,
        11,
        12,
    ]  # 18 -> 19, the end, then the next epoch's 10 and 11
    assert packed.row(2)["segments"].tolist() == [1, 1, 2, 2]


def test_the_end_of_a_single_epoch_is_padding():
    packed = PackedRows(
        np.arange(10, 20, dtype=np.uint16), np.array([0]), np.array([10]), length=4, seed=None
    )
    row = packed.row(2, epochs=1)
    assert row["segments"].tolist() == [1, 1, 0, 0]
    assert row["weights"].tolist() == [1, 0, 0, 0]
    assert row["tokens"].tolist() == [18, 19, 0, 0]


def test_each_epoch_is_a_new_permutation_that_never_changes():
    orders = [shuffled(1000, seed=0, epoch=e) for e in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(orders[0], orders[1])
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < 0.1
    assert shuffled(8, seed=0, epoch=0).tolist() == [4, 0, 1, 7, 6, 2, 5, 3]  # on every machine and NumPy


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (3, 1), (12345678901, 2), (-1, 7)])
def test_the_order_of_an_epoch_is_that_of_a_reference_in_whole_numbers(seed, epoch):
    """SplitMix64 in Python's own integers; 0xE220A8397B1DCDAF is its published first output from state 0."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF
    key = mix((mix(seed % 2**64) + epoch) % 2**64)
    assert shuffled(500, seed, epoch).tolist() == sorted(range(500), key=lambda i: mix((key + i) % 2**64))
