"""Standard errors and 95% intervals of scores, and of differences between two models on the same items.

Items that share a source (questions about one passage, windows of one document) are not independent. Wherever
`clusters` are given, one label an item, whole clusters are what varies, not their items.

    proportion   right or wrong: Wilson's interval (1927), with an effective number of items where there are
                 clusters (Korn and Graubard 1998)
    partly_right numbers from 0 to 1, as pass@k of each problem: Wilson's, for their variance
    ratio        sum over sum, as bits per byte: the bootstrap-t (Efron and Tibshirani 1993, section 12.5)
    paired, paired_ratio    the same items answered by two models; unpaired: different items
    group        the mean of several tasks' scores, each centred by its chance
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Z = 1.959963984540054
"""Standard deviations of a two-sided 95% interval."""
RESAMPLES = 2000
"""Bootstrap resamples of a ratio."""
FEW_CLUSTERS = 12
"""With fewer, a bootstrap has too few different resamples: Student's t takes its place."""
BLOCK = 1_000_000
"""Draws of a bootstrap that are in memory at once."""

Clusters = Sequence[Hashable] | np.ndarray | None
Values = Sequence[float] | Sequence[bool] | np.ndarray


class Estimate(NamedTuple):
    """A score with its uncertainty."""

    value: float
    stderr: float
    """Standard error; NaN where all items are of one cluster, so that nothing shows how clusters vary."""
    ci95: tuple[float, float]
    """The 95% interval."""
    n: int
    """Items."""
    clusters: int
    """Groups of items that are independent of each other; as many as items where none was named."""


class Difference(NamedTuple):
    """The score of a first model minus that of a second, with its uncertainty."""

    value: float
    stderr: float
    ci95: tuple[float, float]
    p: float
    """Two-sided p-value of no difference; below 0.05 exactly where the interval excludes 0."""
    n: int
    """Items that both answered; 0 where they answered different ones."""
    higher: int = 0
    """Items on which the first model's value is higher."""
    lower: int = 0
    """Items on which the second's is."""

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0: a difference is shown."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


