"""A figure with its caption, and 95 % bands of curves from resamples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.scaling.fit import EnvelopeFit, IsoflopFit, ParametricFit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report, with its file name and caption."""

    name: str
    """File name without .png."""
    figure: Figure
    caption: str
    """What the figure shows, with numbers."""


def interval_band(
    estimate: np.ndarray, draws: np.ndarray, widen: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % band, lower and upper end [m], of a positive curve [m] from its resamples [k, m]; quantiles
    and `widen` act on logarithms."""
    log = np.log(estimate)
    low, high = np.nanquantile(np.log(draws), [0.025, 0.975], axis=0)
    return np.exp(log + widen * (low - log)), np.exp(log + widen * (high - log))


SizesFit = EnvelopeFit | IsoflopFit | ParametricFit
"""Results of the methods that give N*(C)."""


def optimum(fit: SizesFit, flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N* and D* [m] of budgets [m]."""
    return fit.law.optimal(flops) if isinstance(fit, ParametricFit) else fit.optimal(flops)


def optimum_draws(fit: SizesFit, flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N* and D* [k, m] of budgets [m] from each of k resamples."""
    if not isinstance(fit, ParametricFit):
        log_c = np.log(flops)[None]
        n0, a, d0, b = (column[:, None] for column in fit.draws.T)
        return np.exp(n0 + a * log_c), np.exp(d0 + b * log_c)
    return type(fit.law)(*(column[:, None] for column in fit.draws.T)).optimal(flops[None])


def widening(fit: Any) -> float:
    """The factor from the spread of a fit's draws to that of its estimate."""
    return float(fit.settings["widening"])
