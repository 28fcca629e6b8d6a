"""Many small robust fits at once: damped Gauss-Newton from thousands of starts or resamples, vectorised in
JAX, in float64.

The objective is `sum_i w_i huber(r_i(theta))`: Huber's loss of the residuals, quadratic up to `delta` and
linear beyond (Huber 1964); `delta` of infinity is least squares. A fit has two phases. The first steps on the
quadratic that majorises Huber's loss (iteratively reweighted least squares): safe from any start, slow near
the minimum. The second weights only the points within `delta`, as Huber's second derivative does: fast near
the minimum. Both are damped (Levenberg-Marquardt): a step that does not lower the objective is rejected, and
the next one is shorter.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Residuals = Callable[[Any, Mapping[str, Any]], Any]
"""residuals(theta [P], data) -> [n]."""
ResidualFn = Callable[[Any, Mapping[str, Any]], tuple[Any, Any]]
"""residual_fn(theta [P], data) -> residuals [n] and their derivatives [n, P]."""

CHUNK = 64
"""Fits of one compiled call. It is one number for one fit and for thousands, so that one compilation serves
both: few enough for the arrays to stay in cache, and for the last call to waste little on copies that fill it
up."""
ROUND = 16
"""Steps of one call; fits that have ended are then replaced by others."""
MAX_STEPS = 500
"""Steps after which a fit counts as not converged."""
COARSE, FINE = 1e-4, 1e-13
"""The first and the second phase end when the predicted decrease of a step is less than this part of the
objective."""
ROUNDING = 1e-28
"""A predicted decrease of no more than this ends a phase too: for data that the law fits exactly."""
MAX_DAMPING = 1e14
"""Damping beyond which steps vanish: no step lowers the objective."""


@dataclass(frozen=True)
class Solutions:
    """The fits from each of S starts."""

    theta: np.ndarray
    """[S, P], the lowest point of each fit."""
    objective: np.ndarray
    """[S]; infinite where it is not finite at the start."""
    converged: np.ndarray
    """[S], bool: ended since no step lowers the objective, within MAX_STEPS."""
    steps: np.ndarray
    """[S], the number of steps taken."""

    @property
    def best(self) -> int:
        """The index of the fit with the lowest objective."""
        return int(np.argmin(self.objective))


def huber(residuals: Any, delta: float) -> Any:
    """Huber's loss of each residual: r²/2 up to `delta`, `delta (|r| - delta/2)` beyond.

    >>> [float(x) for x in huber(np.array([0.5, -3.0]), 1.0)]
    [0.125, 2.5]
    """
    size = abs(residuals)
    near = np.minimum(size, delta) if isinstance(size, np.ndarray) else jnp.minimum(size, delta)
    return near * (size - near / 2)


def float64() -> Any:
    """A context in which JAX computes in float64; the user's setting is unchanged outside of it."""
    return jax.enable_x64(True)


class _State(NamedTuple):
    """The state of one fit (with a leading dim: of several)."""

    theta: Any
    """[P], the best so far; value, gradient, curvature and scale are taken there."""
    move: Any
    """[P], the step to try next."""
    value: Any
    """The objective."""
    gradient: Any
    """[P]"""
    curvature: Any
    """[P, P], of the quadratic model."""
    scale: Any
    """[P], the diagonal that damping multiplies."""
    damping: Any
    """Levenberg-Marquardt's lambda."""
    final: Any
    """bool: whether the fit is in the second phase."""
    done: Any
    """bool: whether the second phase has ended."""
    steps: Any
    """Number of steps tried."""