def wilson_interval(right: float, of: float, z: float = Z) -> tuple[float, float]:
    """The interval of a share (Wilson 1927); z: its standard deviations, which are those of 95%.

    >>> [round(bound, 3) for bound in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    if not of:
        return 0.0, 1.0
    share, zz = right / of, z * z / of
    middle, half = share + zz / 2, math.sqrt(zz * share * (1 - share) + zz * zz / 4)
    return max(0.0, (middle - half) / (1 + zz)), min(1.0, (middle + half) / (1 + zz))


def proportion(right: Values, clusters: Clusters = None) -> Estimate:
    """The share of right answers, right [n] of 0 and 1.

    Clusters reduce the number of items to that of independent ones with the same variance, p (1 - p) / Var,
    and by the t quantile of few clusters (Korn and Graubard 1998). Raises ValueError for no items.

    >>> proportion([True] * 8 + [False] * 2).value
    0.8
    """
    right_N = numbers(right)
    n, p = len(right_N), float(right_N.mean())
    if clusters is None:
        return Estimate(p, math.sqrt(p * (1 - p) / n), wilson_interval(p * n, n), n, n)
    sums_C = cluster_sums(right_N[:, None] - p, clusters)[:, 0]
    count = len(sums_C)
    if count < 2:
        return Estimate(p, math.nan, (0.0, 1.0), n, count)
    variance = count / (count - 1) * float(sums_C @ sums_C) / n**2
    # All right or all wrong: nothing shows how items of a cluster hang together, so a cluster counts as one.
    effective = min(n, p * (1 - p) / variance) if variance > 0 else count
    wider = stats.t.ppf(0.975, count - 1) / stats.t.ppf(0.975, max(n - 1, 1))
    effective /= wider**2
    return Estimate(p, math.sqrt(variance), wilson_interval(p * effective, effective), n, count)


def partly_right(values: Values, clusters: Clusters = None) -> Estimate:
    """The mean of values [n] from 0 to 1, which may be parts of a right answer: ties, pass@k of each problem.

    Wilson's interval for as many right or wrong items as would have the same variance, p (1 - p) / Var, and
    by the t quantile of few items (Korn and Graubard 1998), so that it is within 0 and 1 and has a width
    where all values are alike. Raises ValueError for no items.

    >>> [round(float(bound), 2) for bound in partly_right([0.5] * 10).ci95]
    [0.21, 0.79]
    """
    values_N = numbers(values)
    n, p = len(values_N), float(values_N.mean())
    stderr, count = stderr_of_mean(values_N, clusters)
    if count < 2:
        return Estimate(p, math.nan, (0.0, 1.0), n, count)
    effective = p * (1 - p) / stderr**2 if stderr else count
    effective /= (stats.t.ppf(0.975, count - 1) / Z) ** 2
    interval = wilson_interval(p * effective, effective)
    return Estimate(p, stderr or math.sqrt(p * (1 - p) / count), interval, n, count)


def ratio(
    numerators: Values,
    denominators: Values,
    clusters: Clusters = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """sum(numerators) / sum(denominators), both [n]: bits per byte of documents of any length.

    The interval is a bootstrap-t over items or clusters, the standard error that of the resampled ratios;
    with fewer than `FEW_CLUSTERS` both are the jackknife's. Raises ValueError for no items.
    """
    columns_NK = np.stack([numbers(numerators), numbers(denominators)], 1)
    sums_CK = cluster_sums(columns_NK, clusters)

    def value(totals_RK: np.ndarray) -> np.ndarray:
        return totals_RK[:, 0] / totals_RK[:, 1]

    def slopes(totals_RK: np.ndarray) -> np.ndarray:
        return np.stack([1 / totals_RK[:, 1], -totals_RK[:, 0] / totals_RK[:, 1] ** 2], 1)

    drawn = bootstrap_t(sums_CK, value, slopes, seed, resamples)
    low, high = drawn.ci95
    if (columns_NK >= 0).all() and math.isfinite(low):  # so is their ratio
        low = max(low, 0.0)
    return Estimate(drawn.value, drawn.stderr, (low, high), len(columns_NK), len(sums_CK))


def paired(first: Values, second: Values, clusters: Clusters = None) -> Difference:
    """mean(first) - mean(second), of two models on the same items, both [n].

    Answers that are right or wrong: the interval of Bonett and Price (2012), Wald's after half an item is
    added to each of the four cells; other values and clusters: Student's t of the differences. Raises
    ValueError for no items, or if the lengths differ.
    """
    first_N, second_N = numbers(first), numbers(second)
    same_length(first_N, second_N)
    difference_N = first_N - second_N
    value, n = float(difference_N.mean()), len(difference_N)
    higher, lower = int((difference_N > 0).sum()), int((difference_N < 0).sum())
    stderr, count = stderr_of_mean(difference_N, clusters)
    binary = is_binary(first_N) and is_binary(second_N)
    if binary and (clusters is None or stderr == 0):
        # Without a discordant item the differences have no variance, and yet no equality is shown.
        middle, moved = bonett_price(higher, lower, n if clusters is None else count)
        half, p = Z * moved, two_sided(middle / moved)
        return Difference(value, moved, (middle - half, middle + half), p, n, higher, lower)
    if count < 2:
        return Difference(value, math.nan, (-math.inf, math.inf), 1.0, n, higher, lower)
    half = stats.t.ppf(0.975, count - 1) * stderr
    t = value / stderr if stderr else math.copysign(math.inf, value) if value else 0.0
    p = float(2 * stats.t.sf(abs(t), count - 1))
    return Difference(value, stderr, (value - half, value + half), p, n, higher, lower)


def paired_ratio(
    first: tuple[Values, Values],
    second: tuple[Values, Values],
    clusters: Clusters = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """The difference of two models' ratios, as bits per byte, each of (numerators [n], denominators [n]) on
    the same items, whose intervals are a bootstrap-t over items or clusters.

    Raises ValueError for no items, or if the lengths differ.
    """
    columns = [numbers(values) for values in (*first, *second)]
    same_length(*columns)
    sums_CK = cluster_sums(np.stack(columns, 1), clusters)

    def value(totals_RK: np.ndarray) -> np.ndarray:
        return totals_RK[:, 0] / totals_RK[:, 1] - totals_RK[:, 2] / totals_RK[:, 3]

    def slopes(totals_RK: np.ndarray) -> np.ndarray:
        a, b, c, d = totals_RK.T
        return np.stack([1 / b, -a / b**2, -1 / d, c / d**2], 1)

    drawn = bootstrap_t(sums_CK, value, slopes, seed, resamples)
    own, other = columns[0] / columns[1], columns[2] / columns[3]
    higher, lower = int((own > other).sum()), int((own < other).sum())
    return Difference(drawn.value, drawn.stderr, drawn.ci95, drawn.p, len(own), higher, lower)


def unpaired(first: Estimate, second: Estimate) -> Difference:
    """The difference of two scores on different items, from their intervals (Newcombe 1998, method 10)."""
    value = first.value - second.value
    stderr = math.hypot(first.stderr, second.stderr)
    low, high = combined([(1.0, first.value, first.ci95), (-1.0, second.value, second.ci95)])
    return Difference(value, stderr, (low, high), p_of_interval(value, (low, high)), 0)


def group(tasks: Sequence[Estimate], chances: Sequence[float]) -> Estimate:
    """The mean of several tasks' scores, each centred by its chance: (score - chance) / (1 - chance), which
    is 0 for guessing and 1 for all right.

    The tasks are given, their items vary: the interval follows from the tasks' own (Zou and Donner 2008). n:
    the items of all tasks. Raises ValueError for no tasks, or if the lengths differ.
    """
    same_length(tasks, chances)
    weights = [1 / (len(tasks) * (1 - chance)) for chance in chances]
    value = sum(w * (task.value - chance) for w, task, chance in zip(weights, tasks, chances, strict=True))
    stderr = math.hypot(*(w * task.stderr for w, task in zip(weights, tasks, strict=True)))
    offset = sum(w * chance for w, chance in zip(weights, chances, strict=True))
    low, high = combined([(w, task.value, task.ci95) for w, task in zip(weights, tasks, strict=True)])
    n, count = sum(task.n for task in tasks), sum(task.clusters for task in tasks)
    return Estimate(value, stderr, (low - offset, high - offset), n, count)


def group_difference(tasks: Sequence[Difference], chances: Sequence[float]) -> Difference:
    """The difference of two models' `group` scores, from the tasks' paired differences."""
    same_length(tasks, chances)
    weights = [1 / (len(tasks) * (1 - chance)) for chance in chances]
    value = sum(w * task.value for w, task in zip(weights, tasks, strict=True))
    stderr = math.hypot(*(w * task.stderr for w, task in zip(weights, tasks, strict=True)))
    interval = combined([(w, task.value, task.ci95) for w, task in zip(weights, tasks, strict=True)])
    n, higher, lower = (sum(getattr(task, name) for task in tasks) for name in ("n", "higher", "lower"))
    return Difference(value, stderr, interval, p_of_interval(value, interval), n, higher, lower)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that at least one of k samples is right, without bias, from `samples` of which `right`
    are: 1 - C(samples - right, k) / C(samples, k) (Chen et al. 2021, section 2.1).

    A task's pass@k is the `mean` of this over its problems. Raises ValueError for k of more than `samples`.

    >>> round(pass_at_k(10, 3, 1), 4), round(pass_at_k(10, 3, 5), 4)
    (0.3, 0.9167)
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} of {right} right among {samples} samples")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


# --- what the functions above are made of ---


class Drawn(NamedTuple):
    """What a bootstrap gives."""

    value: float
    stderr: float
    ci95: tuple[float, float]
    p: float


def bootstrap_t(
    sums_CK: np.ndarray,
    value: Callable[[np.ndarray], np.ndarray],
    slopes: Callable[[np.ndarray], np.ndarray],
    seed: int,
    resamples: int,
) -> Drawn:
    """The bootstrap-t of a smooth function of totals over clusters, with the jackknife's standard error.

    sums_CK: K sums of each cluster. value: totals [R, K] → [R]; slopes: its derivatives, totals [R, K] →
    [R, K]; by these each resample has a standard error of its own (the delta method).
    """
    count = len(sums_CK)

    def delta(totals_RK: np.ndarray, products_RKK: np.ndarray) -> np.ndarray:
        # the variance of totals over independent clusters, around their mean, with count - 1
        centred = products_RKK - totals_RK[:, :, None] * totals_RK[:, None, :] / count
        slope_RK = slopes(totals_RK)
        variance_R = np.einsum("rk,rkl,rl->r", slope_RK, centred, slope_RK)
        return np.sqrt(np.maximum(variance_R, 0) * count / max(count - 1, 1))

    products_CKK = sums_CK[:, :, None] * sums_CK[:, None, :]
    totals = sums_CK.sum(0, keepdims=True)
    estimate = float(value(totals)[0])
    stderr = float(delta(totals, products_CKK.sum(0, keepdims=True))[0])
    if count < 2:
        return Drawn(estimate, math.nan, (-math.inf, math.inf), 1.0)
    if stderr <= 1e-12 * max(1.0, abs(estimate)):  # the same in every cluster, but for rounding
        return Drawn(estimate, 0.0, (estimate, estimate), float(estimate == 0))
    # A long document pulls the ratio towards itself, which the linear standard error doesn't show.
    wide = jackknife(sums_CK, value)
    if count < FEW_CLUSTERS:
        half, p = stats.t.ppf(0.975, count - 1) * wide, 2 * stats.t.sf(abs(estimate) / wide, count - 1)
        return Drawn(estimate, wide, (estimate - half, estimate + half), float(p))
    values_R, errors_R = [], []
    for times_RC in resampled_counts(count, seed, resamples):
        totals_RK = times_RC @ sums_CK
        products_RKK = (times_RC @ products_CKK.reshape(count, -1)).reshape(-1, *products_CKK.shape[1:])
        values_R.append(value(totals_RK))
        errors_R.append(delta(totals_RK, products_RKK))
    found_R, error_R = np.concatenate(values_R), np.concatenate(errors_R)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_R = (found_R - estimate) / error_R
    t_R = t_R[np.isfinite(t_R)]
    below, above = np.quantile(t_R, (0.025, 0.975))
    interval = (estimate - float(above) * wide, estimate - float(below) * wide)
    observed = estimate / wide
    tail = min((t_R >= observed).mean(), (t_R <= observed).mean())
    if tail == 0:  # beyond all resamples: by Student's t, so that many models can be compared at once
        tail = min(1 / (len(t_R) + 1), stats.t.sf(abs(observed), count - 1))
    p = min(1.0, 2 * float(tail))
    return Drawn(estimate, float(found_R.std(ddof=1)), interval, p)


def jackknife(sums_CK: np.ndarray, value: Callable[[np.ndarray], np.ndarray]) -> float:
    """The standard error of a function of totals over clusters, by leaving out each in turn (Tukey 1958)."""
    count = len(sums_CK)
    left_C = value(sums_CK.sum(0) - sums_CK)
    return math.sqrt((count - 1) / count * float(((left_C - left_C.mean()) ** 2).sum()))


def resampled_counts(count: int, seed: int, resamples: int) -> Any:
    """Blocks [R, count] of how often each cluster is in each resample."""
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // count)
    for first in range(0, resamples, rows):
        block = min(rows, resamples - first)
        drawn = rng.integers(count, size=(block, count)) + count * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * count).reshape(block, count).astype(float)


def cluster_sums(values_NK: np.ndarray, clusters: Clusters) -> np.ndarray:
    """The sums [C, K] of values over the items of each cluster; each item by itself without clusters."""
    if clusters is None:
        return values_NK
    same_length(values_NK, clusters)
    number: dict[Hashable, int] = {}
    index_N = np.array([number.setdefault(label, len(number)) for label in clusters])
    return np.stack([np.bincount(index_N, column, len(number)) for column in values_NK.T], 1)


def stderr_of_mean(values_N: np.ndarray, clusters: Clusters) -> tuple[float, int]:
    """The standard error of a mean, and the number of clusters; NaN for a single one."""
    n, residual_NK = len(values_N), (values_N - values_N.mean())[:, None]
    sums_C = cluster_sums(residual_NK, clusters)[:, 0]
    count = len(sums_C)
    if count < 2:
        return math.nan, count
    if np.ptp(values_N) == 0:
        return 0.0, count
    return math.sqrt(count / (count - 1) * float(sums_C @ sums_C)) / n, count


def bonett_price(higher: int, lower: int, n: int) -> tuple[float, float]:
    """The middle and the standard error of the interval of a difference of paired proportions (Bonett and
    Price 2012): Wald's, with (higher + 1) / (n + 2) and (lower + 1) / (n + 2)."""
    up, down = (higher + 1) / (n + 2), (lower + 1) / (n + 2)
    middle = up - down
    return middle, math.sqrt((up + down - middle**2) / (n + 2))


