"""Lines through log N* and log D* against log C: what approaches 1 and 2 have in common, however they find N*."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.result import plain

LINES = (("N_coefficient", True), ("a", False), ("D_coefficient", True), ("b", False))
"""The four numbers of a row of draws, and whether the draws have the logarithm of it."""


class OptimumFit:
    """N* = N_coefficient C^a, D* = D_coefficient C^b."""

    method: str
    parameters: dict[str, float]

    def optimal(self, flops: Any) -> tuple[Any, Any]:
        """Parameters and tokens of least loss for a budget."""
        p = self.parameters
        return p["N_coefficient"] * flops ** p["a"], p["D_coefficient"] * flops ** p["b"]

    def to_json(self) -> dict[str, Any]:
        """As in fit.json."""
        return {"method": self.method, **plain(self)}


def estimates(line_n: np.ndarray, line_d: np.ndarray, draws: np.ndarray, widen: float = 1.0) -> dict[str, Any]:
    """The fields `parameters`, `standard_errors` and `intervals_95` of two lines (a constant and a slope each).

    `draws` are [resamples, 4]: both lines of each resample. A coefficient's error is that of its logarithm, times itself.
    """
    found: dict[str, Any] = {"parameters": {}, "standard_errors": {}, "intervals_95": {}}
    for (name, is_log), estimate, drawn in zip(LINES, np.concatenate([line_n, line_d]), draws.T, strict=True):
        error, interval = boot.spread(float(estimate), drawn, widen)
        value = float(np.exp(estimate)) if is_log else float(estimate)
        found["parameters"][name] = value
        found["standard_errors"][name] = value * error if is_log else error
        found["intervals_95"][name] = tuple(float(np.exp(end)) for end in interval) if is_log else interval
    return found


def line_covariance(x: np.ndarray, y: np.ndarray, weights: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, float]:
    """[2, 2] of a weighted line's constant and slope, scaled by its residuals; and the weighted mean of their squares."""
    basis = np.stack([np.ones_like(x), x], -1)
    squares = float((weights * (y - basis @ line) ** 2).sum())
    inverse = np.linalg.inv(np.einsum("np,n,nq->pq", basis, weights, basis))
    return inverse * squares / (len(x) - 2), squares / float(weights.sum())


def foretold(line: np.ndarray, log_c: float, log_n: float) -> dict[str, Any]:
    """N* measured at a compute, beside what a line through smaller ones has for it."""
    predicted = line[0] + line[1] * log_c
    return {
        "flops": float(np.exp(log_c)),
        "measured_parameters": float(np.exp(log_n)),
        "predicted_parameters": float(np.exp(predicted)),
        "relative_error": float(np.exp(predicted - log_n) - 1),
        "a": float(line[1]),
    }
