"""Bootstrap resamples, and the intervals computed from them."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from scipy import stats

from llm_jax.core.errors import check_choice, require

Resampling = Literal["case", "residual", "subsample"]
PART = 0.8
"""The part of the points that a subsample keeps (Hoffmann et al. 2022, section 3)."""
LEVEL = 0.95
"""The probability that an interval covers."""
LOG_LARGEST = 300.0
"""Intervals end at this logarithm of a factor, before they are infinite."""


def check_resampling(resampling: str, bootstrap: int, seed: int) -> None:
    """Raises UserError for an unknown kind of resampling, too few resamples, or a bad seed."""
    check_choice("resampling", resampling, get_args(Resampling))
    check_seed(seed)
    require(bootstrap == 0 or bootstrap >= 20, "bootstrap", bootstrap, "0 for none, or at least 20 refits")


def check_seed(seed: int) -> None:
    """Raises UserError for a negative seed."""
    require(seed >= 0, "seed", seed, "0 or more")


def resampled_weights(
    resampling: str, used: np.ndarray, count: int, seed: int, cells: np.ndarray | None = None
) -> np.ndarray:
    """[count, n]: how often each point is in each resample; points that are not `used` [n] are in none.

    "case" samples as many points as are used, with replacement; "subsample" keeps 80 % of them; "residual"
    has every point once. `cells` [n] numbers the points that are not independent, runs of one size and number
    of tokens: these are sampled together.
    """
    rng = np.random.default_rng(seed)
    cells = np.arange(len(used)) if cells is None else cells
    chosen = np.unique(cells[used])  # the cells that have points
    times = np.zeros((count, cells.max() + 1))
    if resampling == "case":
        rows = (
            chosen[rng.integers(len(chosen), size=(count, len(chosen)))]
            + times.shape[1] * np.arange(count)[:, None]
        )
        times = np.bincount(rows.ravel(), minlength=times.size).reshape(times.shape).astype(float)
    elif resampling == "subsample":
        kept = max(1, round(PART * len(chosen)))
        for row in times:
            row[rng.permutation(chosen)[:kept]] = 1
    else:
        times[:, chosen] = 1
    return times[:, cells] * used


def resampled_residuals(
    residuals: np.ndarray,
    used: np.ndarray,
    unknown: int,
    count: int,
    seed: int,
    cells: np.ndarray | None = None,
) -> np.ndarray:
    """[count, n] residuals, sampled with replacement from those of the points `used` [n], less their mean.

    They are scaled by the root of n/(n - unknown): a fit of that many parameters is nearer to its points than
    the true law is. The points of a cell, by `cells` [n], have one residual.
    """
    cells = np.arange(len(used)) if cells is None else cells
    pool, points = residuals[used], len(np.unique(cells[used]))
    pool = (pool - pool.mean()) * np.sqrt(points / max(points - unknown, 1))
    return np.random.default_rng(seed).choice(pool, size=(count, cells.max() + 1))[:, cells]


def widening(resampling: str, points: int) -> float:
    """The factor from the spread of resamples to that of the estimate.

    A subsample shares most of its points with the whole table: its spread is that of a delete-d jackknife, to
    be multiplied by the root of kept/left out (Shao and Wu 1989), which is 2 for 80 %. Papers that print a
    subsample's own percentiles print half of the spread.
    """
    if resampling != "subsample":
        return 1.0
    kept = max(1, round(PART * points))
    return float(np.sqrt(kept / max(points - kept, 1)))


def spread(estimate: float, draws: np.ndarray, widen: float = 1.0) -> tuple[float, tuple[float, float]]:
    """The standard error and the 95 % percentile interval of an estimate from its resamples [k]; `widen` as
    from `widening`.

    >>> error, (low, high) = spread(2.0, np.linspace(1, 3, 2001))
    >>> print(f"{error:.3f} {low:.2f} {high:.2f}")
    0.578 1.05 2.95
    """
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if widen != 1.0:
        low, high = estimate + widen * (low - estimate), estimate + widen * (high - estimate)
    with np.errstate(over="ignore"):  # a coefficient beyond all numbers has an infinite error
        return float(widen * draws.std(ddof=1)), (float(low), float(high))


def standard_errors(variances: Any) -> np.ndarray:
    """The square roots of variances by the delta method; infinite where one is negative or no number, since
    the runs then don't determine what it is of.

    >>> print(standard_errors([4.0, -1.0, float("nan")]))
    [ 2. inf inf]
    """
    variances = np.asarray(variances, np.float64)
    known = variances >= 0
    return np.where(known, np.sqrt(np.where(known, variances, 0.0)), np.inf)


def delta_interval(
    estimate: float, error: float, freedom: int, positive: bool = False
) -> tuple[float, float]:
    """The 95 % interval of an estimate with a standard error by the delta method, by Student's t with so many
    degrees of freedom; that of a positive constant is symmetric in its logarithm.

    >>> print("{:.2f} {:.2f}".format(*delta_interval(2.0, 0.1, 1000)))
    1.80 2.20
    >>> print("{:.2f} {:.1f}".format(*delta_interval(2.0, 0.2, 1, positive=True)))
    0.56 7.1
    """
    half = float(stats.t.ppf((1 + LEVEL) / 2, max(freedom, 1))) * error
    if positive and estimate > 0:
        ends = np.clip(np.array([-half, half]) / estimate, -LOG_LARGEST, LOG_LARGEST)
        return float(estimate * np.exp(ends[0])), float(estimate * np.exp(ends[1]))
    return float(estimate - half), float(estimate + half)
