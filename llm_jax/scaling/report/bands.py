"""A figure with its caption, and what figures have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.scaling.fit import EnvelopeFit, IsoflopFit, ParametricFit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawn:
    """A figure of the report."""

    name: str
    """Its file, without .png."""
    figure: Figure
    caption: str
    """What is seen, with numbers."""


def band(estimate: np.ndarray, draws: np.ndarray, widen: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % band [m] of a positive curve [m] from its resamples [k, m], in its logarithm."""
    log = np.log(estimate)
    low, high = np.nanquantile(np.log(draws), [0.025, 0.975], axis=0)
    return np.exp(log + widen * (low - log)), np.exp(log + widen * (high - log))


SizesFit = EnvelopeFit | IsoflopFit | ParametricFit
"""Fits that know N*(C)."""


def optimum(fit: SizesFit, flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N* and D* [m] of budgets [m]."""
    return fit.law.optimal(flops) if isinstance(fit, ParametricFit) else fit.optimal(flops)


def optimum_draws(fit: SizesFit, flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of every resample: [k, m] each."""
    if not isinstance(fit, ParametricFit):
        log_c = np.log(flops)[None]
        n0, a, d0, b = (column[:, None] for column in fit.draws.T)
        return np.exp(n0 + a * log_c), np.exp(d0 + b * log_c)
    return type(fit.law)(*(column[:, None] for column in fit.draws.T)).optimal(flops[None])


def widening(fit: Any) -> float:
    """What the spread of a fit's draws is to be multiplied with."""
    return float(fit.settings["widening"])
