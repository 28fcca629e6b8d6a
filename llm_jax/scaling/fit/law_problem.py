"""The law of approach 3 as a problem for the solver: its fits, refits, and what they are refused for."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.bounded import (
    LOG_ZERO,
    VISIBLE,
    Floor,
    floor_limit,
    inside,
    log_of,
    minimise_within,
)
from llm_jax.scaling.fit.law import NAMES, Law, from_theta
from llm_jax.scaling.fit.law_checks import as_tuple, check_points, values_by_name
from llm_jax.scaling.fit.law_residuals import hoffmann_starts, law_residuals
from llm_jax.scaling.fit.outliers import ROBUST, TIMES, FarRuns, find_far
from llm_jax.scaling.fit.repeats import cell_numbers
from llm_jax.scaling.fit.result import largest_runs
from llm_jax.scaling.fit.solve import Solutions, minimise, sandwich, with_fixed

EXPONENTS = np.geomspace(0.04, 1.6, 22)
"""The grid of alpha and of beta in variable projection."""
CELLS = 16
"""Number of best cells of the grid from which all five parameters are fitted."""
DROPS = (0, 1, 3, 5, 10, 15)
"""Numbers of highest losses that are dropped in turn, to see how far the exponents depend on them."""
LEAST_EXPONENT, LARGE_EXPONENT, GREATEST_EXPONENT = 0.01, 3.0, 30.0
"""Bounds of the exponents: beyond them a power is indistinguishable from a constant, or from a step. Between
the last two it has to be known to half of its value."""
SAME_OBJECTIVE = 1e-7
"""Objectives that differ by less than this part count as one minimum."""


class Problem:
    """The runs as arrays for the solver, and the ways to fit them. `theta` [P] is log E, log A, log B, alpha
    and (unless tied) beta. used [n]: the runs that the floor is below."""

    def __init__(
        self,
        table: dict[str, np.ndarray],
        scale: str,
        delta: float,
        tied: bool,
        floor: Floor = "free",
        used: np.ndarray | None = None,
    ) -> None:
        self.table, self.scale, self.delta, self.tied, self.floor = table, scale, delta, tied, floor
        self.data = {
            "log_n": np.log(table["parameters"]),
            "log_d": np.log(table["tokens"]),
            "target": self.target(table["loss"]),
        }
        self.cells = cell_numbers(table, ("parameters", "tokens"))
        self.residual_fn = law_residuals(scale, "tied" if tied else "free")
        self.lowest = float(table["loss"][... if used is None else used].min())
        self.limits = [floor_limit(0, self.lowest)] if floor == "free" else []

    def target(self, loss: np.ndarray) -> np.ndarray:
        """The values [n] that the law is fitted to: log losses, or losses with linear residuals."""
        return np.log(loss) if self.scale == "log" else loss

    def points(self, used: np.ndarray) -> int:
        """The number of different runs: those of one (N, D) count once."""
        return len(np.unique(self.cells[used]))

    def held(self, theta: np.ndarray) -> tuple[int, ...]:
        """The parameters that are no part of the fit: a floor that is given, or at 0."""
        return (0,) if self.floor != "free" or theta[0] == LOG_ZERO else ()

    def far(self, solutions: Solutions, used: np.ndarray) -> tuple[FarRuns, FarRuns]:
        """The runs far from the law of the others: those that can't be noise, and the others."""
        problem = self
        if self.delta > ROBUST:  # runs far off bend least squares
            problem = Problem(self.table, self.scale, ROBUST, self.tied, self.floor, used)
            solutions = problem.solve(used)
        theta = solutions.theta[solutions.best]
        residual_fn = with_fixed(self.residual_fn, self.held(theta))
        gross = np.log(TIMES) if self.scale == "log" else (1 - 1 / TIMES) * self.table["loss"]
        return find_far(residual_fn, theta, self.data, used, problem.delta).split(gross)

    def solve(self, used: np.ndarray, solver: str = "variable_projection") -> Solutions:
        """Fits all parameters by a solver."""
        return self.projected(used) if solver == "variable_projection" else self.from_starts(used)

    def fit(
        self, starts: np.ndarray, weights: np.ndarray, own: dict[str, np.ndarray] | None = None
    ) -> Solutions:
        """Fits all parameters from each start [S, P]; `own` are data that differ between starts, with a
        leading dim S."""
        shared = {name: values for name, values in self.data.items() if name not in (own or {})}
        starts = np.atleast_2d(np.array(starts, float))
        if self.floor != "free":
            starts[:, 0] = log_of(self.floor)
        held = () if self.floor == "free" else (0,)
        return minimise_within(self.residual_fn, starts, shared, weights, self.delta, own, self.limits, held)

    def refit(
        self, theta: np.ndarray, weights: np.ndarray, own: dict[str, np.ndarray] | None = None
    ) -> Solutions:
        """Fits other weights [n] or [S, n], each from the fit theta [P] of all runs."""
        start = inside(theta, self.limits, {0: np.log(0.3 * self.lowest)})
        return self.fit(np.repeat(start[None], np.atleast_2d(weights).shape[0], 0), weights, own)

    def projected(self, used: np.ndarray) -> Solutions:
        """Fits all parameters from the best cells of variable projection."""
        exponents = (
            [(alpha, alpha) for alpha in EXPONENTS]
            if self.tied
            else [(alpha, beta) for alpha in EXPONENTS for beta in EXPONENTS]
        )
        alpha, beta = np.asarray(exponents).T
        loss, middle = (
            self.table["loss"][used],
            {k: np.median(self.data[k][used]) for k in ("log_n", "log_d")},
        )
        floor = np.log(0.7 * loss.min()) if self.floor == "free" else log_of(self.floor)
        third = np.log((np.median(loss) - min(np.exp(floor), 0.7 * loss.min())) / 2)
        starts = np.stack(
            [
                np.full(len(alpha), floor),
                third + alpha * middle["log_n"],
                third + beta * middle["log_d"],
            ],
            -1,
        )
        own = {"alpha": alpha, "beta": beta}
        projected = with_fixed(law_residuals(self.scale, "projected"), () if self.floor == "free" else (0,))
        cells = minimise(projected, starts, self.data, used.astype(float), self.delta, own)
        best = np.argsort(np.where(np.isfinite(cells.objective), cells.objective, np.inf))[:CELLS]
        joint = np.concatenate([cells.theta, alpha[:, None], *([] if self.tied else [beta[:, None]])], -1)[
            best
        ]
        return self.fit(joint, used.astype(float))

    def from_starts(self, used: np.ndarray) -> Solutions:
        """Fits all parameters from Hoffmann et al.'s starts."""
        return self.fit(hoffmann_starts(self.tied), used.astype(float))

    def resampled(
        self, theta: np.ndarray, used: np.ndarray, resampling: str, count: int, seed: int
    ) -> Solutions:
        """Refits `count` resamples, each from the fit `theta` [P] of all runs."""
        weights = boot.resampled_weights(resampling, used, count, seed, self.cells)
        own = None
        if resampling == "residual":
            prediction = self.target(
                from_theta(theta, self.tied).loss(self.table["parameters"], self.table["tokens"])
            )
            residuals = self.data["target"] - prediction
            unknown = len(theta) - len(self.held(theta))
            own = {
                "target": prediction
                + boot.resampled_residuals(residuals, used, unknown, count, seed, self.cells)
            }
        return self.refit(theta, weights, own)

    def covariance(self, theta: np.ndarray, used: np.ndarray) -> np.ndarray:
        """The covariance [5, 5] of E, A, B, alpha, beta: that of theta [P], by the delta method."""
        e, a, b = as_tuple(from_theta(theta, self.tied))[:3]
        of_theta = sandwich(
            self.residual_fn,
            theta,
            self.data,
            used.astype(float),
            self.delta,
            self.cells,
            self.held(theta),
        )
        to_natural = np.zeros((5, len(theta)))
        to_natural[[0, 1, 2, 3], [0, 1, 2, 3]] = [e, a, b, 1]
        to_natural[4, -1] = 1
        return to_natural @ of_theta @ to_natural.T

    def sensitivity(self, theta: np.ndarray, used: np.ndarray, dropped: int) -> list[dict[str, Any]]:
        """The parameters under other choices, each refitted from `theta`; a refit that doesn't converge, or
        has no degree of freedom left, is left out."""
        loss = np.where(used | ~without_highest(self.table["loss"], dropped), self.table["loss"], -np.inf)
        candidates = [k for k in sorted({*DROPS, dropped}) if k < len(loss) / 2]
        kept = [(k, without_highest(loss, k) & np.isfinite(loss)) for k in candidates]
        kept = [(k, rows) for k, rows in kept if k == dropped or has_freedom(self, rows)]
        found: list[tuple[dict[str, Any], Law | None]] = [
            ({"drop_highest_losses": k}, best_law(self.refit(theta, rows.astype(float)), self.tied))
            for k, rows in kept
        ]
        own = used.astype(float)
        for delta in (self.delta / 10, self.delta * 10, np.inf):
            if np.isfinite(self.delta) and delta != self.delta:
                other = Problem(self.table, self.scale, delta, self.tied, self.floor, used)
                found.append(({"delta": delta}, best_law(other.refit(theta, own), self.tied)))
        scale = "linear" if self.scale == "log" else "log"
        other = Problem(self.table, scale, self.delta, self.tied, self.floor, used)
        found.append(({"residuals": scale}, best_law(other.refit(theta, own), self.tied)))
        return [{**choice, **values_by_name(law)} for choice, law in found if law is not None]