def minimise(
    residual_fn: ResidualFn,
    starts: np.ndarray,
    data: Mapping[str, np.ndarray],
    weights: np.ndarray,
    delta: float,
    own: Mapping[str, np.ndarray] | None = None,
) -> Solutions:
    """Minimises `sum weights * huber(residuals)` from each start.

    `starts` is [S, P]; `data` are arrays that all starts share, arrays of `own` have a leading dim S;
    `weights` is [n], or [S, n] for resamples.
    """
    starts = np.atleast_2d(np.asarray(starts, np.float64))
    own = {name: np.asarray(values) for name, values in (own or {}).items()}
    weights = np.asarray(weights, np.float64)
    shared: dict[str, np.ndarray] = dict(data)
    (own if weights.ndim == 2 else shared)["weights"] = weights
    state = _initial_state(starts)
    waiting = np.arange(len(starts))

    def advance(chosen: np.ndarray) -> None:
        rows = np.concatenate(
            [chosen, np.repeat(chosen[-1:], CHUNK - len(chosen))]
        )  # padded with copies of the last fit
        with float64():
            own_rows = {name: values[rows] for name, values in own.items()}
            advanced = _advance(
                residual_fn, jax.tree.map(lambda leaf: leaf[rows], state), shared, own_rows, delta
            )
        for leaf, new in zip(state, advanced, strict=True):
            leaf[chosen] = np.asarray(new)[: len(chosen)]

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while len(waiting):
            list(threads.map(advance, [waiting[i : i + CHUNK] for i in range(0, len(waiting), CHUNK)]))
            waiting = waiting[~state.done[waiting] & (state.steps[waiting] < MAX_STEPS)]
    return Solutions(
        state.theta,
        state.value,
        state.done & (state.damping <= MAX_DAMPING) & np.isfinite(state.value),
        state.steps,
    )


def _initial_state(starts: np.ndarray) -> _State:
    """The state [S] of fits before any evaluation: their objective is infinite, and a move of 0 evaluates
    their start."""
    count, unknown = starts.shape
    return _State(
        theta=starts.copy(),
        move=np.zeros_like(starts),
        value=np.full(count, np.inf),
        gradient=np.zeros_like(starts),
        curvature=np.zeros((count, unknown, unknown)),
        scale=np.full_like(starts, 1e-290),
        damping=np.full(count, 1e-2),
        final=np.zeros(count, bool),
        done=np.zeros(count, bool),
        steps=np.zeros(count, int),
    )


@functools.partial(jax.jit, static_argnums=0)
def _advance(residual_fn: ResidualFn, state: _State, shared: Any, own: Any, delta: Any) -> _State:
    """Advances each fit of a chunk by at most ROUND steps."""

    def evaluate(theta: Any, final: Any, data: Any) -> tuple[Any, Any, Any, Any]:
        """The objective, gradient [P], curvature [P, P] and scale [P]."""
        r, jacobian = residual_fn(theta, data)
        size, weights = abs(r), data["weights"]
        value = jnp.sum(weights * huber(r, delta))
        share = weights * jnp.minimum(
            1.0, delta / jnp.maximum(size, 1e-300)
        )  # the slope of Huber's loss is share times r
        counted = jnp.where(final, weights * (size <= delta), share)
        rows = jnp.concatenate([counted[:, None] * jacobian, (share * r)[:, None]], -1)
        products = jnp.einsum("np,nq->pq", rows, jacobian)  # the curvature, and the gradient as last row
        scale = jnp.sum(share[:, None] * jacobian**2, 0)
        return value, products[-1], products[:-1], jnp.maximum(scale, 1e-10 * jnp.max(scale) + 1e-290)

    def step(s: _State, own: Any) -> _State:
        value, *quadratic = evaluate(s.theta + s.move, s.final, {**shared, **own})
        better = value <= s.value
        expected = -(s.gradient @ s.move + s.move @ s.curvature @ s.move / 2)
        ratio = (s.value - value) / jnp.maximum(expected, 1e-300)
        # Nielsen (1999): less damping where the quadratic predicted the decrease well, more where it did not.
        gentler = jnp.where(s.steps == 0, 1.0, jnp.clip(1 - (2 * ratio - 1) ** 3, 1 / 9, 2.0))
        damping = jnp.maximum(s.damping * jnp.where(better, gentler, 8.0), 1e-16)
        theta, value = jnp.where(better, s.theta + s.move, s.theta), jnp.where(better, value, s.value)
        gradient, curvature, scale = (
            jnp.where(better, new, old)
            for new, old in zip(quadratic, (s.gradient, s.curvature, s.scale), strict=True)
        )
        damped = curvature + jnp.diag(damping * scale)
        move = -jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(damped), True), gradient)
        predicted_decrease = -(gradient @ move + move @ curvature @ move / 2)
        ended = (
            (predicted_decrease <= jnp.where(s.final, FINE, COARSE) * value + ROUNDING)
            | (damping > MAX_DAMPING)
            | ~jnp.isfinite(value)
        )
        new = _State(
            theta,
            move,
            value,
            gradient,
            curvature,
            scale,
            damping,
            s.final | ended,
            s.final & ended,
            s.steps + 1,
        )
        return jax.tree.map(lambda after, before: jnp.where(s.done, before, after), new, s)

    def advance_one(s: _State, own: Any) -> _State:
        last = s.steps + ROUND
        return jax.lax.while_loop(lambda s: ~s.done & (s.steps < last), lambda s: step(s, own), s)

    return jax.vmap(advance_one)(state, own)


