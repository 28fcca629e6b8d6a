"""The procedure that fits laws with a few parameters: robust regression from a grid of starts, resamples, an
extrapolation test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError, check_choice, require
from llm_jax.core.format import listed
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.bounded import (
    Limit,
    from_log,
    inside,
    log_of,
    minimise_within,
)
from llm_jax.scaling.fit.law_residuals import Scale
from llm_jax.scaling.fit.outliers import (
    POINTS,
    ROBUST,
    TIMES,
    FarRuns,
    Outliers,
    far_text,
    find_far,
    left_out_text,
)
from llm_jax.scaling.fit.repeats import cell_numbers
from llm_jax.scaling.fit.result import FitResult, names_of
from llm_jax.scaling.fit.solve import (
    ResidualFn,
    Solutions,
    float64,
    residuals_and_jacobian,
    sandwich,
    with_fixed,
)


@dataclass(frozen=True, kw_only=True)
class LawFit(FitResult):
    """A fitted law with a few parameters. `objective` is the sum of Huber's loss of the residuals,
    `covariance` [P, P] in the order of `parameters`; `points` has the table's columns, used (in the fit) and
    predicted."""

    standard_errors_delta: dict[str, float]
    """By the delta method, from `covariance`."""


@dataclass(frozen=True)
class SmallLaw:
    """A law for `fit_law`. `theta` [P] has the logarithms of those parameters that must be above 0."""

    method: str
    """The name in `methods.METHODS`."""
    text: str
    """The law as a formula, for people."""
    names: tuple[str, ...]
    """The P parameters."""
    positive: tuple[bool, ...]
    """[P]: whether a parameter is fitted as its logarithm."""
    target: str
    """The column that the law predicts."""
    residual_fns: dict[str, ResidualFn]
    """Scale of the residuals ("log", "linear") → the residuals of the target and their derivatives."""
    predict: Callable[[Any, Any], Any]
    """predict(theta, data) -> the target [n], in JAX."""
    starts: np.ndarray
    """[S, P]"""
    bounds: dict[str, tuple[float, float]]
    """A parameter at or beyond its bounds is not determined by the runs."""
    limits: tuple[Limit, ...] = ()
    """Limits at which a parameter may end."""
    held: dict[str, float] = field(default_factory=dict)
    """Parameters that are not fitted, and their values."""
    same: tuple[str, ...] = ("parameters", "tokens")
    """The columns by which runs are one run repeated."""
    extreme: str = "the largest runs"
    """What the extrapolation test leaves out."""

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """The parameters [..., P] from theta [..., P]."""
        return np.where(self.positive, from_log(np.where(self.positive, theta, 0.0)), theta)

    def fixed(self, theta: np.ndarray) -> tuple[int, ...]:
        """The numbers of the parameters that are held, or have ended at a limit."""
        at = [limit.index for limit in self.limits if theta[limit.index] in (limit.at_low, limit.at_high)]
        return tuple(sorted({*at, *(self.names.index(name) for name in self.held)}))

    def solve(
        self,
        scale: str,
        starts: np.ndarray,
        data: dict[str, np.ndarray],
        weights: np.ndarray,
        delta: float,
        own: dict[str, np.ndarray] | None = None,
    ) -> Solutions:
        """Fits the law from each start; `own` are data that differ between starts."""
        starts = np.atleast_2d(np.array(starts, float))
        for name, value in self.held.items():
            i = self.names.index(name)
            starts[:, i] = log_of(value) if self.positive[i] else value
        held = tuple(self.names.index(name) for name in self.held)
        return minimise_within(self.residual_fns[scale], starts, data, weights, delta, own, self.limits, held)

    def far(
        self, scale: str, solutions: Solutions, data: dict[str, np.ndarray], used: np.ndarray, delta: float
    ) -> tuple[FarRuns, FarRuns]:
        """The runs far from the law of the others: those that can't be noise, and the others."""
        theta = solutions.theta[solutions.best]
        gross: Any = np.log(TIMES)
        if scale == "linear":
            gross = POINTS if self.target == "accuracy" else (1 - 1 / TIMES) * data["target"]
        if delta > ROBUST:  # runs far off bend least squares
            solutions, delta = self.solve(scale, self.starts, data, used.astype(float), ROBUST), ROBUST
            theta = solutions.theta[solutions.best]
        residual_fn = with_fixed(self.residual_fns[scale], self.fixed(theta))
        return find_far(residual_fn, theta, data, used, delta).split(gross)

    def restart(self, theta: np.ndarray) -> np.ndarray:
        """theta [P] as a start for other data, inside of the limits."""
        return inside(theta, self.limits, {limit.index: self.starts[0, limit.index] for limit in self.limits})


def residual_functions(predict: Callable[[Any, Any], Any]) -> dict[str, ResidualFn]:
    """The residual functions of a law by their scale: predicted less target, or of logarithms (the target is
    one already), with JAX's derivatives."""

    def linear(theta: Any, data: Any) -> Any:
        return predict(theta, data) - data["target"]

    def log(theta: Any, data: Any) -> Any:
        return jnp.log(jnp.maximum(predict(theta, data), 1e-300)) - data["target"]

    return {"linear": residuals_and_jacobian(linear), "log": residuals_and_jacobian(log)}


