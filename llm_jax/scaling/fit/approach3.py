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

from llm_jax.core.errors import UserError, check_choice, require
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT, NAMES, Law, from_theta
from llm_jax.scaling.fit.law_residuals import hoffmann_starts, law_residuals
from llm_jax.scaling.fit.result import FitResult, columns, largest_runs, with_flops
from llm_jax.scaling.fit.solve import Solutions, minimise, sandwich

Scale = Literal["log", "linear"]
Solver = Literal["variable_projection", "starts"]
EXPONENTS = np.geomspace(0.04, 1.6, 22)
"""The grid of alpha and of beta in variable projection."""
CELLS = 16
"""Number of best cells of the grid from which all five parameters are fitted."""
DROPS = (0, 1, 3, 5, 10, 15)
"""Numbers of highest losses that are dropped in turn, to see how far the exponents depend on them."""
LEAST_EXPONENT, GREATEST_EXPONENT = 0.01, 3.0
"""Bounds of the exponents: beyond them a power is indistinguishable from a constant, or from a step."""
VISIBLE = 1e-4
"""A term that is nowhere more than this part of the loss is not determined by the data."""
SAME_OBJECTIVE = 1e-7
"""Objectives that differ by less than this part count as one minimum."""
Z = 1.959964
"""97.5 % quantile of the standard normal: half the width of a 95 % interval."""


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
    """Estimate +- 1.96 standard errors of the delta method."""
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
    residuals: Scale = "log",
    delta: float = 1e-3,
    solver: Solver = "variable_projection",
    tied: bool = False,
    drop_highest_losses: int = 0,
    bootstrap: int = 1000,
    resampling: boot.Resampling = "case",
    seed: int = 0,
    convention: str = "as given",
) -> ParametricFit:
    """Fits `L = E + A/N^alpha + B/D^beta` to runs.

    `parameters`, `tokens`, `loss` are [n], one entry a run; `flops` [n] decides which runs are the largest (6
    N D if None). `delta` is Huber's, in units of the residuals (log loss, or nats); infinity is least
    squares. `tied` sets beta = alpha. `bootstrap` refits of resamples give errors and intervals; with 0 they
    come from the delta method. `convention` names the count of N for the record.

    Raises UserError for data that don't determine the fit: too few sizes, a parameter at a bound, no
    convergence.
    """
    check_choice("residuals", residuals, get_args(Scale))
    check_choice("solver", solver, get_args(Solver))
    boot.check_resampling(resampling, bootstrap, seed)
    require(delta > 0, "delta", delta, "above 0 (inf: least squares)")
    table = with_flops(columns(parameters=parameters, tokens=tokens, loss=loss, flops=flops))
    n = len(table["loss"])
    require(
        0 <= drop_highest_losses < n,
        "drop_highest_losses",
        drop_highest_losses,
        f"from 0 to less than the {n} runs",
    )
    used = without_highest(table["loss"], drop_highest_losses)
    check_points(table, used, tied)

    problem = Problem(table, residuals, delta, tied)
    solutions = problem.projected(used) if solver == "variable_projection" else problem.from_starts(used)
    theta = check_solution(solutions, problem, used)
    law = from_theta(theta, tied)
    covariance = problem.covariance(theta, used)

    draws, widen = np.zeros((0, 5)), boot.widening(resampling, int(used.sum()))
    warnings = []
    if bootstrap:
        refits = problem.resampled(theta, used, resampling, bootstrap, seed)
        good = refits.converged & np.isfinite(refits.objective)
        if (failed := int(bootstrap - good.sum())) > 0.02 * bootstrap:
            warnings.append(
                f"{failed} of {bootstrap} resamples did not converge and are left out: the intervals are "
                "too narrow"
            )
        draws = np.stack(as_tuple(from_theta(refits.theta[good], tied)), -1)

    values = values_by_name(law)
    errors_delta = delta_errors(law, covariance)
    intervals_delta = {
        name: (values[name] - Z * error, values[name] + Z * error) for name, error in errors_delta.items()
    }
    errors, intervals = dict(errors_delta), dict(intervals_delta)
    if bootstrap:
        spreads = {
            name: boot.spread(values[name], resampled, widen)
            for name, resampled in values_by_name(Law(*draws.T)).items()
        }
        errors = {name: error for name, (error, _) in spreads.items()}
        intervals = {name: interval for name, (_, interval) in spreads.items()}
    held_out = leave_largest_out(problem, theta, used)
    sensitivity = problem.sensitivity(theta, drop_highest_losses)
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
            "runs": n,
            "runs_used": int(used.sum()),
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
    warnings += caveats(fit)
    fit.warnings.extend(warnings)
    return fit


