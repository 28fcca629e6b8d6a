"""Residuals of the law `E + A/N^alpha + B/D^beta`, and the starts from which Hoffmann et al. fit it."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.scaling.fit.solve import ResidualFn

Scale = Literal["log", "linear"]
"""The residuals of a law: of logarithms, or of the values themselves."""
START_A = START_B = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)


START_E = (-1.0, -0.5, 0.0, 0.5, 1.0)


START_EXPONENT = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Hoffmann et al.'s starts (section D.2): of log A, log B, log E, alpha and beta; 4,500 in all."""


@functools.cache
def law_residuals(scale: str, form: str) -> ResidualFn:
    """The residual function of the law: predicted less measured (log) loss [n], and derivatives [n, P] by
    theta.

    form: "free" (P = 5), "tied" (P = 4, beta = alpha) or "projected" (P = 3, exponents are data).
    """

    def residuals(theta: Any, data: Any) -> tuple[Any, Any]:
        log_n, log_d = data["log_n"], data["log_d"]
        alpha = data["alpha"] if form == "projected" else theta[3]
        beta = data["beta"] if form == "projected" else theta[-1]
        terms = jnp.stack([jnp.full_like(log_n, theta[0]), theta[1] - alpha * log_n, theta[2] - beta * log_d])
        highest = jax.lax.stop_gradient(terms.max(0))  # log-sum-exp: no start overflows
        parts = jnp.exp(terms - highest)
        whole = parts.sum(0)
        predicted, (e, a, b) = highest + jnp.log(whole), parts / whole
        slopes = {
            "projected": [e, a, b],
            "free": [e, a, b, -log_n * a, -log_d * b],
            "tied": [e, a, b, -log_n * a - log_d * b],
        }[form]
        jacobian = jnp.stack(slopes, -1)
        if scale == "linear":
            predicted = jnp.exp(predicted)
            jacobian = predicted[:, None] * jacobian
        return predicted - data["target"], jacobian

    return residuals


@functools.cache
def hoffmann_starts(tied: bool = False) -> np.ndarray:
    """Hoffmann et al.'s starts [4500, 5] of log E, log A, log B, alpha, beta; [900, 4] where beta is tied to
    alpha.

    >>> hoffmann_starts().shape
    (4500, 5)
    """
    axes = [START_E, START_A, START_B, START_EXPONENT] + ([] if tied else [START_EXPONENT])
    return np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], -1)
