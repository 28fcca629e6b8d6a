"""Approach 3: one law for all runs, `L(N, D) = E + A/N^alpha + B/D^beta`, fitted to every point at once (Hoffmann et al. 2022).

Two ways to the same minimum. Variable projection: on a grid of (alpha, beta) the other three are fitted, which is easy, and the
best cells are then fitted jointly. The grid of starts: Hoffmann et al.'s 4,500, each fitted jointly.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError, check_choice, require
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT, NAMES, Law, from_theta
from llm_jax.scaling.fit.result import columns, largest, plain
from llm_jax.scaling.fit.solve import Look, Solutions, minimise, sandwich

Scale = Literal["log", "linear"]
Solver = Literal["variable_projection", "starts"]
EXPONENTS = np.geomspace(0.04, 1.6, 22)
"""Values of alpha and of beta that variable projection looks at."""
CELLS = 16
"""Its best cells, which are fitted jointly."""
START_A = START_B = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
START_E = (-1.0, -0.5, 0.0, 0.5, 1.0)
START_EXPONENT = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Hoffmann et al.'s starts (section D.2): of log A, log B, log E, alpha and beta; 4,500 in all."""
DROPS = (0, 1, 3, 5, 10, 15)
"""Numbers of highest losses whose removal is tried, to see what the exponents owe to them."""
SHORTEST, LONGEST = 0.01, 3.0
"""Exponents beyond are at a bound: a power that can't be told from a constant, or from a step."""
SEEN = 1e-4
"""A term that is nowhere more than this part of the loss is not seen in the data."""
EQUAL = 1e-7
"""Objectives that differ by less than this part are one."""
Z = 1.959964
"""Half of a normal's 95 %."""


