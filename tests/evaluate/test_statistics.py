"""Intervals cover what they should, over 1,000 simulated evaluations each; pairs, clusters and ranks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from llm_jax.evaluate import statistics
from llm_jax.evaluate.ranks import RankRange, holm, rank_ranges, verdict
from llm_jax.evaluate.statistics import Difference, Estimate

EVALUATIONS = 1000
FEW = 300
"""Resamples: enough for a quantile of 2.5%, and the tests are quick."""


def proportion(rng):
    return statistics.proportion(rng.random(200) < 0.3), 0.3


def few_right(rng):
    return statistics.proportion(rng.random(400) < 0.04), 0.04


def clustered_answers(rng, clusters=50, items=4):
    """Right answers [clusters × items] of which each cluster has its own probability, 0.3 on average."""
    label = np.repeat(np.arange(clusters), items)
    return rng.random(len(label)) < rng.beta(0.9, 2.1, clusters)[label], label


def clustered_proportion(rng):
    return statistics.proportion(*clustered_answers(rng)), 0.3


def few_clusters(rng):
    return statistics.proportion(*clustered_answers(rng, clusters=8, items=25)), 0.3


def pass_at_2(rng):
    right = rng.binomial(8, rng.beta(0.5, 1.5, 120))
    values = [statistics.pass_at_k(8, int(c), 2) for c in right]
    return statistics.partly_right(values), 1 - (1.5 * 2.5) / (2 * 3)  # E[1 - (1 - p)²], p ~ Beta(0.5, 1.5)


def hard_programs(rng):
    """Few of 164 problems are ever solved: p ~ Beta(0.1, 2), the mean is 1/21."""
    return statistics.partly_right(rng.binomial(4, rng.beta(0.1, 2, 164)) / 4), 0.1 / 2.1


def ties(rng):
    """Right, wrong, or one of two that tie."""
    return statistics.partly_right(rng.choice([0, 0.5, 1], 100, p=[0.2, 0.3, 0.5])), 0.65


def documents(rng, count=60):
    """Bytes [N] of very different documents, and the bits [N] that each of them costs: 1.5 a byte, with a
    rate of each document's own."""
    sizes = np.ceil(rng.lognormal(6, 0.8, count))
    return sizes, sizes * rng.gamma(25, 1.5 / 25, count)


def bits_per_byte(rng):
    sizes, bits = documents(rng)
    return statistics.ratio(bits, sizes, seed=int(rng.integers(1 << 31)), resamples=FEW), 1.5


def bits_per_byte_of_windows(rng):
    sizes, bits = documents(rng)
    windows = np.repeat(np.arange(60), 3)  # a document's three windows share its rate
    found = statistics.ratio(
        bits[windows] / 3, sizes[windows] / 3, windows, seed=int(rng.integers(1 << 31)), resamples=FEW
    )
    return found, 1.5


def two_models(rng, n=300):
    """Answers of two models on the same items, which are right with 0.5 and 0.46 and hang together."""
    u = rng.random(n)  # right in both, in the first, in the second, in none
    return (u < 0.5), (u < 0.4) | (u > 0.94)


def paired(rng):
    return statistics.paired(*two_models(rng)), 0.04


def paired_clusters(rng):
    label = np.repeat(np.arange(60), 5)
    harder = rng.normal(0, 1, 60)[label]
    noise = rng.normal(0, 1, (2, 300))
    own = rng.normal(0, 0.7, (2, 60))[:, label]  # each model is good at other clusters
    first, second = noise[0] + harder + own[0] > 0, noise[1] + harder + own[1] > 0.3
    spread = math.sqrt(1 + 1 + 0.49)
    return statistics.paired(first, second, label), stats.norm.sf(0) - stats.norm.sf(0.3 / spread)


def paired_bits_per_byte(rng):
    sizes, bits = documents(rng)
    other = bits * rng.normal(0.95, 0.05, len(bits))
    found = statistics.paired_ratio(
        (bits, sizes), (other, sizes), seed=int(rng.integers(1 << 31)), resamples=FEW
    )
    return found, 1.5 * 0.05


def unpaired(rng):
    one, two = statistics.proportion(rng.random(200) < 0.5), statistics.proportion(rng.random(300) < 0.4)
    return statistics.unpaired(one, two), 0.1


GROUP = ((0.3, 0.25, 150), (0.8, 0.5, 100), (0.02, 0.0, 200), (0.6, 0.5, 120))
"""Share of right answers, chance and items of tasks."""


def group(rng):
    tasks = [statistics.proportion(rng.random(n) < p) for p, _, n in GROUP]
    chances = [chance for _, chance, _ in GROUP]
    return statistics.group(tasks, chances), np.mean([(p - c) / (1 - c) for p, c, _ in GROUP])


