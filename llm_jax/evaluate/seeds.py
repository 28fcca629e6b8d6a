"""Scores of several training runs that differ only in their seed: the seed as a level beside the items.

Another seed would have another score, and so would other items. Both vary, and each run answers every item: a
crossed design with two random effects. The variance of the mean over S seeds and n items is, by the mean
squares of a two-way analysis of variance (Searle, Casella and McCulloch 1992, section 4.3),

    (MS_seeds + MS_items - MS_rest) / (S n),

with Student's t at Satterthwaite's (1946) degrees of freedom. Imports no JAX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from llm_jax.evaluate.statistics import (
    Clusters,
    Difference,
    Estimate,
    Z,
    bonett_price,
    cluster_sums,
    p_of_interval,
    same_length,
    stderr_of_mean,
    wilson_interval,
)


@dataclass(frozen=True)
class SeedLevel:
    """The score of runs of several seeds on the same items, and the parts of its variance."""

    values: tuple[float, ...]
    """The score of each run."""
    item_means: np.ndarray
    """float64 [n]: the mean of the runs on each item."""
    clusters: Clusters
    of_items: float
    """Variance of the mean, were the runs given."""
    of_rest: float
    """The part of it that seeds have in common with items: what differs from run to run on each item."""
    count: int
    """Independent items: clusters."""

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.values))

    @property
    def between(self) -> float:
        """Standard deviation of the runs' scores."""
        return float(np.std(self.values, ddof=1))

    @property
    def of_seeds(self) -> float:
        """Variance of the mean, were the items given."""
        return self.between**2 / len(self.values)

    def estimate(self) -> Estimate:
        """The mean over seeds with its 95% interval over seeds and items."""
        stderr, half = spread([self.of_seeds], [len(self.values)], self.of_items, self.count, self.of_rest)
        ends = self.value - half, self.value + half
        return Estimate(self.value, stderr, ends, len(self.item_means), self.count)


def seed_level(values_SN: np.ndarray, clusters: Clusters = None) -> SeedLevel:
    """Scores, from 0 to 1, of S >= 2 runs on n items, and their variances. clusters: one label an item.
    Raises ValueError for fewer runs, or no items."""
    values_SN = np.asarray(values_SN, np.float64)
    runs, n = values_SN.shape
    if runs < 2 or not n:
        raise ValueError(f"a level of seeds needs two runs and an item; there are {values_SN.shape}")
    items_N, runs_S = values_SN.mean(0), values_SN.mean(1)
    stderr, count = stderr_of_mean(items_N, clusters)
    if stderr == 0:  # all items alike: as of so many items of which all are right or wrong (Wilson)
        low, high = wilson_interval(float(items_N.mean()) * count, count)
        stderr = (high - low) / (2 * Z)
    rest_SN = values_SN - items_N - runs_S[:, None] + values_SN.mean()
    sums_CS = cluster_sums(rest_SN.T, clusters)
    rest = count / max(count - 1, 1) * float((sums_CS**2).sum()) / ((runs - 1) * runs * n**2)
    return SeedLevel(tuple(map(float, runs_S)), items_N, clusters, stderr**2, rest, count)


def seed_difference(first: SeedLevel, second: SeedLevel) -> Difference:
    """The score of a first configuration minus that of a second, on the same items, each of several seeds."""
    same_length(first.item_means, second.item_means)
    value = first.value - second.value
    paired_N = first.item_means - second.item_means
    # No item differs: as of so many pairs without a difference (Bonett and Price).
    of_items = (stderr_of_mean(paired_N, first.clusters)[0] or bonett_price(0, 0, first.count)[1]) ** 2
    stderr, half = spread(
        [first.of_seeds, second.of_seeds],
        [len(first.values), len(second.values)],
        of_items,
        first.count,
        first.of_rest + second.of_rest,
    )
    ends = value - half, value + half
    return Difference(
        value,
        stderr,
        ends,
        p_of_interval(value, ends),
        len(paired_N),
        int((paired_N > 0).sum()),
        int((paired_N < 0).sum()),
    )


def group_of_seeds(
    tasks: Sequence[SeedLevel], chances: Sequence[float]
) -> tuple[tuple[float, ...], Estimate]:
    """(the score of each run, their mean with its interval) in several tasks: the mean of the tasks' scores,
    each centred by its chance, as `statistics.group` has it. The tasks are given."""
    same_length(tasks, chances)
    weights = [1 / (len(tasks) * (1 - chance)) for chance in chances]
    values_S = sum(
        w * (np.asarray(task.values) - chance)
        for w, task, chance in zip(weights, tasks, chances, strict=True)
    )
    of_items = sum(w * w * task.of_items for w, task in zip(weights, tasks, strict=True))
    rest = sum(w * w * task.of_rest for w, task in zip(weights, tasks, strict=True))
    values, runs = tuple(map(float, np.asarray(values_S))), len(tasks[0].values)
    of_seeds = float(np.var(values, ddof=1)) / runs
    count = sum(task.count for task in tasks)
    stderr, half = spread([of_seeds], [runs], of_items, count, rest)
    value, n = float(np.mean(values)), sum(len(task.item_means) for task in tasks)
    return values, Estimate(value, stderr, (value - half, value + half), n, count)


def spread(
    of_seeds: Sequence[float], runs: Sequence[int], of_items: float, count: int, rest: float
) -> tuple[float, float]:
    """(standard error, half of the 95% interval) of a mean over seeds and items, from its parts; of_seeds,
    runs: one for each configuration. Infinite where a single cluster doesn't show how items vary."""
    if not math.isfinite(of_items):
        return math.nan, math.inf
    total = max(sum(of_seeds) + of_items - rest, of_items, 0.0)
    parts = [*zip(of_seeds, (n - 1 for n in runs), strict=True), (of_items, max(count - 1, 1))]
    below = sum(part**2 / freedom for part, freedom in parts)
    if not total:
        return 0.0, 0.0
    freedom = total**2 / below
    return math.sqrt(total), float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