@dataclass(frozen=True)
class ParametricFit:
    """Approach 3's result. Losses in nats a token; tables by the names E, A, B, alpha, beta, a, b."""

    method = "parametric"
    objective: float
    """Sum of Huber's loss over the points used."""
    parameters: dict[str, float]
    """E, A, B, alpha, beta; and a, b of N* ~ C^a, D* ~ C^b; and G of N* = G (C/6)^a."""
    standard_errors: dict[str, float]
    """Of resamples; by the delta method where there are none."""
    intervals_95: dict[str, tuple[float, float]]
    """Percentiles of resamples; by the delta method where there are none."""
    standard_errors_delta: dict[str, float]
    """From `covariance`."""
    intervals_95_delta: dict[str, tuple[float, float]]
    """Estimate +- 1.96 standard errors, from `covariance`."""
    covariance: np.ndarray
    """[5, 5] of E, A, B, alpha, beta: the sandwich of M-estimation."""
    leave_largest_out: dict[str, Any]
    """What the law fitted without the runs of the largest compute says of them, against what was measured."""
    sensitivity: list[dict[str, Any]]
    """The exponents under other choices: highest losses dropped, delta, residuals."""
    settings: dict[str, Any]
    """All choices that the numbers depend on."""
    warnings: list[str]
    points: dict[str, np.ndarray] = field(repr=False)
    """Each run: parameters, tokens, flops, loss, used (in the fit), predicted."""
    draws: np.ndarray = field(repr=False)
    """[resamples, 5]: E, A, B, alpha, beta of each refit."""

    @property
    def law(self) -> Law:
        """The fitted law."""
        return Law(*(self.parameters[name] for name in NAMES))

    @property
    def law_draws(self) -> Law:
        """The refitted laws, as arrays [resamples]."""
        return Law(*self.draws.T)

    @property
    def widening(self) -> float:
        """What the spread of the draws is to be multiplied with (`bootstrap.widening`)."""
        return float(self.settings["widening"])

    def to_json(self) -> dict[str, Any]:
        """As in fit.json."""
        return {"method": self.method, **plain(self)}


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

    `parameters`, `tokens`, `loss` are [n], a run each; `flops` [n] says what the largest runs are (6 N D if None). `delta` is
    Huber's, in units of the residuals (log loss, or nats); infinity is least squares. `tied` makes beta equal alpha.
    `bootstrap` refits of resamples give errors and intervals; 0 leaves the delta method's. `convention` is a note for the record.

    Raises UserError for data that can't carry the fit: too few sizes, a parameter at a bound, no convergence.
    """
    check_choice("residuals", residuals, get_args(Scale))
    check_choice("solver", solver, get_args(Solver))
    boot.check_resampling(resampling, bootstrap, seed)
    require(delta > 0, "delta", delta, "above 0 (inf: least squares)")
    table = columns(parameters=parameters, tokens=tokens, loss=loss, flops=flops)
    table.setdefault("flops", FLOPS_A_WEIGHT * table["parameters"] * table["tokens"])
    n = len(table["loss"])
    require(0 <= drop_highest_losses < n, "drop_highest_losses", drop_highest_losses, f"from 0 to less than the {n} runs")
    used = without_highest(table["loss"], drop_highest_losses)
    check_points(table, used, tied)

    problem = Problem(table, residuals, delta, tied)
    solutions = problem.projected(used) if solver == "variable_projection" else problem.from_starts(used)
    theta = checked(solutions, problem, used)
    law = from_theta(theta, tied)
    covariance = problem.covariance(theta, used)

    draws, widen = np.zeros((0, 5)), boot.widening(resampling, int(used.sum()))
    warnings = []
    if bootstrap:
        refits = problem.resampled(theta, used, resampling, bootstrap, seed)
        good = refits.converged & np.isfinite(refits.objective)
        if (failed := int(bootstrap - good.sum())) > 0.02 * bootstrap:
            warnings.append(f"{failed} of {bootstrap} resamples did not converge and are left out: the intervals are too narrow")
        draws = np.stack(as_tuple(from_theta(refits.theta[good], tied)), -1)

    values = named(law)
    errors_delta = delta_errors(law, covariance)
    intervals_delta = {name: (values[name] - Z * error, values[name] + Z * error) for name, error in errors_delta.items()}
    errors, intervals = dict(errors_delta), dict(intervals_delta)
    if bootstrap:
        spreads = {name: boot.spread(values[name], drawn, widen) for name, drawn in named(Law(*draws.T)).items()}
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
            "starts": len(EXPONENTS) ** (1 if tied else 2) if solver == "variable_projection" else len(solutions.objective),
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
    warnings += doubts(fit)
    fit.warnings.extend(warnings)
    return fit


class Problem:
    """The points as the solver wants them, and the ways to fit them. `theta` is log E, log A, log B, alpha, beta (not if tied)."""

    def __init__(self, table: dict[str, np.ndarray], scale: str, delta: float, tied: bool) -> None:
        self.table, self.scale, self.delta, self.tied = table, scale, delta, tied
        self.data = {"log_n": np.log(table["parameters"]), "log_d": np.log(table["tokens"]), "target": self.target(table["loss"])}
        self.look = look_of(scale, "tied" if tied else "free")

    def target(self, loss: np.ndarray) -> np.ndarray:
        """What the residuals compare with."""
        return np.log(loss) if self.scale == "log" else loss

    def fit(self, starts: np.ndarray, weights: np.ndarray, own: dict[str, np.ndarray] | None = None) -> Solutions:
        """All parameters, from each start."""
        shared = {name: values for name, values in self.data.items() if name not in (own or {})}
        return minimise(self.look, starts, shared, weights, self.delta, own)

    def projected(self, used: np.ndarray) -> Solutions:
        """The joint fits from the best cells of variable projection."""
        exponents = [(alpha, alpha) for alpha in EXPONENTS] if self.tied else [(alpha, beta) for alpha in EXPONENTS for beta in EXPONENTS]
        alpha, beta = np.asarray(exponents).T
        loss, middle = self.table["loss"][used], {k: np.median(self.data[k][used]) for k in ("log_n", "log_d")}
        third = np.log((np.median(loss) - 0.7 * loss.min()) / 2)
        starts = np.stack([np.full(len(alpha), np.log(0.7 * loss.min())), third + alpha * middle["log_n"], third + beta * middle["log_d"]], -1)
        own = {"alpha": alpha, "beta": beta}
        cells = minimise(look_of(self.scale, "projected"), starts, self.data, used.astype(float), self.delta, own)
        best = np.argsort(np.where(np.isfinite(cells.objective), cells.objective, np.inf))[:CELLS]
        joint = np.concatenate([cells.theta, alpha[:, None], *([] if self.tied else [beta[:, None]])], -1)[best]
        return self.fit(joint, used.astype(float))

    def from_starts(self, used: np.ndarray) -> Solutions:
        """The joint fits from Hoffmann et al.'s starts."""
        return self.fit(hoffmann_starts(self.tied), used.astype(float))

    def resampled(self, theta: np.ndarray, used: np.ndarray, resampling: str, count: int, seed: int) -> Solutions:
        """Refits of resamples, each from the fit of the whole."""
        weights = boot.resampled_weights(resampling, used, count, seed)
        own = None
        if resampling == "residual":
            prediction = self.target(from_theta(theta, self.tied).loss(self.table["parameters"], self.table["tokens"]))
            own = {"target": prediction + boot.resampled_residuals(self.data["target"] - prediction, used, len(theta), count, seed)}
        return self.fit(np.repeat(theta[None], count, 0), weights, own)

    def covariance(self, theta: np.ndarray, used: np.ndarray) -> np.ndarray:
        """[5, 5] of E, A, B, alpha, beta, by the delta method."""
        e, a, b = np.exp(theta[:3])
        whole = sandwich(self.look, theta, self.data, used.astype(float), self.delta)
        to_natural = np.zeros((5, len(theta)))
        to_natural[[0, 1, 2, 3], [0, 1, 2, 3]] = [e, a, b, 1]
        to_natural[4, -1] = 1
        return to_natural @ whole @ to_natural.T

    def sensitivity(self, theta: np.ndarray, dropped: int) -> list[dict[str, Any]]:
        """The exponents under other choices, each refitted from this fit."""
        loss = self.table["loss"]
        drops = [k for k in sorted({*DROPS, dropped}) if k < len(loss) / 2]
        weights = np.stack([without_highest(loss, k) for k in drops]).astype(float)
        found: list[tuple[dict[str, Any], Law | None]] = [
            ({"drop_highest_losses": k}, law_of(self.fit(theta, w), self.tied)) for k, w in zip(drops, weights, strict=True)
        ]
        own = without_highest(loss, dropped).astype(float)
        for delta in (self.delta / 10, self.delta * 10, np.inf):
            if np.isfinite(self.delta) and delta != self.delta:
                other = minimise(self.look, theta, self.data, own, delta)
                found.append(({"delta": delta}, law_of(other, self.tied)))
        other_scale = Problem(self.table, "linear" if self.scale == "log" else "log", self.delta, self.tied)
        found.append(({"residuals": other_scale.scale}, law_of(other_scale.fit(theta, own), self.tied)))
        return [{**choice, **named(law)} for choice, law in found if law is not None]


