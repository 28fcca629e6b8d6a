"""Fits whose parameters have limits at which they may end: a floor of 0, an accuracy of 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.scaling.fit.solve import ResidualFn, Solutions, minimise, with_fixed

Floor = Literal["free"] | float
"""The loss that a law tends to: fitted, or a number (0: none)."""
FLAT = 1e-3
"""A resample that has not converged has ended at a limit if its objective there is higher by less than this
part."""
LOG_ZERO = -700.0
"""The logarithm that stands for a parameter of 0."""
VISIBLE = 1e-4
"""A term that is nowhere more than this part of the loss is not determined by the data."""


@dataclass(frozen=True)
class Limit:
    """A limit of the parameter of this number in theta: beyond `low` (or `high`) it is held at `at_low`
    (`at_high`), and the others are fitted again."""

    index: int
    low: float = -np.inf
    at_low: float = -np.inf
    high: float = np.inf
    at_high: float = np.inf


def floor_limit(index: int, lowest: float) -> Limit:
    """The limit of the logarithm of a floor: below any visible part of the lowest loss it is 0."""
    return Limit(index, low=float(np.log(VISIBLE * lowest)), at_low=LOG_ZERO)


def check_floor(floor: Floor, lowest: float) -> None:
    """Raises UserError unless a floor that is given is below all losses."""
    if floor != "free" and not 0 <= float(floor) < lowest:
        raise UserError(f"floor={floor}: must be free, or a loss from 0 to below the lowest, {lowest:.4g}")


def log_of(value: float) -> float:
    """The logarithm of a parameter, 0 as `LOG_ZERO`."""
    return float(np.log(value)) if value > 0 else LOG_ZERO


def from_log(log: Any) -> Any:
    """The parameter of a logarithm, 0 of `LOG_ZERO`; infinite beyond float64, as runs that determine nothing
    may leave it."""
    with np.errstate(over="ignore"):
        return np.where(np.asarray(log) <= LOG_ZERO, 0.0, np.exp(log))[()]


def minimise_within(
    residual_fn: ResidualFn,
    starts: np.ndarray,
    data: Mapping[str, np.ndarray],
    weights: np.ndarray,
    delta: float,
    own: Mapping[str, np.ndarray] | None = None,
    limits: Sequence[Limit] = (),
    held: tuple[int, ...] = (),
) -> Solutions:
    """As `solve.minimise`, with parameters that end at their limits, or are `held` where they start.

    A solution beyond a limit is fitted again with that parameter held there: right where the objective has
    one minimum along the others.
    """
    starts, weights = np.atleast_2d(np.asarray(starts, float)), np.asarray(weights, float)
    found = minimise(with_fixed(residual_fn, held), starts, data, weights, delta, own)
    fixed = np.zeros(starts.shape, bool)
    fixed[:, list(held)] = True

    def again(rows: np.ndarray, theta: np.ndarray, pattern: np.ndarray) -> Solutions:
        """The solutions `rows` from `theta` [rows, P], with the parameters of `pattern` [P] held there."""
        return minimise(
            with_fixed(residual_fn, tuple(int(i) for i in np.flatnonzero(pattern))),
            theta,
            data,
            weights[rows] if weights.ndim == 2 else weights,
            delta,
            {name: np.asarray(values)[rows] for name, values in (own or {}).items()},
        )

    if weights.ndim == 2:  # resamples that are still on their way to a limit, along a flat valley
        for limit in limits:
            rows = ~found.converged & np.isfinite(found.objective)
            if not rows.any():
                break
            theta, pattern = found.theta[rows].copy(), fixed[0].copy()
            theta[:, limit.index], pattern[limit.index] = limit.at_low, True
            ended = again(rows, theta, pattern)
            there = ended.converged & (ended.objective <= (1 + FLAT) * found.objective[rows])
            rows[rows] = there
            found = replaced(found, rows, subset(ended, there))
            fixed[rows] = pattern
    for _ in limits:
        theta, before = found.theta.copy(), fixed.copy()
        for limit in limits:
            column = theta[:, limit.index]
            for beyond, at in ((column < limit.low, limit.at_low), (column > limit.high, limit.at_high)):
                new = beyond & ~fixed[:, limit.index]
                theta[new, limit.index] = at
                fixed[new, limit.index] = True
        changed = (fixed != before).any(1)
        if not changed.any():
            break
        for pattern in np.unique(fixed[changed], axis=0):
            rows = changed & (fixed == pattern).all(1)
            found = replaced(found, rows, again(rows, theta[rows], pattern))
    return found


def subset(found: Solutions, rows: np.ndarray) -> Solutions:
    """The solutions of `rows` [S], bool."""
    return Solutions(found.theta[rows], found.objective[rows], found.converged[rows], found.steps[rows])


def replaced(found: Solutions, rows: np.ndarray, again: Solutions) -> Solutions:
    """The solutions with those of `rows` [S], bool, in place of the former ones."""
    parts = []
    for name in ("theta", "objective", "converged", "steps"):
        part = getattr(found, name).copy()
        part[rows] = getattr(again, name)
        parts.append(part)
    return Solutions(*parts)


def inside(theta: np.ndarray, limits: Sequence[Limit], start: Mapping[int, float]) -> np.ndarray:
    """theta [P] as a start for other data: parameters at a limit, from which no slope leads away, begin at
    `start` (their number → a value inside)."""
    made = np.array(theta, float)
    for limit in limits:
        if made[limit.index] in (limit.at_low, limit.at_high):
            made[limit.index] = start[limit.index]
    return made