def has_freedom(problem: Problem, used: np.ndarray) -> bool:
    """Whether the runs `used` [n] are enough for a fit, with a degree of freedom left."""
    try:
        check_points(problem.table, used, problem.tied, problem.floor)
    except UserError:
        return False
    return True


def without_highest(loss: np.ndarray, count: int) -> np.ndarray:
    """[n], bool: True but for the `count` highest losses.

    >>> without_highest(np.array([3.0, 5.0, 4.0]), 1).tolist()
    [True, False, True]
    """
    used = np.ones(len(loss), bool)
    used[np.argsort(-loss, kind="stable")[:count]] = False
    return used


def check_solution(solutions: Solutions, problem: Problem, used: np.ndarray) -> np.ndarray:
    """The best theta [P]. Raises UserError where it is at a bound, depends on its start, or has not
    converged."""
    if not np.isfinite(solutions.objective).any():
        raise UserError("loss: no start has a finite objective. Check the units of the table's columns.")
    best = solutions.best
    theta, law = solutions.theta[best], from_theta(solutions.theta[best], problem.tied)
    terms = {
        "A": (law.A / problem.table["parameters"][used] ** law.alpha).max()
        / problem.table["loss"][used].max(),
        "B": (law.B / problem.table["tokens"][used] ** law.beta).max() / problem.table["loss"][used].max(),
    }
    for name, part in terms.items():
        if not part > VISIBLE:
            raise UserError(
                f"{name}={getattr(law, name):.3g}: at its bound, 0: the runs do not determine this term. "
                "Vary it more, or use another method."
            )
    for name in ("alpha", "beta"):
        if not LEAST_EXPONENT < getattr(law, name) < GREATEST_EXPONENT:
            raise UserError(
                f"{name}={getattr(law, name):.4g}: at a bound ({LEAST_EXPONENT} to {GREATEST_EXPONENT}): "
                "the runs do not determine it. "
                "Add runs of other sizes and tokens."
            )
    equal = solutions.converged & (solutions.objective <= (1 + SAME_OBJECTIVE) * solutions.objective[best])
    for i, name in enumerate(NAMES[: solutions.theta.shape[1]]):
        ends = solutions.theta[equal, i]
        if len(ends) and np.ptp(ends) > 0.05:
            raise UserError(
                f"{name}: starts reach one objective with values {np.ptp(ends):.2g} apart: each stays "
                "where its start put it, so the runs do "
                "not determine it. Add runs of other sizes and tokens."
            )
    if not solutions.converged[best]:
        raise UserError(
            "parameters: the best fit did not converge, so the runs do not determine all parameters. Use "
            "tied=true, floor=VALUE, or more runs."
        )
    return theta


