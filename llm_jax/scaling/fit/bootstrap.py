"""Resamples, and the intervals that come of them."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from llm_jax.core.errors import check_choice, require

Resampling = Literal["case", "residual", "subsample"]
PART = 0.8
"""The part of the points that a subsample keeps (Hoffmann et al. 2022, section 3)."""
LEVEL = 0.95


def check_resampling(resampling: str, bootstrap: int, seed: int) -> None:
    """Raises UserError for what can't be resampled so."""
    check_choice("resampling", resampling, get_args(Resampling))
    check_seed(seed)
    require(bootstrap == 0 or bootstrap >= 20, "bootstrap", bootstrap, "0 for none, or at least 20 refits")


def check_seed(seed: int) -> None:
    """Raises UserError for what is no seed."""
    require(seed >= 0, "seed", seed, "0 or more")


def resampled_weights(resampling: str, used: np.ndarray, count: int, seed: int) -> np.ndarray:
    """[count, n]: how often each point is in each resample. `used` is [n], bool: points left out are in none.

    "case" draws as many points as there are, with replacement; "subsample" keeps 80 % of them; "residual" has every point once.
    """
    rng = np.random.default_rng(seed)
    (there,) = np.nonzero(used)
    weights = np.zeros((count, len(used)))
    if resampling == "case":
        drawn = there[rng.integers(len(there), size=(count, len(there)))] + len(used) * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=weights.size).reshape(weights.shape).astype(float)
    elif resampling == "subsample":
        kept = max(1, round(PART * len(there)))
        for row in weights:
            row[rng.permutation(there)[:kept]] = 1
    else:
        weights[:, there] = 1
    return weights


def resampled_residuals(residuals: np.ndarray, used: np.ndarray, unknown: int, count: int, seed: int) -> np.ndarray:
    """[count, n] residuals, drawn with replacement from those of the points used, less their mean.

    They are made larger by the root of n/(n - unknown): a fit of so many unknown numbers goes nearer to its points than the truth does.
    """
    pool = residuals[used]
    pool = (pool - pool.mean()) * np.sqrt(len(pool) / max(len(pool) - unknown, 1))
    return np.random.default_rng(seed).choice(pool, size=(count, len(residuals)))


def widening(resampling: str, points: int) -> float:
    """How much wider the spread of estimates is than that of resamples.

    A subsample shares most of its points with the whole: the spread is that of a delete-d jackknife, and is to be multiplied with
    the root of kept/left out (Shao and Wu 1989), 2 for 80 %. Papers that print a subsample's own percentiles print half.
    """
    if resampling != "subsample":
        return 1.0
    kept = max(1, round(PART * points))
    return float(np.sqrt(kept / max(points - kept, 1)))


def spread(estimate: float, draws: np.ndarray, widen: float = 1.0) -> tuple[float, tuple[float, float]]:
    """The standard error and the 95 % percentile interval of an estimate from its resamples.

    >>> error, (low, high) = spread(2.0, np.linspace(1, 3, 2001))
    >>> print(f"{error:.3f} {low:.2f} {high:.2f}")
    0.578 1.05 2.95
    """
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if widen != 1.0:
        low, high = estimate + widen * (low - estimate), estimate + widen * (high - estimate)
    return float(widen * draws.std(ddof=1)), (float(low), float(high))
