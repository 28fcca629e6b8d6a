"""Seeds as a level: intervals over training runs and items."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.evaluate.seeds import group_of_seeds, seed_difference, seed_level

SEEDS, ITEMS = 5, 200


def answers(rng: np.random.Generator, level: float = 0.0, seeds: int = SEEDS, sources: int = 0) -> np.ndarray:
    """Right or wrong, [seeds, items]: a linear score of the run, the item (or its source) and chance is above
    0."""
    hard = np.repeat(rng.normal(0, 1, sources), ITEMS // sources) if sources else rng.normal(0, 1, ITEMS)
    run, rest = rng.normal(0, 0.15, (seeds, 1)), rng.normal(0, 0.8, (seeds, ITEMS))
    return (level + run + hard + rest > 0).astype(float)


def share(covered: list[bool]) -> float:
    return float(np.mean(covered))


@pytest.mark.parametrize("sources", [0, 40])
def test_the_interval_covers_the_mean_of_all_seeds_and_items(sources):
    """1,000 times other runs and other items; the standard error of a share of 1,000 is 0.7 points."""
    rng, covered, alone = np.random.default_rng(0), [], []
    clusters = np.arange(ITEMS) // (ITEMS // sources) if sources else None
    for _ in range(1000):
        level = seed_level(answers(rng, sources=sources), clusters)
        low, high = level.estimate().ci95
        covered.append(low <= 0.5 <= high)  # scores are symmetric around 0
        half = 1.96 * level.of_items**0.5
        alone.append(abs(level.value - 0.5) <= half)
    assert 0.93 <= share(covered) <= 0.97
    assert share(alone) < share(covered) - 0.02  # the items by themselves say too little


def test_a_difference_of_configurations_is_covered():
    rng, covered = np.random.default_rng(1), []
    for _ in range(1000):
        hard = rng.normal(0, 1, ITEMS)
        first, second = (
            seed_level(
                (rng.normal(0, 0.15, (SEEDS, 1)) + hard + rng.normal(0, 0.8, (SEEDS, ITEMS)) > 0).astype(
                    float
                )
            )
            for _ in range(2)
        )
        low, high = seed_difference(first, second).ci95
        covered.append(low <= 0 <= high)
    assert 0.93 <= share(covered) <= 0.97


def test_the_parts_are_the_mean_squares_of_two_ways():
    values = answers(np.random.default_rng(2), seeds=3)
    runs, n = values.shape
    level = seed_level(values)
    of_run, of_item, grand = values.mean(1), values.mean(0), values.mean()
    ms_run = n * ((of_run - grand) ** 2).sum() / (runs - 1)
    ms_item = runs * ((of_item - grand) ** 2).sum() / (n - 1)
    rest = values - of_run[:, None] - of_item + grand
    ms_rest = (rest**2).sum() / (runs - 1) / (n - 1)
    assert level.of_seeds == pytest.approx(ms_run / runs / n)
    assert level.of_items == pytest.approx(ms_item / runs / n)
    assert level.of_rest == pytest.approx(ms_rest / runs / n)
    found = level.estimate()
    variance = max((ms_run + ms_item - ms_rest) / runs / n, level.of_items)
    assert (found.value, found.stderr) == pytest.approx((grand, variance**0.5))
    every = seed_level(np.repeat(values, 2, 1), np.repeat(np.arange(n), 2))  # each item twice: nothing is new
    assert (every.of_items, every.of_rest) == pytest.approx((level.of_items, level.of_rest))


def test_a_group_is_the_mean_of_centred_tasks():
    rng = np.random.default_rng(3)
    tasks = [seed_level(answers(rng)) for _ in range(2)]
    values, found = group_of_seeds(tasks, [0.5, 0.25])
    expected = [
        ((a - 0.5) / 0.5 + (b - 0.25) / 0.75) / 2
        for a, b in zip(tasks[0].values, tasks[1].values, strict=True)
    ]
    assert values == pytest.approx(expected)
    assert found.value == pytest.approx(np.mean(expected))
    one, alone = group_of_seeds(tasks[:1], [0.0])
    assert (one, alone.ci95) == (tasks[0].values, pytest.approx(tasks[0].estimate().ci95))


def test_one_run_is_no_level():
    with pytest.raises(ValueError, match="needs two runs"):
        seed_level(np.zeros((1, 4)))


def test_items_that_are_all_alike_do_not_make_a_score_certain():
    """In a crossing a model that always prefers one alternative is right in half of each cluster."""
    values = np.tile([0.0, 1.0], (3, 50))
    clusters = np.repeat(np.arange(50), 2)
    level = seed_level(values, clusters)
    low, high = level.estimate().ci95
    assert 0.35 < low < 0.45 < 0.55 < high < 0.65  # as of 50 items
    low, high = seed_difference(level, level).ci95
    assert low < 0 < high