class Problem:
    """The runs as arrays for the solver, and the ways to fit them. `theta` [P] is log E, log A, log B, alpha
    and (unless tied) beta."""

    def __init__(self, table: dict[str, np.ndarray], scale: str, delta: float, tied: bool) -> None:
        self.table, self.scale, self.delta, self.tied = table, scale, delta, tied
        self.data = {
            "log_n": np.log(table["parameters"]),
            "log_d": np.log(table["tokens"]),
            "target": self.target(table["loss"]),
        }
        self.residual_fn = law_residuals(scale, "tied" if tied else "free")

    def target(self, loss: np.ndarray) -> np.ndarray:
        """The values [n] that the law is fitted to: log losses, or losses with linear residuals."""
        return np.log(loss) if self.scale == "log" else loss

    def fit(
        self, starts: np.ndarray, weights: np.ndarray, own: dict[str, np.ndarray] | None = None
    ) -> Solutions:
        """Fits all parameters from each start [S, P]; `own` are data that differ between starts, with a
        leading dim S."""
        shared = {name: values for name, values in self.data.items() if name not in (own or {})}
        return minimise(self.residual_fn, starts, shared, weights, self.delta, own)

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
        third = np.log((np.median(loss) - 0.7 * loss.min()) / 2)
        starts = np.stack(
            [
                np.full(len(alpha), np.log(0.7 * loss.min())),
                third + alpha * middle["log_n"],
                third + beta * middle["log_d"],
            ],
            -1,
        )
        own = {"alpha": alpha, "beta": beta}
        cells = minimise(
            law_residuals(self.scale, "projected"), starts, self.data, used.astype(float), self.delta, own
        )
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
        weights = boot.resampled_weights(resampling, used, count, seed)
        own = None
        if resampling == "residual":
            prediction = self.target(
                from_theta(theta, self.tied).loss(self.table["parameters"], self.table["tokens"])
            )
            own = {
                "target": prediction
                + boot.resampled_residuals(self.data["target"] - prediction, used, len(theta), count, seed)
            }
        return self.fit(np.repeat(theta[None], count, 0), weights, own)

    def covariance(self, theta: np.ndarray, used: np.ndarray) -> np.ndarray:
        """The covariance [5, 5] of E, A, B, alpha, beta: that of theta [P], by the delta method."""
        e, a, b = np.exp(theta[:3])
        of_theta = sandwich(self.residual_fn, theta, self.data, used.astype(float), self.delta)
        to_natural = np.zeros((5, len(theta)))
        to_natural[[0, 1, 2, 3], [0, 1, 2, 3]] = [e, a, b, 1]
        to_natural[4, -1] = 1
        return to_natural @ of_theta @ to_natural.T

    def sensitivity(self, theta: np.ndarray, dropped: int) -> list[dict[str, Any]]:
        """The parameters under other choices, each refitted from `theta`; a refit that doesn't converge is
        left out."""
        loss = self.table["loss"]
        drops = [k for k in sorted({*DROPS, dropped}) if k < len(loss) / 2]
        weights = np.stack([without_highest(loss, k) for k in drops]).astype(float)
        found: list[tuple[dict[str, Any], Law | None]] = [
            ({"drop_highest_losses": k}, best_law(self.fit(theta, w), self.tied))
            for k, w in zip(drops, weights, strict=True)
        ]
        own = without_highest(loss, dropped).astype(float)
        for delta in (self.delta / 10, self.delta * 10, np.inf):
            if np.isfinite(self.delta) and delta != self.delta:
                other = minimise(self.residual_fn, theta, self.data, own, delta)
                found.append(({"delta": delta}, best_law(other, self.tied)))
        other_scale = Problem(self.table, "linear" if self.scale == "log" else "log", self.delta, self.tied)
        found.append(({"residuals": other_scale.scale}, best_law(other_scale.fit(theta, own), self.tied)))
        return [{**choice, **values_by_name(law)} for choice, law in found if law is not None]


def without_highest(loss: np.ndarray, count: int) -> np.ndarray:
    """[n], bool: True but for the `count` highest losses.

    >>> without_highest(np.array([3.0, 5.0, 4.0]), 1).tolist()
    [True, False, True]
    """
    used = np.ones(len(loss), bool)
    used[np.argsort(-loss, kind="stable")[:count]] = False
    return used


def check_points(table: dict[str, np.ndarray], used: np.ndarray, tied: bool) -> None:
    """Raises UserError where the table has too few runs, sizes or numbers of tokens for the fit."""
    need = 5 + (not tied)
    if used.sum() < need:
        raise UserError(
            f"runs={used.sum()}: a fit of {need - 1} parameters needs at least {need}. Add runs, or use "
            "another method."
        )
    for name, what in (("parameters", "sizes"), ("tokens", "numbers of tokens")):
        values = np.log(np.sort(table[name][used]))
        different = 1 + int((np.diff(values) > 0.01).sum())
        if different < 3:
            raise UserError(
                f"{name}: {different} different {what}, but a power law with a floor needs at least "
                "three. Add runs that differ."
            )


