"""Approach 3: the law `L(N, D) = E + A/N^alpha + B/D^beta`, fitted to all runs at once (Hoffmann et al.
2022).

Two solvers reach one minimum. "variable_projection" fits E, A and B at each cell of a grid of (alpha, beta),
which is an easy problem, and then all five from the best cells. "starts" fits all five from each of Hoffmann
et al.'s 4,500 starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy import stats

from llm_jax.core.errors import UserError, check_choice, require
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.bounded import Floor, check_floor
from llm_jax.scaling.fit.law import NAMES, Law, from_theta
from llm_jax.scaling.fit.law_checks import as_tuple, caveats, check_points, delta_errors, values_by_name
from llm_jax.scaling.fit.law_problem import (
    EXPONENTS,
    Problem,
    check_exponents,
    check_solution,
    leave_largest_out,
    values_of_refit,
    without_highest,
)
from llm_jax.scaling.fit.law_residuals import Scale
from llm_jax.scaling.fit.outliers import Outliers, far_text, left_out_text, mistyped
from llm_jax.scaling.fit.result import FitResult, columns, names_of, with_flops

Solver = Literal["variable_projection", "starts"]
POSITIVE = ("E", "A", "B", "G")
"""Parameters that are above 0, whose intervals by the delta method are those of their logarithms."""


@dataclass(frozen=True, kw_only=True)
class ParametricFit(FitResult):
    """Result of approach 3; losses in nats a token. `objective` is the sum of Huber's loss over the points
    used.

    `parameters` has E, A, B, alpha, beta; a, b of N* ~ C^a, D* ~ C^b; and G of N* = G (C/6)^a. `covariance`
    [5, 5] of the first five is the sandwich estimator, `draws` [resamples, 5] are their refits. `points` has
    parameters, tokens, flops, loss, used (in the fit) and predicted.
    """

    method: str = "parametric"
    standard_errors_delta: dict[str, float]
    """By the delta method, from `covariance`."""
    intervals_95_delta: dict[str, tuple[float, float]]
    """By the delta method, with Student's t; E, A, B and G on their logarithms."""
    sensitivity: list[dict[str, Any]]
    """The exponents under other choices: highest losses dropped, delta, scale of the residuals."""

    @property
    def law(self) -> Law:
        """The fitted law."""
        return Law(*(self.parameters[name] for name in NAMES))

    @property
    def law_draws(self) -> Law:
        """The refitted laws, with arrays [resamples] as parameters."""
        return Law(*self.draws.T)

    @property
    def widening(self) -> float:
        """The factor from the spread of the draws to that of the estimate (`bootstrap.widening`)."""
        return float(self.settings["widening"])


