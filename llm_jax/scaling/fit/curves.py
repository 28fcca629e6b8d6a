"""Curves through a few points, many at once: Akima's interpolation and parabolas, and where they are lowest."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.scaling.fit.solve import float64


@jax.jit
def _akima(x: Any, y: Any, at: Any) -> Any:
    """One curve: x [n], y [n], at [m] -> [m]."""
    width = jnp.diff(x)
    inner = jnp.diff(y) / width
    left, right = 2 * inner[0] - inner[1], 2 * inner[-1] - inner[-2]
    slopes = jnp.concatenate([jnp.stack([2 * left - inner[0], left]), inner, jnp.stack([right, 2 * right - inner[-1]])])
    change = abs(jnp.diff(slopes))
    before, after = change[:-2], change[2:]  # each node's slope leans to the side where slopes change less
    sure = before + after > 1e-9 * jnp.max(before + after)
    mixed = (after * slopes[1:-2] + before * slopes[2:-1]) / jnp.where(sure, before + after, 1.0)
    slope = jnp.where(sure, mixed, (slopes[3:] + slopes[:-3]) / 2)
    i = jnp.clip(jnp.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t = (at - x[i]) / width[i]
    rise = y[i + 1] - y[i]
    a, b = slope[i] * width[i] - rise, rise - slope[i + 1] * width[i]
    return (1 - t) * y[i] + t * y[i + 1] + t * (1 - t) * ((1 - t) * a + t * b)


def akima(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Akima's piecewise cubic (1970) through the points, which no point far away bends: x [n], y [k, n], at [m] -> [k, m].

    x rises; n is at least 3.
    """
    with float64():
        return np.asarray(jax.vmap(_akima, (None, 0, None))(x, y, at))


@partial(jax.jit)
def _parabola(x: Any, y: Any, weights: Any) -> Any:
    """Coefficients [3] of the least-squares parabola, the constant first."""
    basis = jnp.stack([jnp.ones_like(x), x, x * x], -1)
    return jnp.linalg.solve(jnp.einsum("np,n,nq->pq", basis, weights, basis), basis.T @ (weights * y))


def parabolas(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Least-squares parabolas: x [n], y [k, n], weights [k, n] -> coefficients [k, 3], the constant first."""
    with float64():
        return np.asarray(jax.vmap(_parabola, (None, 0, 0))(x, y, weights))


@jax.jit
def _line(x: Any, y: Any, weights: Any) -> Any:
    """Coefficients [2] of the weighted least-squares line: the constant, the slope."""
    total = weights.sum()
    middle_x, middle_y = (weights @ x) / total, (weights @ y) / total
    slope = (weights * (x - middle_x)) @ (y - middle_y) / (weights @ (x - middle_x) ** 2)
    return jnp.stack([middle_y - slope * middle_x, slope])


def lines(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares lines: x [n], y [k, n], weights [k, n] -> constants and slopes [k, 2]."""
    with float64():
        return np.asarray(jax.vmap(_line, (None, 0, 0))(x, y, weights))
