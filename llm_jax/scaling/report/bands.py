"""A figure with its caption, and 95 % bands of curves, from resamples or by the delta method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.scaling.fit import EnvelopeFit, IsoflopFit, ParametricFit
from llm_jax.scaling.fit.bootstrap import LOG_LARGEST, delta_interval
from llm_jax.scaling.fit.law import Law
from llm_jax.scaling.fit.predict import estimates_of, log_slopes, predict

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


def band(fit: Any, function: Callable[[Any], Any]) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % band, lower and upper end [m], of a positive curve function(parameters) [m] of a fit: from its
    resamples, or by the delta method (with Student's t, on the logarithm) where it has none.

    function: parameters by name, numbers or arrays [k, 1], to [m] or [k, m].
    """
    at = estimates_of(fit)
    estimate = np.atleast_1d(function(at))
    if len(fit.draws) > 1:
        many = function(dict(zip(at, (column[:, None] for column in fit.draws.T), strict=True)))
        return interval_band(estimate, many, widening(fit))
    slopes = log_slopes(fit, function)
    variance = np.einsum("mp,pq,mq->m", slopes, np.asarray(fit.covariance), slopes)
    error = np.sqrt(np.maximum(variance, 0.0))
    half = delta_interval(0.0, 1.0, fit.settings["degrees_of_freedom"])[1] * error
    half = np.where(np.isnan(half), LOG_LARGEST, np.minimum(half, LOG_LARGEST))
    return estimate * np.exp(-half), estimate * np.exp(half)


def predicted_band(fit: Any, columns: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % band of what a fit's law predicts for runs with columns [m]."""
    return band(fit, lambda parameters: predict(fit, columns, parameters))


def law_of(parameters: Any) -> Law:
    """The law of N and D with parameters by name."""
    return Law(*(parameters[name] for name in ("E", "A", "B", "alpha", "beta")))


def interval_band(
    estimate: np.ndarray, draws: np.ndarray, widen: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % band, lower and upper end [m], of a positive curve [m] from its resamples [k, m]; quantiles
    and `widen` act on logarithms."""
    log = np.log(estimate)
    low, high = np.nanquantile(np.log(np.maximum(draws, np.exp(-LOG_LARGEST))), [0.025, 0.975], axis=0)
    return np.exp(log + widen * (low - log)), np.exp(log + widen * (high - log))


SizesFit = EnvelopeFit | IsoflopFit | ParametricFit
"""Results of the methods that give N*(C)."""


def optimum(fit: SizesFit, flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N* and D* [m] of budgets [m]."""
    return fit.law.optimal(flops) if isinstance(fit, ParametricFit) else fit.optimal(flops)


def optimum_bands(fit: SizesFit, flops: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The 95 % bands of N*, D* and D*/N* for budgets [m]."""
    if isinstance(fit, ParametricFit):
        return [
            band(fit, lambda p: law_of(p).optimal(flops)[0]),
            band(fit, lambda p: law_of(p).optimal(flops)[1]),
            band(fit, lambda p: np.divide(*law_of(p).optimal(flops)[::-1])),
        ]
    log_c = np.log(flops)[None]
    n0, a, d0, b = (column[:, None] for column in fit.draws.T)
    (n, d), many = optimum(fit, flops), (np.exp(n0 + a * log_c), np.exp(d0 + b * log_c))
    return [
        interval_band(line, draws, widening(fit))
        for line, draws in ((n, many[0]), (d, many[1]), (d / n, many[1] / many[0]))
    ]


def widening(fit: Any) -> float:
    """The factor from the spread of a fit's draws to that of its estimate."""
    return float(fit.settings["widening"])


def is_set(fit: Any) -> bool:
    """Whether the exponent of N*(C) is 1/2 by an option of the fit (tied=true), and no result."""
    return bool(fit.settings.get("tied", False))
