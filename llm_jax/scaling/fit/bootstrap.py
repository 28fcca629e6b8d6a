"""Bootstrap resamples, and the intervals computed from them."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from llm_jax.core.errors import check_choice, require

Resampling = Literal["case", "residual", "subsample"]
PART = 0.8
"""The part of the points that a subsample keeps (Hoffmann et al. 2022, section 3)."""
LEVEL = 0.95
"""The probability that an interval covers."""


def check_resampling(resampling: str, bootstrap: int, seed: int) -> None:
    """Raises UserError for an unknown kind of resampling, too few resamples, or a bad seed."""
    check_choice("resampling", resampling, get_args(Resampling))
    check_seed(seed)
    require(bootstrap == 0 or bootstrap >= 20, "bootstrap", bootstrap, "0 for none, or at least 20 refits")


def check_seed(seed: int) -> None:
    """Raises UserError for a negative seed."""
    require(seed >= 0, "seed", seed, "0 or more")


def resampled_weights(resampling: str, used: np.ndarray, count: int, seed: int) -> np.ndarray:
    """[count, n]: how often each point is in each resample; points that are not `used` [n] are in none.

    "case" samples as many points as are used, with replacement; "subsample" keeps 80 % of them; "residual"
    has every point once.
    """
    rng = np.random.default_rng(seed)
    (indices,) = np.nonzero(used)
    weights = np.zeros((count, len(used)))
    if resampling == "case":
        rows = (
            indices[rng.integers(len(indices), size=(count, len(indices)))]
            + len(used) * np.arange(count)[:, None]
        )
        weights = np.bincount(rows.ravel(), minlength=weights.size).reshape(weights.shape).astype(float)
    elif resampling == "subsample":
        kept = max(1, round(PART * len(indices)))
        for row in weights:
            row[rng.permutation(indices)[:kept]] = 1
    else:
        weights[:, indices] = 1
    return weights


def resampled_residuals(
    residuals: np.ndarray, used: np.ndarray, unknown: int, count: int, seed: int
) -> np.ndarray:
    """[count, n] residuals, sampled with replacement from those of the points `used` [n], less their mean.

    They are scaled by the root of n/(n - unknown): a fit of that many parameters is nearer to its points than
    the true law is.
    """
    pool = residuals[used]
    pool = (pool - pool.mean()) * np.sqrt(len(pool) / max(len(pool) - unknown, 1))
    return np.random.default_rng(seed).choice(pool, size=(count, len(residuals)))


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
    return float(widen * draws.std(ddof=1)), (float(low), float(high))
