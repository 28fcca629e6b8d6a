"""The power laws N*(C) and D*(C) of approaches 1 and 2: lines through log N* and log D* against log C, and
their errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.result import FitResult

LINES = (("N_coefficient", True), ("a", False), ("D_coefficient", True), ("b", False))
"""The four numbers of a row of draws, and whether the draws hold their logarithm."""


@dataclass(frozen=True, kw_only=True)
class OptimumFit(FitResult):
    """N* = N_coefficient C^a, D* = D_coefficient C^b. `draws` [resamples, 4]: log N_coefficient, a, log
    D_coefficient, b."""

    a: float
    b: float
    a_interval_95: tuple[float, float]

    def optimal(self, flops: Any) -> tuple[Any, Any]:
        """N* and D*, the parameters and tokens of least loss, for a budget in FLOPs (a number or an
        array)."""
        p = self.parameters
        return p["N_coefficient"] * flops ** p["a"], p["D_coefficient"] * flops ** p["b"]


def estimates(
    line_n: np.ndarray, line_d: np.ndarray, draws: np.ndarray, widen: float = 1.0
) -> dict[str, Any]:
    """The fields `a`, `b`, `a_interval_95`, `parameters`, `standard_errors`, `intervals_95` of two lines [2]
    (constant, slope).

    `draws` are [resamples, 4]: both lines of each resample. A coefficient's error is that of its logarithm,
    times itself.
    """
    parameters, errors, intervals = {}, {}, {}
    for (name, is_log), estimate, resampled in zip(
        LINES, np.concatenate([line_n, line_d]), draws.T, strict=True
    ):
        error, interval = boot.spread(float(estimate), resampled, widen)
        parameters[name] = float(np.exp(estimate)) if is_log else float(estimate)
        errors[name] = parameters[name] * error if is_log else error
        intervals[name] = (float(np.exp(interval[0])), float(np.exp(interval[1]))) if is_log else interval
    return {
        "a": parameters["a"], "b": parameters["b"], "a_interval_95": intervals["a"],
        "parameters": parameters, "standard_errors": errors, "intervals_95": intervals,
    }  # fmt: skip


def line_covariance(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, line: np.ndarray
) -> tuple[np.ndarray, float]:
    """The covariance [2, 2] of a weighted line's constant and slope, scaled by its residuals; and the
    weighted mean of their squares."""
    basis = np.stack([np.ones_like(x), x], -1)
    squares = float((weights * (y - basis @ line) ** 2).sum())
    inverse = np.linalg.inv(np.einsum("np,n,nq->pq", basis, weights, basis))
    return inverse * squares / (len(x) - 2), squares / float(weights.sum())


def predicted_optimum(line: np.ndarray, log_c: float, log_n: float) -> dict[str, Any]:
    """Compares the N* that a line [2] through smaller computes predicts at log_c with the measured one,
    log_n."""
    predicted = line[0] + line[1] * log_c
    return {
        "flops": float(np.exp(log_c)),
        "measured_parameters": float(np.exp(log_n)),
        "predicted_parameters": float(np.exp(predicted)),
        "relative_error": float(np.exp(predicted - log_n) - 1),
        "a": float(line[1]),
    }
