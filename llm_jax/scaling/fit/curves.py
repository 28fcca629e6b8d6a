"""Curves through a few points, many at once: Akima's interpolation, parabolas and lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import Akima1DInterpolator, PPoly

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


@dataclass(frozen=True)
class LossCurves:
    """k curves of loss over the log sizes x [n], each a polynomial of degree 3 or less between two sizes."""

    x: np.ndarray
    pieces: np.ndarray
    """Coefficients [4, n - 1, k], the highest power first, about the left end of each interval."""
    of_log: bool = False
    """Whether the polynomials are those of log loss."""

    def loss(self, at: np.ndarray) -> np.ndarray:
        """The losses [k, m] at log sizes [m]."""
        value = PPoly(self.pieces, self.x)(at).T
        return np.exp(value) if self.of_log else value

    def minima(self) -> np.ndarray:
        """The log size [k] of each curve's lowest loss: a zero of a polynomial's slope, or a size of x."""
        a, b, c, d = self.pieces
        width = np.diff(self.x)[:, None]
        with np.errstate(all="ignore"):  # where a slope has no zero, or one that is not needed
            root = np.sqrt(b * b - 3 * a * c)
            far = -(b + np.where(b >= 0, root, -root))  # in the order that does not cancel
            zeros = np.stack([np.zeros_like(b), far / (3 * a), c / far, width + 0 * b])
        zeros = np.where((zeros >= 0) & (zeros <= width), zeros, 0.0)
        values = ((a * zeros + b) * zeros + c) * zeros + d
        places = (self.x[:-1, None] + zeros).reshape(-1, a.shape[-1])
        return places[values.reshape(places.shape).argmin(0), np.arange(a.shape[-1])]


def akima_curve(x: np.ndarray, loss: np.ndarray) -> LossCurves:
    """Akima's curves of log loss: log N [n], loss [k, n]."""
    return LossCurves(x, Akima1DInterpolator(x, np.log(loss), axis=1).c, of_log=True)


def parabola_curve(x: np.ndarray, loss: np.ndarray) -> LossCurves:
    """Least-squares parabolas of loss against log N: log N [n], loss [k, n]."""
    return LossCurves(x, parabola_pieces(x, fit_parabolas(x - x.mean(), loss, np.ones_like(loss))))


def local_parabola_curve(x: np.ndarray, loss: np.ndarray) -> LossCurves:
    """Parabolas through the lowest size and its two neighbours, straight lines beyond these: log N [n], loss
    [k, n]."""
    lowest_size = np.clip(loss.argmin(-1), 1, len(x) - 2)
    weights = np.zeros_like(loss)
    weights[np.arange(len(loss))[:, None], lowest_size[:, None] + np.array([-1, 0, 1])] = 1
    parabolas = parabola_pieces(x, fit_parabolas(x - x.mean(), loss, weights))
    lines = np.zeros_like(parabolas)
    lines[2:] = (np.diff(loss) / np.diff(x)).T, loss[:, :-1].T
    interval = np.arange(len(x) - 1)[:, None]
    near = (interval == lowest_size - 1) | (interval == lowest_size)
    return LossCurves(x, np.where(near, parabolas, lines))


def parabola_pieces(x: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Parabolas about the middle of x [n], coefficients [k, 3] with the constant first, as pieces [4, n - 1,
    k]."""
    constant, slope, bend = coefficients.T
    left = (x[:-1] - x.mean())[:, None]
    flat = np.zeros((len(x) - 1, len(coefficients)))
    return np.stack([flat, bend + flat, slope + 2 * bend * left, constant + (slope + bend * left) * left])


CURVES = {"akima": akima_curve, "parabola": parabola_curve, "parabola_local": local_parabola_curve}