def leave_largest_out(problem: Problem, theta: np.ndarray, used: np.ndarray) -> dict[str, Any]:
    """Extrapolation test: predicts the losses of the runs of the largest compute from the law fitted to the
    others."""
    table = problem.table
    out = largest_runs(table["flops"], used)
    rest = used & ~out
    try:
        check_points(table, rest, problem.tied, problem.floor)
        law = best_law(problem.refit(theta, rest.astype(float)), problem.tied)
    except UserError as error:
        return {"runs": int(out.sum()), "refused": str(error)}
    if law is None:
        why = "the fit without them does not converge, or ends at a bound"
        return {"runs": int(out.sum()), "refused": why}
    predicted, measured = law.loss(table["parameters"][out], table["tokens"][out]), table["loss"][out]
    errors = predicted / measured - 1
    return {
        "runs": int(out.sum()),
        "flops_from": float(table["flops"][out].min()),
        "flops_of_the_rest_to": float(table["flops"][rest].max()),
        "measured": measured,
        "predicted": predicted,
        "mean_relative_error": float(errors.mean()),
        "largest_relative_error": float(abs(errors).max()),
        "parameters": values_by_name(law),
    }


def best_law(solutions: Solutions, tied: bool) -> Law | None:
    """The law of a refit's best solution; None if that did not converge, or has an exponent at a bound."""
    if not np.isfinite(solutions.objective).any() or not solutions.converged[solutions.best]:
        return None
    law = from_theta(solutions.theta[solutions.best], tied)
    inside = min(law.alpha, law.beta) > LEAST_EXPONENT and max(law.alpha, law.beta) < GREATEST_EXPONENT
    return law if inside else None


def check_exponents(law: Law, errors: dict[str, float]) -> None:
    """Raises UserError for an exponent that is large and hardly determined."""
    for name in ("alpha", "beta"):
        value, error = getattr(law, name), errors[name]
        if value > LARGE_EXPONENT and not error < value / 2:
            raise UserError(
                f"{name}={value:.4g}: at a bound ({LEAST_EXPONENT} to {LARGE_EXPONENT}), with a standard "
                f"error of {error:.2g}: the runs do not determine it. Add runs of other sizes and tokens."
            )


def values_of_refit(problem: Problem, theta: np.ndarray, used: np.ndarray, rows: np.ndarray) -> str:
    """The exponents of the fit without the runs `rows`, as text; empty where that has no fit."""
    rest = used.copy()
    rest[rows] = False
    if not len(rows) or not has_freedom(problem, rest):
        return ""
    law = best_law(problem.refit(theta, rest.astype(float)), problem.tied)
    return "" if law is None else f"alpha is {law.alpha:.4g} and beta {law.beta:.4g}"
