"""Rows of whole examples: each example once an epoch, uncut, with weights from the data, for any reader."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.data.packing import PackedRows
from llm_jax.data.token_cache import check_encoded
from llm_jax.data.whole_rows import WholeRows, best_fit

T = 16


def examples(seed: int = 0, count: int = 50):
    """(tokens, starts, lengths, weights): token n of example e is 100 e + n, a third of all
    tokens trained.
    """
    rng = np.random.default_rng(seed)
    lengths_N = rng.integers(2, T + 1, count)
    tokens = np.concatenate([100 * (e + 1) + np.arange(n) for e, n in enumerate(lengths_N)])
    weights = (rng.random(len(tokens)) < 1 / 3).astype(np.uint8)
    return tokens, np.cumsum(lengths_N) - lengths_N, lengths_N, weights


def pieces(row):
    """The documents of a row: (tokens, targets, weights, positions) each."""
    for segment in range(1, row["segments"].max() + 1):
        at = row["segments"] == segment
        yield row["tokens"][at], row["targets"][at], row["weights"][at], row["positions"][at]


def test_every_epoch_has_every_example_once_in_one_piece_with_its_weights():
    tokens, starts_N, lengths_N, weights = examples()
    rows = WholeRows(tokens, starts_N, lengths_N, length=T, seed=3, weights=weights)
    for epoch in range(3):
        seen = []
        for i in range(rows.round_rows):
            for own, targets, trained, positions in pieces(rows[epoch * rows.round_rows + i]):
                example = int(own[0]) // 100 - 1
                begin, end = starts_N[example], starts_N[example] + lengths_N[example]
                seen.append(example)
                np.testing.assert_array_equal(own, tokens[begin:end])
                np.testing.assert_array_equal(positions, np.arange(len(own)))
                np.testing.assert_array_equal(targets, [*own[1:], 0])
                np.testing.assert_array_equal(trained, [*weights[begin + 1 : end], 0])
        assert sorted(seen) == list(range(len(lengths_N)))
    orders = [
        [int(rows[e * rows.round_rows + i]["tokens"][0]) for i in range(rows.round_rows)] for e in range(2)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_plan_is_a_function_of_lengths_and_seed_and_wastes_little():
    lengths_N = np.random.default_rng(1).integers(1, 65, 4000)
    plan = best_fit(lengths_N, 64, seed=5)
    assert plan == best_fit(lengths_N.copy(), 64, seed=5) != best_fit(lengths_N, 64, seed=6)
    assert sum(lengths_N) / (64 * len(plan)) > 0.97
    assert all(sum(lengths_N[row]) <= 64 for row in plan)


def test_an_example_longer_than_a_row_is_refused_by_name():
    with pytest.raises(
        UserError, match=r"train.sequence_length=8: example 1 has 9 tokens, and examples aren't cut"
    ):
        WholeRows(np.arange(12), np.array([0, 3]), np.array([3, 9]), length=8, seed=0)


def test_rows_that_cut_documents_keep_the_weights_of_every_token():
    tokens, starts_N, lengths_N, weights = examples(2)
    cut = PackedRows(tokens, starts_N, lengths_N, length=7, seed=None, weights=weights)
    count = cut.epoch_tokens // 7
    trained = np.concatenate([cut.row(i)["weights"] for i in range(count)])
    expected = np.concatenate(
        [[*weights[s + 1 : s + n], 0] for s, n in zip(starts_N, lengths_N, strict=True)]
    )
    np.testing.assert_array_equal(trained, expected[: count * 7])


def test_an_example_without_tokens_is_skipped_in_rows_of_either_kind():
    starts_N, lengths_N = np.array([0, 3, 3]), np.array([3, 0, 4])
    for rows in (WholeRows, PackedRows):
        row = rows(np.arange(7), starts_N, lengths_N, length=7, seed=None).row(0)
        assert sorted(row["tokens"].tolist()) == list(range(7))


@pytest.mark.parametrize(
    ("tokens", "weights", "problem"),
    [
        ([1, 2, 3, 4], [1, 0, 1], "4 tokens and 3 weights"),
        ([1, 70000], [1, 1], "ids from 1 to 70000"),
        ([-1, 2], [1, 1], "ids from -1 to 2"),
        ([1, 2], [1, 0.5], "weights other than 0 and 1"),
    ],
)
def test_what_an_encoder_must_not_return_is_refused_with_the_document(tokens, weights, problem):
    class Vocabulary:
        vocab_size = 320

    with pytest.raises(UserError, match=f"corpus, document 7: the encoder returned {problem}"):
        check_encoded(tokens, weights, Vocabulary(), lambda: "corpus, document 7")