@functools.cache
def look_of(scale: str, form: str) -> Look:
    """The law's (log) loss less the measured one, and its derivatives; of a "free", "tied" or "projected" law."""

    def look(theta: Any, data: Any) -> tuple[Any, Any]:
        log_n, log_d = data["log_n"], data["log_d"]
        alpha = data["alpha"] if form == "projected" else theta[3]
        beta = data["beta"] if form == "projected" else theta[-1]
        terms = jnp.stack([jnp.full_like(log_n, theta[0]), theta[1] - alpha * log_n, theta[2] - beta * log_d])
        highest = jax.lax.stop_gradient(terms.max(0))  # a log-sum-exp, which no start overflows
        parts = jnp.exp(terms - highest)
        whole = parts.sum(0)
        predicted, (e, a, b) = highest + jnp.log(whole), parts / whole
        slopes = {"projected": [e, a, b], "free": [e, a, b, -log_n * a, -log_d * b], "tied": [e, a, b, -log_n * a - log_d * b]}[form]
        jacobian = jnp.stack(slopes, -1)
        if scale == "linear":
            predicted = jnp.exp(predicted)
            jacobian = predicted[:, None] * jacobian
        return predicted - data["target"], jacobian

    return look


@functools.cache
def hoffmann_starts(tied: bool = False) -> np.ndarray:
    """[4500, 5]: log E, log A, log B, alpha, beta; [900, 4] where the exponents are one.

    >>> hoffmann_starts().shape
    (4500, 5)
    """
    axes = [START_E, START_A, START_B, START_EXPONENT] + ([] if tied else [START_EXPONENT])
    return np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], -1)


