"""Many small robust fits at once: damped Gauss-Newton from thousands of starts or resamples, vectorised in JAX, in float64.

What is minimised is `sum_i w_i huber(r_i(theta))`: Huber's loss of the residuals, quadratic up to `delta` and linear beyond
(Huber 1964); `delta` of infinity is least squares. A fit goes in two parts. The first takes its steps on the quadratic that
majorises Huber's loss (iteratively reweighted least squares), which is safe from anywhere and slow in the end. The second counts
only the points within `delta`, as Huber's second derivative does, which is fast near the end. Both are damped as Levenberg and
Marquardt do: a step that does not lower the objective is not taken, and the next one is shorter.
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
"""residuals(theta [P], data) -> [n]: what Huber's loss is taken of."""
Look = Callable[[Any, Mapping[str, Any]], tuple[Any, Any]]
"""look(theta [P], data) -> residuals [n] and their derivatives [n, P]."""

CHUNK = 64
"""Fits of one compiled call, so that one compilation does for a single fit and for thousands: few enough for their arrays to stay
in cache, and for little to be wasted on copies in the last calls."""
ROUND = 16
"""Steps of one call; fits that have ended make room for others then."""
MOST_STEPS = 500
"""Steps of a fit, at most."""
COARSE, FINE = 1e-4, 1e-13
"""A part ends when a step promises to lower the objective by less than this part of it."""
SMALLEST = 1e-28
"""A promise that is rounding, whatever the objective: for data that the law fits exactly."""
STUCK = 1e14
"""Damping at which a step is nothing: there is no way down."""


@dataclass(frozen=True)
class Solutions:
    """What came of each start."""

    theta: np.ndarray
    """[S, P]"""
    objective: np.ndarray
    """[S]; infinite where the start has none."""
    converged: np.ndarray
    """[S], bool: ended because no step promised anything, not for want of steps."""
    steps: np.ndarray
    """[S]"""

    @property
    def best(self) -> int:
        """The start that got lowest."""
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
    """A context in which JAX computes in float64, whatever the user's setting, which stays as it is."""
    return jax.enable_x64(True)


class _State(NamedTuple):
    """One fit on its way: the best theta so far with what was seen there, and the step to try next."""

    theta: Any
    move: Any
    value: Any
    gradient: Any
    curvature: Any
    scale: Any
    damping: Any
    final: Any
    """Whether it is in the second part."""
    done: Any
    steps: Any


def minimise(
    look: Look,
    starts: np.ndarray,
    data: Mapping[str, np.ndarray],
    weights: np.ndarray,
    delta: float,
    own: Mapping[str, np.ndarray] | None = None,
) -> Solutions:
    """Minimises `sum weights * huber(residuals)` from each start.

    `starts` is [S, P]; `data` is what all starts share, `own` has a leading dim S; `weights` is [n], or [S, n] for resamples.
    """
    starts = np.atleast_2d(np.asarray(starts, np.float64))
    own = {name: np.asarray(values) for name, values in (own or {}).items()}
    weights = np.asarray(weights, np.float64)
    shared: dict[str, np.ndarray] = dict(data)
    (own if weights.ndim == 2 else shared)["weights"] = weights
    state = _first(starts)
    waiting = np.arange(len(starts))

    def advance(chosen: np.ndarray) -> None:
        rows = np.concatenate([chosen, np.repeat(chosen[-1:], CHUNK - len(chosen))])  # filled up with copies of the last
        with float64():
            mine = {name: values[rows] for name, values in own.items()}
            ahead = _advance(look, jax.tree.map(lambda leaf: leaf[rows], state), shared, mine, delta)
        for leaf, new in zip(state, ahead, strict=True):
            leaf[chosen] = np.asarray(new)[: len(chosen)]

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while len(waiting):
            list(threads.map(advance, [waiting[i : i + CHUNK] for i in range(0, len(waiting), CHUNK)]))
            waiting = waiting[~state.done[waiting] & (state.steps[waiting] < MOST_STEPS)]
    return Solutions(state.theta, state.value, state.done & (state.damping <= STUCK) & np.isfinite(state.value), state.steps)


