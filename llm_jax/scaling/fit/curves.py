"""Curves through a few points, many at once: Akima's interpolation, parabolas and lines."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import Akima1DInterpolator

from llm_jax.scaling.fit.solve import float64


def akima_curves(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Akima's piecewise cubics (1970), which a distant point does not bend: x [n], y [k, n], at [m] -> [k,
    m].

    x is strictly increasing with n >= 3, and `at` lies within it (NaN beyond).
    """
    return Akima1DInterpolator(x, y, axis=1)(at)


@partial(jax.jit)
def _parabola(x: Any, y: Any, weights: Any) -> Any:
    """Coefficients [3] of the least-squares parabola, the constant first."""
    basis = jnp.stack([jnp.ones_like(x), x, x * x], -1)
    return jnp.linalg.solve(jnp.einsum("np,n,nq->pq", basis, weights, basis), basis.T @ (weights * y))


def fit_parabolas(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares parabolas: x [n], y [k, n], weights [k, n] -> coefficients [k, 3], the constant
    first."""
    with float64():
        return np.asarray(jax.vmap(_parabola, (None, 0, 0))(x, y, weights))


@jax.jit
def _line(x: Any, y: Any, weights: Any) -> Any:
    """Coefficients [2] of the weighted least-squares line: the constant, the slope."""
    total = weights.sum()
    middle_x, middle_y = (weights @ x) / total, (weights @ y) / total
    slope = (weights * (x - middle_x)) @ (y - middle_y) / (weights @ (x - middle_x) ** 2)
    return jnp.stack([middle_y - slope * middle_x, slope])


def fit_lines(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares lines: x [n], y [k, n], weights [k, n] -> constants and slopes [k, 2]."""
    with float64():
        return np.asarray(jax.vmap(_line, (None, 0, 0))(x, y, weights))