def fit_law(
    law: SmallLaw,
    table: dict[str, np.ndarray],
    data: dict[str, np.ndarray],
    used: np.ndarray,
    held_out: np.ndarray,
    *,
    residuals: Scale,
    delta: float,
    outliers: Outliers,
    bootstrap: int,
    resampling: str,
    seed: int,
    settings: dict[str, Any],
    warnings: list[str] | None = None,
) -> LawFit:
    """Fits a law to the runs `used` [n]; a second fit leaves out the runs `held_out` [n] and predicts them.

    `data` are the arrays that the law's `predict` reads; `delta`: Huber's, in units of the residuals;
    `settings`, `warnings`: added to the result's. Raises UserError where the runs do not determine the law.
    """
    boot.check_resampling(resampling, bootstrap, seed)
    check_choice("residuals", residuals, get_args(Scale))
    check_choice("outliers", outliers, get_args(Outliers))
    require(delta > 0, "delta", delta, "above 0 (inf: least squares)")
    log, warnings, used = residuals == "log", list(warnings or []), used.copy()
    if log and not (table[law.target] > 0).all():
        raise UserError(
            f"residuals=log: a run has {law.target} 0, which has no logarithm. Use residuals=linear."
        )
    cells = cell_numbers(table, [name for name in law.same if name in table])
    unknown = len(law.names) - len(law.held)
    target = np.log(table[law.target]) if log else table[law.target]
    every = {**data, "target": target}

    def points() -> int:
        return len(np.unique(cells[used]))

    def check_count() -> None:
        if points() < unknown + 1:
            raise UserError(
                f"runs={points()}: a fit of {unknown} parameters needs at least {unknown + 1}. Add runs."
            )

    check_count()
    solutions = law.solve(residuals, law.starts, every, used.astype(float), delta)
    gross, far = law.far(residuals, solutions, every, used, delta)
    if outliers == "leave_out" and len(gross.rows):
        warnings += left_out_text(table, gross, log)
        settings = {**settings, "left_out": [*settings.get("left_out", []), *names_of(table, gross.rows)]}
        used[gross.rows] = False
        check_count()
        solutions = law.solve(residuals, law.starts, every, used.astype(float), delta)
        gross, far = law.far(residuals, solutions, every, used, delta)
    theta = check_solution(law, solutions)
    for those in (gross, far):
        rest = used.astype(float)
        rest[those.rows] = 0
        without = ""
        if len(those.rows) and len(np.unique(cells[rest > 0])) > unknown:
            refit = law.natural(law.solve(residuals, law.restart(theta), every, rest, delta).theta[0])
            without = listed([f"{n} is {v:.4g}" for n, v in zip(law.names, refit, strict=True)])
        warnings += far_text(table, those, log, without)
    values, fixed = law.natural(theta), law.fixed(theta)
    for i in fixed:
        if law.names[i] not in law.held:
            warnings.append(
                f"{law.names[i]}: the lowest objective is at its bound, {values[i]:g}, and the fit is that "
                f"with {law.names[i]} held there"
            )
    scale = np.where(law.positive, values, 1.0)
    covariance = (
        scale[:, None]
        * sandwich(law.residual_fns[residuals], theta, every, used.astype(float), delta, cells, fixed)
        * scale
    )
    errors_delta = boot.standard_errors(np.diag(covariance))
    predicted = np.asarray(evaluate_law(law, theta, data))

    draws, widen = np.zeros((0, len(law.names))), boot.widening(resampling, points())
    freedom = points() - len(law.names) + len(fixed)
    errors, intervals = (
        list(errors_delta),
        [
            boot.delta_interval(v, e, freedom, p)
            for v, e, p in zip(values, errors_delta, law.positive, strict=True)
        ],
    )
    if bootstrap:
        own = None
        if resampling == "residual":
            centre = np.log(predicted) if log else predicted
            own = {
                "target": centre
                + boot.resampled_residuals(target - centre, used, unknown, bootstrap, seed, cells)
            }
        refits = law.solve(
            residuals,
            np.repeat(law.restart(theta)[None], bootstrap, 0),
            data if own else every,
            boot.resampled_weights(resampling, used, bootstrap, seed, cells),
            delta,
            own,
        )
        if (failed := int((~refits.converged).sum())) > 0.02 * bootstrap:
            warnings.append(
                f"{failed} of {bootstrap} resamples did not converge and are left out: the intervals are "
                "too narrow"
            )
        draws = law.natural(refits.theta[refits.converged])
        if len(draws) < bootstrap / 2:
            raise UserError(
                f"bootstrap={bootstrap}: {failed} resamples have no fit, so the runs do not determine "
                f"{', '.join(law.names)}. Add runs that differ more."
            )
        errors, intervals = (
            list(part)
            for part in zip(
                *(boot.spread(values[i], draws[:, i], widen) for i in range(len(law.names))), strict=True
            )
        )
    for name, value, (low, high) in zip(law.names, values, intervals, strict=True):
        if high - low > abs(value) > 0:
            how = "hardly determined" if np.isfinite(high - low) else "not determined"
            warnings.append(f"{name} is {how}: {low:.4g} to {high:.4g}")
    return LawFit(
        method=law.method,
        objective=float(solutions.objective[solutions.best]),
        parameters=dict(zip(law.names, map(float, values), strict=True)),
        standard_errors=dict(zip(law.names, map(float, errors), strict=True)),
        intervals_95=dict(zip(law.names, intervals, strict=True)),
        standard_errors_delta=dict(zip(law.names, map(float, errors_delta), strict=True)),
        covariance=covariance,
        leave_largest_out=leave_largest_out(
            law, table, every, used, held_out, theta, residuals, delta, warnings
        ),
        settings={
            "law": law.text,
            "residuals": residuals,
            "delta": delta,
            "objective": "sum",
            "starts": len(law.starts),
            "optimizer": "damped Gauss-Newton, float64",
            "outliers": outliers,
            "left_out": [],
            "runs": len(target),
            "runs_used": int(used.sum()),
            "different_runs": points(),
            "degrees_of_freedom": freedom,
            "bootstrap": bootstrap,
            "resampling": resampling if bootstrap else "none: delta method",
            "widening": widen,
            "seed": seed,
            **settings,
        },
        warnings=warnings,
        points={**table, "used": used, "predicted": predicted},
        draws=draws,
    )