def check_solution(solutions: Solutions, problem: Problem, used: np.ndarray) -> np.ndarray:
    """The best theta [P]. Raises UserError where it is at a bound, depends on its start, or has not
    converged."""
    if not np.isfinite(solutions.objective).any():
        raise UserError("loss: no start has a finite objective. Check the units of the table's columns.")
    best = solutions.best
    theta, law = solutions.theta[best], from_theta(solutions.theta[best], problem.tied)
    terms = {
        "E": law.E / problem.table["loss"][used].min(),
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
            "tied=true, or more runs."
        )
    return theta


def leave_largest_out(problem: Problem, theta: np.ndarray, used: np.ndarray) -> dict[str, Any]:
    """Extrapolation test: predicts the losses of the runs of the largest compute from the law fitted to the
    others."""
    table = problem.table
    out = largest_runs(table["flops"], used)
    rest = used & ~out
    try:
        check_points(table, rest, problem.tied)
        law = best_law(problem.fit(theta, rest.astype(float)), problem.tied)
    except UserError as error:
        return {"runs": int(out.sum()), "refused": str(error)}
    if law is None:
        return {"runs": int(out.sum()), "refused": "the fit without them does not converge"}
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
    """The law of a refit's best solution; None if that did not converge."""
    if not np.isfinite(solutions.objective).any() or not solutions.converged[solutions.best]:
        return None
    return from_theta(solutions.theta[solutions.best], tied)


def as_tuple(law: Law) -> tuple[Any, ...]:
    """The parameters E, A, B, alpha, beta of a law, in this order."""
    return tuple(getattr(law, name) for name in NAMES)


def values_by_name(law: Law) -> dict[str, Any]:
    """The parameters E, A, B, alpha, beta and the a, b, G that follow from them, by name."""
    values = {**dict(zip(NAMES, as_tuple(law), strict=True)), "a": law.a, "b": law.b, "G": law.G}
    return {name: float(value) if np.ndim(value) == 0 else value for name, value in values.items()}


def delta_errors(law: Law, covariance: np.ndarray) -> dict[str, float]:
    """Standard errors of E, A, B, alpha, beta, a, b and G by the delta method, with numeric derivatives;
    covariance is [5, 5]."""
    at = np.asarray(as_tuple(law), float)
    steps = 1e-6 * at
    ahead = [values_by_name(Law(*(at + np.eye(5)[i] * steps[i]))) for i in range(5)]
    behind = [values_by_name(Law(*(at - np.eye(5)[i] * steps[i]))) for i in range(5)]
    errors = {}
    for name in values_by_name(law):
        slope = np.array([(ahead[i][name] - behind[i][name]) / (2 * steps[i]) for i in range(5)])
        errors[name] = float(np.sqrt(max(slope @ covariance @ slope, 0.0)))
    return errors


def caveats(fit: ParametricFit) -> list[str]:
    """The warnings of a fit: wide intervals, dependence on the highest losses, a failed extrapolation test,
    columns that vary too little."""
    warnings = []
    for name in ("alpha", "beta"):
        value, error = fit.parameters[name], fit.standard_errors[name]
        if error > 0.2 * value:
            warnings.append(
                f"{name} is known to {error / value:.0%} only: its interval is "
                f"{fit.intervals_95[name][0]:.3f} to {fit.intervals_95[name][1]:.3f}"
            )
    for name in ("A", "B"):
        low, high = fit.intervals_95[name]
        if fit.draws.size and high > 4 * max(low, 1e-300):
            warnings.append(
                f"{name} is known to a factor of {high / low:.1f}: it is correlated with its exponent; "
                "use both together (covariance)"
            )
    drops = [row for row in fit.sensitivity if "drop_highest_losses" in row]
    for name in ("alpha", "beta"):
        found = [row[name] for row in drops]
        if found and max(found) - min(found) > 2 * fit.standard_errors[name]:
            warnings.append(
                f"{name} goes from {min(found):.3f} to {max(found):.3f} with the number of highest losses "
                "dropped: more than twice its error"
            )
    held = fit.leave_largest_out
    if "refused" in held:
        warnings.append(f"no extrapolation test: without the largest {held['runs']} runs, {held['refused']}")
    elif held["largest_relative_error"] > 0.02:
        warnings.append(
            "the law of the smaller runs misses the largest by up to "
            f"{held['largest_relative_error']:.1%} in loss"
        )
    times = fit.points["flops"] / (FLOPS_A_WEIGHT * fit.points["parameters"] * fit.points["tokens"])
    if abs(np.log(times)).max() > np.log(1.05):
        warnings.append(
            f"flops are {times.min():.2f} to {times.max():.2f} times 6 N D, but a, b and recommendations "
            "assume C = 6 N D"
        )
    ratio = fit.points["tokens"] / fit.points["parameters"]
    if fit.points["used"].any() and np.ptp(np.log(ratio[fit.points["used"]])) < np.log(4):
        warnings.append(
            "tokens a parameter hardly vary: alpha and beta are not determined separately, and a, b rest "
            "on the form of the law alone"
        )
    return warnings