def combined(terms: Sequence[tuple[float, float, tuple[float, float]]]) -> tuple[float, float]:
    """The interval of a weighted sum of independent estimates (weight, value, interval), from their intervals
    alone (the method of variance estimates recovery, Zou and Donner 2008)."""
    value = sum(weight * estimate for weight, estimate, _ in terms)
    below, above = 0.0, 0.0
    for weight, estimate, (low, high) in terms:
        ends = sorted((weight * (low - estimate), weight * (high - estimate)))
        below, above = below + ends[0] ** 2, above + ends[1] ** 2
    return value - math.sqrt(below), value + math.sqrt(above)


def p_of_interval(value: float, interval: tuple[float, float]) -> float:
    """The two-sided p-value of no difference that a 95% interval stands for, by its side towards 0."""
    half = value - interval[0] if value > 0 else interval[1] - value
    if half == 0:
        return 1.0 if value == 0 else 0.0
    return two_sided(Z * value / half) if math.isfinite(half) else 1.0


def two_sided(z: float) -> float:
    """The two-sided p-value of a standard normal z."""
    return math.erfc(abs(z) / math.sqrt(2))


def numbers(values: Values) -> np.ndarray:
    """Values as float64 [n]. Raises ValueError for none, and for some that are not finite."""
    found_N = np.asarray(values, np.float64)
    if found_N.ndim != 1 or not len(found_N):
        raise ValueError(f"a score needs items; there are {found_N.shape}")
    if not np.isfinite(found_N).all():
        raise ValueError("a score of items that are not finite")
    return found_N


def is_binary(values_N: np.ndarray) -> bool:
    """Whether all values are 0 or 1."""
    return bool(((values_N == 0) | (values_N == 1)).all())


def same_length(*columns: Sequence[Any] | np.ndarray) -> None:
    """Raises ValueError unless all have one length, above 0."""
    if len({len(column) for column in columns}) != 1 or not len(columns[0]):
        raise ValueError(f"lengths must be equal and not 0: {[len(column) for column in columns]}")