def _first(starts: np.ndarray) -> _State:
    """The state of fits that have not seen anything yet: their first step is to their start."""
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
def _advance(look: Look, state: _State, shared: Any, own: Any, delta: Any) -> _State:
    """Each fit some steps further."""

    def see(theta: Any, final: Any, data: Any) -> tuple[Any, Any, Any, Any]:
        r, jacobian = look(theta, data)
        size, weights = abs(r), data["weights"]
        value = jnp.sum(weights * huber(r, delta))
        share = weights * jnp.minimum(1.0, delta / jnp.maximum(size, 1e-300))  # the slope of Huber's loss is share times r
        counted = jnp.where(final, weights * (size <= delta), share)
        rows = jnp.concatenate([counted[:, None] * jacobian, (share * r)[:, None]], -1)
        both = jnp.einsum("np,nq->pq", rows, jacobian)  # the curvature, and the gradient below it
        scale = jnp.sum(share[:, None] * jacobian**2, 0)
        return value, both[-1], both[:-1], jnp.maximum(scale, 1e-10 * jnp.max(scale) + 1e-290)

    def step(s: _State, own: Any) -> _State:
        value, *seen = see(s.theta + s.move, s.final, {**shared, **own})
        better = value <= s.value
        promised = -(s.gradient @ s.move + s.move @ s.curvature @ s.move / 2)
        ratio = (s.value - value) / jnp.maximum(promised, 1e-300)
        # Nielsen (1999): less damping where the quadratic foretold the change, more where it did not.
        gentler = jnp.where(s.steps == 0, 1.0, jnp.clip(1 - (2 * ratio - 1) ** 3, 1 / 9, 2.0))
        damping = jnp.maximum(s.damping * jnp.where(better, gentler, 8.0), 1e-16)
        theta, value = jnp.where(better, s.theta + s.move, s.theta), jnp.where(better, value, s.value)
        gradient, curvature, scale = (jnp.where(better, new, old) for new, old in zip(seen, (s.gradient, s.curvature, s.scale), strict=True))
        damped = curvature + jnp.diag(damping * scale)
        move = -jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(damped), True), gradient)
        hope = -(gradient @ move + move @ curvature @ move / 2)
        ended = (hope <= jnp.where(s.final, FINE, COARSE) * value + SMALLEST) | (damping > STUCK) | ~jnp.isfinite(value)
        new = _State(theta, move, value, gradient, curvature, scale, damping, s.final | ended, s.final & ended, s.steps + 1)
        return jax.tree.map(lambda after, before: jnp.where(s.done, before, after), new, s)

    def one(s: _State, own: Any) -> _State:
        last = s.steps + ROUND
        return jax.lax.while_loop(lambda s: ~s.done & (s.steps < last), lambda s: step(s, own), s)

    return jax.vmap(one)(state, own)


@functools.cache
def automatic(residuals: Residuals) -> Look:
    """What `minimise` wants of a law whose derivatives JAX takes."""
    return lambda theta, data: (residuals(theta, data), jax.jacfwd(residuals)(theta, data))


@functools.partial(jax.jit, static_argnums=0)
def _bread_and_meat(look: Look, theta: Any, data: Any, weights: Any, delta: Any) -> Any:
    r, jacobian = look(theta, data)
    slope = weights * jnp.clip(r, -delta, delta)
    bend = jax.jacfwd(jax.grad(lambda t: jnp.vdot(slope, look(t, data)[0])))(theta)
    spread = 1.4826 * jnp.nanmedian(jnp.where(weights > 0, abs(r), jnp.nan))
    width = jnp.maximum(spread, delta)
    inside = weights * (abs(r) <= width) * jnp.where(jnp.isinf(delta), 1.0, delta / width)
    bread = jnp.einsum("np,n,nq->pq", jacobian, inside, jacobian) + bend
    return bread, jnp.einsum("np,n,nq->pq", jacobian, slope**2, jacobian)


def sandwich(look: Look, theta: np.ndarray, data: Mapping[str, np.ndarray], weights: np.ndarray, delta: float) -> np.ndarray:
    """[P, P]: the covariance of an M-estimate, H^-1 (sum psi² J J') H^-1 with n/(n - P) (Huber 1967; White 1980).

    Where `delta` is less than the residuals' spread, few points are within it, and H, their sum, would be noise. The density of
    residuals at 0 is then taken from those within one robust standard deviation (as Powell 1991 does for quantiles).
    Not a number where the points do not determine theta.
    """
    with float64():
        bread, meat = (np.asarray(part) for part in _bread_and_meat(look, np.asarray(theta, np.float64), dict(data), weights, delta))
    points, unknown = int((np.asarray(weights) > 0).sum()), len(theta)
    try:
        inverse = np.linalg.inv(bread)
    except np.linalg.LinAlgError:
        return np.full_like(bread, np.nan)
    return inverse @ meat @ inverse * points / max(points - unknown, 1)