def parametric(
    parameters: Any,
    tokens: Any,
    loss: Any,
    *,
    flops: Any = None,
    name: Any = None,
    floor: Floor = "free",
    residuals: Scale = "log",
    delta: float = 1e-3,
    solver: Solver = "variable_projection",
    tied: bool = False,
    drop_highest_losses: int = 0,
    outliers: Outliers = "leave_out",
    bootstrap: int = 1000,
    resampling: boot.Resampling = "case",
    seed: int = 0,
    convention: str = "as given",
) -> ParametricFit:
    """Fits `L = E + A/N^alpha + B/D^beta` to runs.

    `parameters`, `tokens`, `loss` are [n], one entry a run; `flops` [n] decides which runs are the largest (6
    N D if None), `name` [n] is what warnings call the runs. `floor` is E: "free", or a loss (0: none).
    `delta` is Huber's, in units of the residuals (log loss, or nats); infinity is least squares. `tied` sets
    beta = alpha. `outliers`: "leave_out" or "keep" a run that is grossly off the law of the others.
    `bootstrap` refits of resamples give errors and intervals, with runs of one (N, D) resampled together;
    with 0 they come from the delta method. `convention` names the count of N for the record.

    Raises UserError for data that don't determine the fit: too few sizes, a parameter at a bound, no
    convergence.
    """
    check_choice("residuals", residuals, get_args(Scale))
    check_choice("solver", solver, get_args(Solver))
    check_choice("outliers", outliers, get_args(Outliers))
    boot.check_resampling(resampling, bootstrap, seed)
    require(delta > 0, "delta", delta, "above 0 (inf: least squares)")
    table = with_flops(
        columns(parameters=parameters, tokens=tokens, loss=loss, flops=flops, others={"name": name})
    )
    n = len(table["loss"])
    require(
        0 <= drop_highest_losses < n,
        "drop_highest_losses",
        drop_highest_losses,
        f"from 0 to less than the {n} runs",
    )
    right, warnings = mistyped(table, outliers)
    used = without_highest(table["loss"], drop_highest_losses) & right
    check_points(table, used, tied, floor)
    check_floor(floor, table["loss"][used].min())

    problem = Problem(table, residuals, delta, tied, floor)
    solutions = problem.solve(used, solver)
    gross, far = problem.far(solutions, used)
    left_out = names_of(table, np.flatnonzero(~right))
    if outliers == "leave_out" and len(gross.rows):
        warnings += left_out_text(table, gross, residuals == "log")
        left_out += names_of(table, gross.rows)
        used[gross.rows] = False
        check_points(table, used, tied, floor)
        problem = Problem(table, residuals, delta, tied, floor, used)
        solutions = problem.solve(used, solver)
        gross, far = problem.far(solutions, used)
    theta = check_solution(solutions, problem, used)
    for those in (gross, far):
        without = values_of_refit(problem, theta, used, those.rows)
        warnings += far_text(table, those, residuals == "log", without)
    law, points = from_theta(theta, tied), problem.points(used)
    held = problem.held(theta)
    covariance = problem.covariance(theta, used)
    if held and floor == "free":
        half = problem.lowest / 2
        times = Problem(table, residuals, delta, tied, half).refit(theta, used).objective[0] / (
            solutions.objective[solutions.best] + 1e-300
        )
        free = max(points - len(theta) + 1, 1)
        if times < 1 + float(stats.f.ppf(boot.LEVEL, 1, free)) / free:
            raise UserError(
                f"E=0: at its bound, but a floor of {half:.3g} fits as well (its objective is {times:.3g} "
                "times as high): the runs do not determine it. Give floor=, or add runs of other compute."
            )
        warnings.append(
            "E: the lowest objective is at its bound, 0: the law has no floor within the runs' compute, and "
            f"is that of floor=0 (a floor of {half:.3g} has an objective {times:.3g} times as high)"
        )

    draws, widen = np.zeros((0, 5)), boot.widening(resampling, points)
    if bootstrap:
        refits = problem.resampled(theta, used, resampling, bootstrap, seed)
        good = refits.converged & np.isfinite(refits.objective)
        if (failed := int(bootstrap - good.sum())) > 0.02 * bootstrap:
            warnings.append(
                f"{failed} of {bootstrap} resamples did not converge and are left out: the intervals are "
                "too narrow"
            )
        draws = np.stack(as_tuple(from_theta(refits.theta[good], tied)), -1)
        if len(draws) < bootstrap / 2:
            raise UserError(
                f"bootstrap={bootstrap}: {failed} resamples have no fit, so the runs do not determine the "
                "law. Add runs that differ more."
            )

    values = values_by_name(law)
    errors_delta = delta_errors(law, covariance) | ({"a": 0.0, "b": 0.0} if tied else {})
    freedom = points - len(theta) + len(held)
    intervals_delta = {
        name: boot.delta_interval(values[name], error, freedom, name in POSITIVE)
        for name, error in errors_delta.items()
    }
    check_exponents(law, errors_delta)
    errors, intervals = dict(errors_delta), dict(intervals_delta)
    if bootstrap:
        spreads = {
            name: boot.spread(values[name], resampled, widen)
            for name, resampled in values_by_name(Law(*draws.T)).items()
        }
        errors = {name: error for name, (error, _) in spreads.items()}
        intervals = {name: interval for name, (_, interval) in spreads.items()}
    held_out = leave_largest_out(problem, theta, used)
    sensitivity = problem.sensitivity(theta, used, drop_highest_losses)
    predicted = law.loss(table["parameters"], table["tokens"])
    fit = ParametricFit(
        objective=float(solutions.objective[solutions.best]),
        parameters=values,
        standard_errors=errors,
        intervals_95=intervals,
        standard_errors_delta=errors_delta,
        intervals_95_delta=intervals_delta,
        covariance=covariance,
        leave_largest_out=held_out,
        sensitivity=sensitivity,
        settings={
            "law": "E + A/N^alpha + B/D^beta" + (", alpha = beta" if tied else ""),
            "floor": floor,
            "residuals": residuals,
            "delta": delta,
            "objective": "sum",
            "solver": solver,
            "starts": len(EXPONENTS) ** (1 if tied else 2)
            if solver == "variable_projection"
            else len(solutions.objective),
            "optimizer": "damped Gauss-Newton, float64",
            "tied": tied,
            "drop_highest_losses": drop_highest_losses,
            "outliers": outliers,
            "left_out": left_out,
            "runs": n,
            "runs_used": int(used.sum()),
            "different_runs": points,
            "degrees_of_freedom": freedom,
            "convention": convention,
            "bootstrap": bootstrap,
            "resampling": resampling if bootstrap else "none: delta method",
            "widening": widen,
            "seed": seed,
        },
        warnings=[],
        points={**table, "used": used, "predicted": predicted},
        draws=draws,
    )
    fit.warnings.extend(warnings + caveats(fit))
    return fit
