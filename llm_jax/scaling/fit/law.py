"""The law of approach 3, `L(N, D) = E + A/N^alpha + B/D^beta` (Hoffmann et al. 2022, eq. 2), and the optimum
that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_jax.scaling.fit.bounded import from_log

NAMES = ("E", "A", "B", "alpha", "beta")
FLOPS_A_WEIGHT = 6.0
"""FLOPs per weight and token, forward and backward: C = 6 N D."""


@dataclass(frozen=True)
class Law:
    """The law's five parameters: numbers, or arrays of one shape for many resamples at once. Losses in nats a
    token."""

    E: Any
    A: Any
    B: Any
    alpha: Any
    beta: Any

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """L(N, D): the loss of a model of N parameters after D tokens, nats a token."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    @property
    def a(self) -> Any:
        """The exponent of N*(C): beta/(alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> Any:
        """The exponent of D*(C): alpha/(alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def G(self) -> Any:
        """The factor of the optimum: N* = G (C/6)^a, D* = (C/6)^b / G (eq. 4)."""
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    def optimal(self, flops: Any) -> tuple[Any, Any]:
        """N* and D*, the parameters and tokens of least loss for C = 6 N D FLOPs.

        >>> law = Law(1.69, 406.4, 410.7, 0.34, 0.28)
        >>> n, d = law.optimal(5.76e23)
        >>> print(f"{n:.3g} {d:.3g} {6 * n * d:.3g}")
        3.22e+10 2.98e+12 5.76e+23
        """
        each = flops / FLOPS_A_WEIGHT
        return self.G * each**self.a, each**self.b / self.G


def from_theta(theta: np.ndarray, tied: bool = False) -> Law:
    """The law of theta [..., 5]: log E, log A, log B, alpha, beta; tied: [..., 4], with beta = alpha."""
    e, a, b, alpha, beta = (
        np.moveaxis(theta, -1, 0) if not tied else np.moveaxis(theta[..., [0, 1, 2, 3, 3]], -1, 0)
    )
    return Law(from_log(e), np.exp(a), np.exp(b), alpha, beta)
