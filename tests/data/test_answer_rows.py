"""Rows of pairs and of answers with labels: what is compared shares a row, and a plan depends on data and seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.data.answer_rows import LabelledRows, PairRows, most_examples, smallest_example
from llm_jax.data.token_numbers import TokenNumbers

T = 96


def documents(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Documents of 6 to 40 tokens, each of two tokens [n, n] and more: the first third is the prompt, the same for
    every fourth document."""
    rng = np.random.default_rng(seed)
    lengths_N = rng.integers(6, 41, count)
    starts_N = np.cumsum(lengths_N) - lengths_N
    tokens = rng.integers(100, 1000, lengths_N.sum()).astype(np.uint16)
    weights = np.zeros(len(tokens), np.uint8)
    for n, (start, length) in enumerate(zip(starts_N, lengths_N, strict=True)):
        tokens[start : start + 2] = n % (count // 4)
        weights[start + 2 : start + length] = 1
    return {"tokens": tokens, "starts_N": starts_N, "lengths_N": lengths_N, "weights": weights}


def made(kind: type, count: int = 80, seed: int | None = 5, **more: object) -> PairRows | LabelledRows:
    of = documents(count)
    arrays = [of[name] for name in ("tokens", "starts_N", "lengths_N")]
    return kind(*arrays, length=T, seed=seed, weights=of["weights"], **more)


def segments_of(row: dict[str, np.ndarray]) -> list[bytes]:
    return [
        row["tokens"][row["segments"] == s].astype(np.uint16).tobytes()
        for s in range(1, row["segments"].max() + 1)
    ]


def test_every_pair_is_in_one_row_of_an_epoch_with_its_answers_side_by_side():
    rows, of = made(PairRows), documents(80)
    whole = [of["tokens"][s : s + n].tobytes() for s, n in zip(of["starts_N"], of["lengths_N"], strict=True)]
    seen = []
    for index in range(rows.round_rows):
        found = segments_of(rows[index])
        assert len(found) <= 2 * most_examples(T)
        seen += list(zip(found[::2], found[1::2], strict=True))
    assert sorted(seen) == sorted(zip(whole[::2], whole[1::2], strict=True))
    again, other = made(PairRows), made(PairRows, seed=6)
    assert all((again[7][name] == rows[7][name]).all() for name in rows[7])
    assert [segments_of(rows[i]) for i in range(5)] != [segments_of(other[i]) for i in range(5)]


def test_a_row_shows_where_there_are_targets():
    row = made(PairRows)[3]
    inside = np.append((row["segments"][1:] == row["segments"][:-1]) & (row["segments"][1:] > 0), False)
    assert (row["continues"] == inside).all()
    assert (row["weights"] <= row["continues"]).all()
    assert (row["targets"][inside] == row["tokens"][1:][inside[:-1]]).all()
    assert set(made(PairRows).empty_row()) == set(row)


def test_mismatched_answers_belong_to_other_prompts():
    values_N = np.arange(80) % 3 > 0
    rows, of = made(LabelledRows, values_N=values_N.astype(np.float32)), documents(80)
    whole = {
        of["tokens"][s : s + n].tobytes(): i
        for i, (s, n) in enumerate(zip(of["starts_N"], of["lengths_N"], strict=True))
    }
    answers = {tokens[4:]: i for tokens, i in whole.items()}
    partners = {}
    for index in range(rows.round_rows):
        row = rows[index]
        mismatched = {
            name.removeprefix("mismatched_"): x for name, x in row.items() if name.startswith("mismatched_")
        }
        assert set(mismatched) == set(rows.empty_row()) & set(mismatched)
        for segment, (own, other) in enumerate(
            zip(segments_of(row), segments_of(mismatched), strict=True), 1
        ):
            document, partner = whole[own], answers[other[4:]]
            assert own[:4] == other[:4]
            assert document % 20 != partner % 20, "the prompts differ"
            inside = row["segments"] == segment
            assert (row["labels"][inside] == values_N[document]).all()
            assert (
                mismatched["weights"][mismatched["segments"] == segment].sum() == of["lengths_N"][partner] - 2
            )
            partners[document] = partner
    assert len(partners) == 80
    assert len(set(partners.values())) > 60, "nearly each answer is mismatched once"


def test_one_prompt_for_all_has_no_mismatched_answers():
    of = documents(8)
    of["tokens"][:] = 5
    arrays = [of[name] for name in ("tokens", "starts_N", "lengths_N")]
    rows = LabelledRows(*arrays, length=T, seed=1, weights=of["weights"], values_N=np.ones(8, np.float32))
    assert all(rows[i]["mismatched_weights"].sum() == 0 for i in range(rows.round_rows))


@pytest.mark.parametrize("length", [1, 8, 32, 512, 8192, 100_000])
def test_a_row_has_room_for_the_most_examples(length):
    assert most_examples(length) * smallest_example(length) <= length
    assert 1 <= most_examples(length) <= 256


def test_numbers_of_tokens_are_computed_once_for_the_rows_that_are_needed(tmp_path):
    """Each number comes back at its target, whatever rows it was computed in."""
    rows = made(PairRows)
    calls = []

    def score(batch):
        calls.append(len(batch["tokens"]))
        return batch["targets"] / 7 + batch["positions"]

    def numbers(of, count):
        return TokenNumbers(
            tmp_path / "cache" / "numbers" / "x", len(of.tokens), [(of, i) for i in range(count)]
        )

    some, every = numbers(rows, 3), numbers(rows, rows.round_rows)
    assert some.missing() == [0, 1, 2]
    some.save(some.compute(some.missing(), score, 2))
    assert (some.missing(), calls) == ([], [2, 2])
    assert every.missing() == list(range(3, rows.round_rows))
    every.save(every.compute(every.missing(), score, 4))
    assert every.missing() == []
    other = made(PairRows, seed=9)
    again = numbers(other, other.round_rows)
    assert again.missing() == []
    again.attach("reference_logp")
    row = other[4]
    expected = row["continues"] * (row["targets"] / 7 + row["positions"])
    np.testing.assert_allclose(row["reference_logp"], expected, rtol=1e-6)