def group_difference(rng):
    tasks = [statistics.paired(*two_models(rng, n)) for _, _, n in GROUP]
    chances = [chance for _, chance, _ in GROUP]
    true = np.mean([0.04 / (1 - chance) for chance in chances])
    return statistics.group_difference(tasks, chances), true


SIMULATED = (
    proportion, few_right, clustered_proportion, few_clusters, pass_at_2, hard_programs, ties, bits_per_byte, bits_per_byte_of_windows, paired,
    paired_clusters, paired_bits_per_byte, unpaired, group, group_difference,
)  # fmt: skip


@pytest.mark.parametrize("evaluate", SIMULATED, ids=lambda function: function.__name__)
def test_an_interval_covers_the_true_value_in_93_to_97_percent(evaluate):
    rng = np.random.default_rng(17)
    found = [evaluate(rng) for _ in range(EVALUATIONS)]
    low, high = np.array([estimate.ci95 for estimate, _ in found]).T
    true = np.array([value for _, value in found])
    assert 0.93 <= np.mean((low <= true) & (true <= high)) <= 0.97
    values = np.array([estimate.value for estimate, _ in found])
    assert values.mean() == pytest.approx(true.mean(), abs=4 * values.std() / math.sqrt(EVALUATIONS))
    stderr = np.mean([estimate.stderr for estimate, _ in found])
    assert stderr == pytest.approx(values.std(), rel=0.12)  # the standard error is that of the values


def test_without_its_clusters_an_interval_is_too_narrow():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(FEW):
        right, _ = clustered_answers(rng)
        low, high = statistics.proportion(right).ci95
        inside += low <= 0.3 <= high
    assert inside / FEW < 0.9


def test_two_points_on_1000_documents_are_shown_by_pairs_in_at_most_0_6_of_the_interval():
    """Two checkpoints of one run: the same items are hard for both."""
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(50):
        hard, noise = rng.normal(0, 1, 1000), rng.normal(0, 0.3, (2, 1000))
        spread = math.sqrt(1.09)
        first = hard + noise[0] < spread * stats.norm.ppf(0.62)
        second = hard + noise[1] < spread * stats.norm.ppf(0.60)
        paired = statistics.paired(first, second)
        unpaired = statistics.unpaired(statistics.proportion(first), statistics.proportion(second))
        ratios.append(np.ptp(paired.ci95) / np.ptp(unpaired.ci95))
        assert paired.value == pytest.approx(unpaired.value)
    assert max(ratios) <= 0.6


def test_known_values():
    found = statistics.proportion([True] * 8 + [False] * 2)
    assert (found.value, found.n, found.clusters) == (0.8, 10, 10)
    assert found.stderr == pytest.approx(math.sqrt(0.016))
    assert found.ci95 == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson 1927
    parts = statistics.partly_right([0.25, 0.5, 1.0])
    assert parts.stderr == pytest.approx(np.std([0.25, 0.5, 1], ddof=1) / math.sqrt(3))
    p = 1.75 / 3
    effective = p * (1 - p) / parts.stderr**2 * (statistics.Z / 4.30265) ** 2  # t of 2 degrees of freedom
    assert parts.ci95 == pytest.approx(statistics.wilson_interval(p * effective, effective), rel=1e-4)
    low, high = statistics.partly_right([0.5] * 3).ci95
    assert low < 0.25 < 0.75 < high  # three ties show little
    assert statistics.ratio([2.0, 4.0], [1.0, 3.0]).value == 1.5
    # 9 to 3 discordant pairs of 50 (Bonett and Price 2012, by hand): 6/52, and its standard error
    difference = statistics.paired([1] * 9 + [0] * 41, [0] * 9 + [1] * 3 + [0] * 38)
    assert (difference.value, difference.higher, difference.lower) == (pytest.approx(0.12), 9, 3)
    half = statistics.Z * math.sqrt((14 / 52 - (6 / 52) ** 2) / 52)
    assert difference.ci95 == pytest.approx((6 / 52 - half, 6 / 52 + half))