def residuals_and_jacobian(residuals: Residuals) -> ResidualFn:
    """The residual function for `minimise` of plain residuals, whose derivatives JAX computes."""
    return lambda theta, data: (residuals(theta, data), jax.jacfwd(residuals)(theta, data))


@functools.cache
def with_fixed(residual_fn: ResidualFn, fixed: tuple[int, ...]) -> ResidualFn:
    """A residual function in which the parameters of these numbers stay where they start."""

    def residuals(theta: Any, data: Any) -> tuple[Any, Any]:
        values, slopes = residual_fn(theta, data)
        return values, slopes.at[:, jnp.array(fixed)].set(0.0)

    return residuals if fixed else residual_fn


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(residual_fn: ResidualFn, theta: Any, data: Any) -> Any:
    return residual_fn(theta, data)


def evaluate(
    residual_fn: ResidualFn, theta: np.ndarray, data: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The residuals [n] at theta [P] and their derivatives [n, P], in float64."""
    with float64():
        values, slopes = _evaluate(residual_fn, np.asarray(theta, np.float64), dict(data))
        return np.asarray(values), np.asarray(slopes)


@functools.partial(jax.jit, static_argnums=0)
def _sandwich_terms(
    residual_fn: ResidualFn, theta: Any, data: Any, weights: Any, delta: Any, cells: Any
) -> Any:
    """The Hessian H and the sum of outer products of the cells' gradients, [P, P] each: the two factors of
    `sandwich`."""
    r, jacobian = residual_fn(theta, data)
    slope = weights * jnp.clip(r, -delta, delta)
    bend = jax.jacfwd(jax.grad(lambda t: jnp.vdot(slope, residual_fn(t, data)[0])))(theta)
    spread = 1.4826 * jnp.nanmedian(jnp.where(weights > 0, abs(r), jnp.nan))
    width = jnp.maximum(spread, delta)
    inside = weights * (abs(r) <= width) * jnp.where(jnp.isinf(delta), 1.0, delta / width)
    hessian = jnp.einsum("np,n,nq->pq", jacobian, inside, jacobian) + bend
    gradients = jax.ops.segment_sum(slope[:, None] * jacobian, cells, len(cells))
    return hessian, gradients.T @ gradients


def sandwich(
    residual_fn: ResidualFn,
    theta: np.ndarray,
    data: Mapping[str, np.ndarray],
    weights: np.ndarray,
    delta: float,
    cells: np.ndarray | None = None,
    fixed: tuple[int, ...] = (),
) -> np.ndarray:
    """The covariance [P, P] of an M-estimate, H^-1 (sum psi² J J') H^-1 times n/(n - P) (Huber 1967; White
    1980).

    Where `delta` is less than the residuals' spread, few points are within it, and H, a sum over them, would
    be noise. The density of residuals at 0 is then estimated from the points within one robust standard
    deviation (as Powell 1991 does for quantiles). NaN where the points do not determine theta.

    `cells` [n] numbers the points that are not independent: psi J is summed over each cell, and n counts the
    cells (Liang and Zeger 1986). Parameters of the numbers `fixed` have no variance.
    """
    weights = np.asarray(weights, float)
    cells = np.arange(len(weights)) if cells is None else cells
    with float64():
        hessian, gradients = (
            np.asarray(part)
            for part in _sandwich_terms(
                residual_fn, np.asarray(theta, np.float64), dict(data), weights, delta, cells
            )
        )
    free = np.setdiff1d(np.arange(len(theta)), fixed)
    points, unknown = len(np.unique(cells[weights > 0])), len(free)
    covariance, part = np.zeros_like(hessian), np.ix_(free, free)
    try:
        inverse = np.linalg.inv(hessian[part])
    except np.linalg.LinAlgError:
        covariance[part] = np.nan
        return covariance
    covariance[part] = inverse @ gradients[part] @ inverse * points / max(points - unknown, 1)
    return covariance