def evaluate_law(law: SmallLaw, theta: np.ndarray, data: dict[str, np.ndarray]) -> np.ndarray:
    """The target [n] that a law predicts at theta [P], in float64."""
    with float64():
        return np.asarray(law.predict(jnp.asarray(theta), data))


def check_solution(law: SmallLaw, solutions: Solutions) -> np.ndarray:
    """The best theta [P]. Raises UserError where a parameter is at a bound or no start converged."""
    if not np.isfinite(solutions.objective).any():
        raise UserError(
            f"{law.target}: no start has a finite objective. Check the units of the table's columns."
        )
    best = solutions.best
    fixed = law.fixed(solutions.theta[best])
    for i, (name, value) in enumerate(zip(law.names, law.natural(solutions.theta[best]), strict=True)):
        low, high = law.bounds.get(name, (-np.inf, np.inf))
        if not low < value < high and i not in fixed:
            raise UserError(
                f"{name}={value:.4g}: at a bound ({low:g} to {high:g}): the runs do not determine it. Add "
                "runs that differ more."
            )
    if not solutions.converged[best]:
        raise UserError(
            "parameters: the best fit did not converge, so the runs do not determine all of "
            f"{', '.join(law.names)}. Add runs."
        )
    return solutions.theta[best]


def leave_largest_out(
    law: SmallLaw,
    table: dict[str, np.ndarray],
    data: dict[str, np.ndarray],
    used: np.ndarray,
    held_out: np.ndarray,
    theta: np.ndarray,
    residuals: str,
    delta: float,
    warnings: list[str],
) -> dict[str, Any]:
    """Extrapolation test: predicts the runs `held_out` [n] from the law fitted to the other runs. Appends to
    `warnings` if it fails."""
    out, rest, unknown = used & held_out, used & ~held_out, len(law.names) - len(law.held)
    refit = None
    if not out.any():
        refused = f"{law.extreme} are not in the fit"
    elif rest.sum() < unknown + 1:
        refused = f"{rest.sum()} runs are left, and {unknown} parameters need one more than that"
    else:
        refit = law.solve(residuals, law.restart(theta), data, rest.astype(float), delta)
        refused = "" if refit.converged[0] else f"without {law.extreme} the fit does not converge"
    if refit is None or refused:
        warnings.append(f"no extrapolation test: {refused}")
        return {"runs": int(out.sum()), "refused": refused}
    predicted, measured = evaluate_law(law, refit.theta[0], data)[out], table[law.target][out]
    error = predicted / np.where(measured > 0, measured, np.nan) - 1
    error = error[np.isfinite(error)] if np.isfinite(error).any() else np.zeros(1)
    if abs(error).max() > 0.02:
        warnings.append(
            f"the law of the other runs misses {law.extreme} by up to {abs(error).max():.1%} in {law.target}"
        )
    return {
        "runs": int(out.sum()),
        "measured": measured,
        "predicted": predicted,
        "mean_relative_error": float(error.mean()),
        "largest_relative_error": float(abs(error).max()),
        "parameters": dict(zip(law.names, map(float, law.natural(refit.theta[0])), strict=True)),
    }


def start_grid(*axes: Any) -> np.ndarray:
    """All combinations of the values of each of P axes, [S, P].

    >>> start_grid([1, 2], [3]).tolist()
    [[1.0, 3.0], [2.0, 3.0]]
    """
    return np.stack([np.asarray(part, float).ravel() for part in np.meshgrid(*axes, indexing="ij")], -1)