def without_highest(loss: np.ndarray, count: int) -> np.ndarray:
    """[n], bool: all but the `count` highest losses.

    >>> without_highest(np.array([3.0, 5.0, 4.0]), 1).tolist()
    [True, False, True]
    """
    used = np.ones(len(loss), bool)
    used[np.argsort(-loss, kind="stable")[:count]] = False
    return used


def check_points(table: dict[str, np.ndarray], used: np.ndarray, tied: bool) -> None:
    """Raises UserError where there is less than the fit asks for."""
    need = 5 + (not tied)
    if used.sum() < need:
        raise UserError(f"{used.sum()} runs: a fit of {need - 1} parameters needs at least {need}")
    for name, what in (("parameters", "sizes"), ("tokens", "numbers of tokens")):
        values = np.log(np.sort(table[name][used]))
        different = 1 + int((np.diff(values) > 0.01).sum())
        if different < 3:
            raise UserError(f"{name}: {different} different {what}: a power law with a floor needs at least three")


def checked(solutions: Solutions, problem: Problem, used: np.ndarray) -> np.ndarray:
    """The best theta. Raises UserError where it is none: at a bound, where its start put it, not converged."""
    if not np.isfinite(solutions.objective).any():
        raise UserError("no start has a finite objective: look at the table's units")
    best = solutions.best
    theta, law = solutions.theta[best], from_theta(solutions.theta[best], problem.tied)
    terms = {
        "E": law.E / problem.table["loss"][used].min(),
        "A": (law.A / problem.table["parameters"][used] ** law.alpha).max() / problem.table["loss"][used].max(),
        "B": (law.B / problem.table["tokens"][used] ** law.beta).max() / problem.table["loss"][used].max(),
    }
    for name, part in terms.items():
        if not part > SEEN:
            raise UserError(f"{name}={getattr(law, name):.3g}: at its bound, 0: the runs do not show this term; vary it more, or use another method")
    for name in ("alpha", "beta"):
        if not SHORTEST < getattr(law, name) < LONGEST:
            raise UserError(f"{name}={getattr(law, name):.4g}: at a bound ({SHORTEST} to {LONGEST}): the runs do not determine it")
    equal = solutions.converged & (solutions.objective <= (1 + EQUAL) * solutions.objective[best])
    for i, name in enumerate(NAMES[: solutions.theta.shape[1]]):
        ends = solutions.theta[equal, i]
        if len(ends) and np.ptp(ends) > 0.05:
            raise UserError(f"{name}: starts end at one objective with values apart (by {np.ptp(ends):.2g}): each stays where its start put it")
    if not solutions.converged[best]:
        raise UserError("the best fit did not converge: the runs do not determine all parameters; try tied=true, or more runs")
    return theta