@pytest.mark.parametrize(("samples", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 5, 2), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples(samples, right, k):
    drawn = list(itertools.combinations(range(samples), k))
    assert statistics.pass_at_k(samples, right, k) == pytest.approx(
        np.mean([min(one) < right for one in drawn])
    )


def test_a_cluster_of_each_item_is_the_same_as_none():
    rng = np.random.default_rng(2)
    right, values = rng.random(80) < 0.4, rng.normal(size=80)
    own = [f"item {i}" for i in range(80)]
    parts = rng.random(80)
    assert statistics.partly_right(parts, own) == statistics.partly_right(parts)
    assert statistics.ratio(np.exp(values), np.ones(80), own) == statistics.ratio(np.exp(values), np.ones(80))
    with_own, without = statistics.proportion(right, own), statistics.proportion(right)
    assert with_own.ci95 == pytest.approx(without.ci95, abs=0.002)  # a variance with n - 1


def test_a_single_cluster_shows_nothing():
    right = [True, False, True]
    assert statistics.proportion(right, ["a"] * 3).ci95 == (0.0, 1.0)
    assert statistics.partly_right(right, ["a"] * 3).ci95 == (0.0, 1.0)
    for found in (
        statistics.ratio([1, 2, 3], [2, 2, 2], ["a"] * 3),
        statistics.paired([0.5, 1, 0], [0, 0, 0.2], ["a"] * 3),
    ):
        assert found.ci95 == (-math.inf, math.inf)
        assert math.isnan(found.stderr)


def test_models_that_never_differ_are_not_shown_to_be_equal_but_the_same_numbers_are():
    right = np.arange(50) % 3 == 0
    same = statistics.paired(right, right)
    assert not same.shown
    assert same.ci95[0] < 0 < same.ci95[1]
    assert same.value == 0
    bits = statistics.paired_ratio((np.arange(1, 51), np.ones(50)), (np.arange(1, 51), np.ones(50)))
    assert bits.ci95 == (0, 0)
    assert not bits.shown


@pytest.mark.parametrize("label", [None, np.repeat(np.arange(50), 6)])
def test_p_is_below_5_percent_exactly_where_the_interval_excludes_0(label):
    rng = np.random.default_rng(3)
    for _ in range(100):
        found = [statistics.paired(*two_models(rng), label)]
        sizes, bits = documents(rng)
        other = bits * rng.normal(0.985, 0.06, len(bits))
        found.append(statistics.paired_ratio((bits, sizes), (other, sizes), resamples=FEW))
        for one in found:
            if not 0.04 < one.p < 0.06:  # a quantile of few resamples lies between two of them
                assert (one.p < 0.05) == one.shown


def test_scores_of_nothing_and_of_what_is_not_finite_raise():
    for bad in ([], [math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="score"):
            statistics.proportion(bad)
    with pytest.raises(ValueError, match="lengths"):
        statistics.paired([1, 0], [1])
    with pytest.raises(ValueError, match="lengths"):
        statistics.group([], [])


def test_a_models_rank_is_in_its_range_in_95_percent_and_equals_share_all_ranks():
    rng = np.random.default_rng(4)
    true = np.array([0.62, 0.55, 0.55, 0.4])  # the second and third are equal: ranks 2 and 3 are both right
    inside = np.zeros(len(true))
    for _ in range(FEW):
        hard = rng.random(250)
        answers = [hard + rng.normal(0, 0.15, 250) < p for p in true]
        rows = [
            [None if i == j else statistics.paired(a, b) for j, b in enumerate(answers)]
            for i, a in enumerate(answers)
        ]
        ranges = rank_ranges(rows)
        inside += [
            r.best <= first and last <= r.worst
            for r, (first, last) in zip(ranges, ((1, 1), (2, 3), (2, 3), (4, 4)), strict=True)
        ]
    assert (inside / FEW >= 0.95).all()
    same = Difference(0.0, 0.1, (-0.2, 0.2), 1.0, 10)
    assert rank_ranges([[None, same], [same, None]]) == [RankRange(1, 2)] * 2
    better, worse = (
        Difference(0.3, 0.1, (0.1, 0.5), 0.003, 10),
        Difference(-0.3, 0.1, (-0.5, -0.1), 0.003, 10),
    )
    assert rank_ranges([[None, better], [worse, None]]) == [RankRange(1, 1), RankRange(2, 2)]
    assert rank_ranges([[None, better], [worse, None]], higher_is_better=False)[0] == RankRange(2, 2)
    assert [str(r) for r in (RankRange(1, 1), RankRange(1, 3))] == ["1", "1–3"]


def test_holm_keeps_single_comparisons_from_adding_up():
    assert holm([0.04, 0.04]) == [False, False]
    assert holm([0.02, 0.04]) == [True, True]
    assert holm([]) == []


def test_a_verdict_says_which_is_better_or_that_no_difference_is_shown():
    lower = Difference(-0.03, 0.01, (-0.05, -0.01), 0.003, 100)
    assert verdict(lower) == "worse by 3.0% (1.0% to 5.0%)"
    assert verdict(lower, higher_is_better=False, form=".2f") == "better by 0.03 (0.01 to 0.05)"
    none = Difference(0.01, 0.01, (-0.01, 0.03), 0.3, 100)
    assert verdict(none) == "no difference shown (−1.0% to 3.0%)"


def test_a_group_is_0_at_chance_and_1_where_all_is_right():
    tasks = [Estimate(v, 0.01, (v - 0.02, v + 0.02), 100, 100) for v in (0.25, 0.5)]
    assert statistics.group(tasks, [0.25, 0.5]).value == pytest.approx(0)
    assert statistics.group([Estimate(1.0, 0.0, (1.0, 1.0), 5, 5)] * 2, [0.25, 0.5]).value == pytest.approx(1)