def leave_largest_out(problem: Problem, theta: np.ndarray, used: np.ndarray) -> dict[str, Any]:
    """The law without the runs of the largest compute, against these runs."""
    table = problem.table
    out = largest(table["flops"], used)
    rest = used & ~out
    try:
        check_points(table, rest, problem.tied)
        law = law_of(problem.fit(theta, rest.astype(float)), problem.tied)
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
        "parameters": named(law),
    }


def law_of(solutions: Solutions, tied: bool) -> Law | None:
    """The best law of a refit; None if it did not converge."""
    if not np.isfinite(solutions.objective).any() or not solutions.converged[solutions.best]:
        return None
    return from_theta(solutions.theta[solutions.best], tied)


def as_tuple(law: Law) -> tuple[Any, ...]:
    """E, A, B, alpha, beta."""
    return tuple(getattr(law, name) for name in NAMES)


def named(law: Law) -> dict[str, Any]:
    """By name: the five, and a, b, G that follow from them."""
    values = {**dict(zip(NAMES, as_tuple(law), strict=True)), "a": law.a, "b": law.b, "G": law.G}
    return {name: float(value) if np.ndim(value) == 0 else value for name, value in values.items()}


def delta_errors(law: Law, covariance: np.ndarray) -> dict[str, float]:
    """Standard errors of all that `named` has, by the delta method with numeric derivatives."""
    at = np.asarray(as_tuple(law), float)
    steps = 1e-6 * at
    ahead = [named(Law(*(at + np.eye(5)[i] * steps[i]))) for i in range(5)]
    behind = [named(Law(*(at - np.eye(5)[i] * steps[i]))) for i in range(5)]
    errors = {}
    for name in named(law):
        slope = np.array([(ahead[i][name] - behind[i][name]) / (2 * steps[i]) for i in range(5)])
        errors[name] = float(np.sqrt(max(slope @ covariance @ slope, 0.0)))
    return errors


def doubts(fit: ParametricFit) -> list[str]:
    """What a reader of the numbers should know before believing them."""
    said = []
    for name in ("alpha", "beta"):
        value, error = fit.parameters[name], fit.standard_errors[name]
        if error > 0.2 * value:
            said.append(
                f"{name} is known to {error / value:.0%} only: its interval is {fit.intervals_95[name][0]:.3f} to {fit.intervals_95[name][1]:.3f}"
            )
    for name in ("A", "B"):
        low, high = fit.intervals_95[name]
        if fit.draws.size and high > 4 * max(low, 1e-300):
            said.append(f"{name} is known to a factor of {high / low:.1f}: it goes with its exponent; read the two together (covariance)")
    drops = [row for row in fit.sensitivity if "drop_highest_losses" in row]
    for name in ("alpha", "beta"):
        found = [row[name] for row in drops]
        if found and max(found) - min(found) > 2 * fit.standard_errors[name]:
            said.append(f"{name} goes from {min(found):.3f} to {max(found):.3f} with the number of highest losses dropped: more than its error says")
    held = fit.leave_largest_out
    if "refused" in held:
        said.append(f"no extrapolation test: without the largest {held['runs']} runs, {held['refused']}")
    elif held["largest_relative_error"] > 0.02:
        said.append(f"the law of the smaller runs misses the largest by up to {held['largest_relative_error']:.1%} in loss")
    times = fit.points["flops"] / (FLOPS_A_WEIGHT * fit.points["parameters"] * fit.points["tokens"])
    if abs(np.log(times)).max() > np.log(1.05):
        said.append(f"flops are {times.min():.2f} to {times.max():.2f} times 6 N D; a, b and what they recommend take C = 6 N D")
    ratio = fit.points["tokens"] / fit.points["parameters"]
    if fit.points["used"].any() and np.ptp(np.log(ratio[fit.points["used"]])) < np.log(4):
        said.append("tokens a parameter hardly vary: alpha and beta can't be told apart, and a, b rest on the form of the law alone")
    return said
