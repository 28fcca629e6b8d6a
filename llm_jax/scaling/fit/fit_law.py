"""The procedure that fits laws with a few parameters: robust regression from a grid of starts, resamples, an
extrapolation test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError, require
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.result import FitResult
from llm_jax.scaling.fit.solve import (
    ResidualFn,
    Solutions,
    float64,
    minimise,
    residuals_and_jacobian,
    sandwich,
)

Z = 1.959964
"""97.5 % quantile of the standard normal: half the width of a 95 % interval."""


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
    residual_fn: ResidualFn
    """The residuals of the target and their derivatives."""
    predict: Callable[[Any, Any], Any]
    """predict(theta, data) -> the target [n], in JAX."""
    starts: np.ndarray
    """[S, P]"""
    bounds: dict[str, tuple[float, float]]
    """A parameter at or beyond its bounds is not determined by the runs."""

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """The parameters [..., P] from theta [..., P]."""
        return np.where(self.positive, np.exp(np.where(self.positive, theta, 0.0)), theta)


def residual_function(predict: Callable[[Any, Any], Any], target: str, log: bool) -> ResidualFn:
    """The residual function of a law: predicted less target, of logarithms if `log` (the target is one
    already), with JAX's derivatives."""

    def residuals(theta: Any, data: Any) -> Any:
        predicted = predict(theta, data)
        if not log:
            return predicted - data["target"]
        return jnp.log(jnp.maximum(predicted, 1e-300)) - data["target"]

    return residuals_and_jacobian(residuals)


def fit_law(
    law: SmallLaw,
    table: dict[str, np.ndarray],
    data: dict[str, np.ndarray],
    used: np.ndarray,
    held_out: np.ndarray,
    *,
    log: bool,
    delta: float,
    bootstrap: int,
    resampling: str,
    seed: int,
    settings: dict[str, Any],
) -> LawFit:
    """Fits a law to the runs `used` [n]; a second fit leaves out the runs `held_out` [n] and predicts them.

    `data` are the arrays that the law's `predict` reads; `log`: residuals of logarithms; `delta`: Huber's, in
    units of the residuals; `settings`: added to the result's. Raises UserError where the runs do not
    determine the law.
    """
    boot.check_resampling(resampling, bootstrap, seed)
    require(delta > 0, "delta", delta, "above 0 (inf: least squares)")
    unknown = len(law.names)
    if used.sum() < unknown + 1:
        raise UserError(
            f"runs={used.sum()}: a fit of {unknown} parameters needs at least {unknown + 1}. Add runs."
        )
    target = np.log(table[law.target]) if log else table[law.target]

    def fit(starts: np.ndarray, weights: np.ndarray, own: dict[str, np.ndarray] | None = None) -> Solutions:
        return minimise(
            law.residual_fn, starts, data if own else {**data, "target": target}, weights, delta, own
        )

    solutions = fit(law.starts, used.astype(float))
    theta = check_solution(law, solutions)
    values = law.natural(theta)
    scale = np.where(law.positive, values, 1.0)
    covariance = (
        scale[:, None]
        * sandwich(law.residual_fn, theta, {**data, "target": target}, used.astype(float), delta)
        * scale
    )
    with np.errstate(invalid="ignore"):
        errors_delta = np.sqrt(np.diag(covariance))
    predicted = np.asarray(evaluate_law(law, theta, data))

    draws, widen = np.zeros((0, unknown)), boot.widening(resampling, int(used.sum()))
    warnings: list[str] = []
    errors, intervals = (
        list(errors_delta),
        [(v - Z * e, v + Z * e) for v, e in zip(values, errors_delta, strict=True)],
    )
    if bootstrap:
        own = None
        if resampling == "residual":
            centre = np.log(predicted) if log else predicted
            own = {
                "target": centre + boot.resampled_residuals(target - centre, used, unknown, bootstrap, seed)
            }
        refits = fit(
            np.repeat(theta[None], bootstrap, 0),
            boot.resampled_weights(resampling, used, bootstrap, seed),
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
                *(boot.spread(values[i], draws[:, i], widen) for i in range(unknown)), strict=True
            )
        )
    for name, value, (low, high) in zip(law.names, values, intervals, strict=True):
        if high - low > abs(value):
            warnings.append(f"{name} is hardly determined: {low:.4g} to {high:.4g}")
    return LawFit(
        method=law.method,
        objective=float(solutions.objective[solutions.best]),
        parameters=dict(zip(law.names, map(float, values), strict=True)),
        standard_errors=dict(zip(law.names, map(float, errors), strict=True)),
        intervals_95=dict(zip(law.names, intervals, strict=True)),
        standard_errors_delta=dict(zip(law.names, map(float, errors_delta), strict=True)),
        covariance=covariance,
        leave_largest_out=leave_largest_out(law, table, data, target, used, held_out, theta, delta, warnings),
        settings={
            "law": law.text,
            "residuals": "log" if log else "linear",
            "delta": delta,
            "objective": "sum",
            "starts": len(law.starts),
            "optimizer": "damped Gauss-Newton, float64",
            "runs": len(target),
            "runs_used": int(used.sum()),
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
    for name, value in zip(law.names, law.natural(solutions.theta[best]), strict=True):
        low, high = law.bounds.get(name, (-np.inf, np.inf))
        if not low < value < high:
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
    target: np.ndarray,
    used: np.ndarray,
    held_out: np.ndarray,
    theta: np.ndarray,
    delta: float,
    warnings: list[str],
) -> dict[str, Any]:
    """Extrapolation test: predicts the runs `held_out` [n] from the law fitted to the other runs. Appends to
    `warnings` if it fails."""
    out, rest = used & held_out, used & ~held_out
    if not out.any() or rest.sum() < len(law.names) + 1:
        refused = f"{rest.sum()} runs are left, and {len(law.names)} parameters need one more than that"
        warnings.append(f"no extrapolation test: {refused}")
        return {"runs": int(out.sum()), "refused": refused}
    refit = minimise(law.residual_fn, theta, {**data, "target": target}, rest.astype(float), delta)
    predicted, measured = evaluate_law(law, refit.theta[0], data)[out], table[law.target][out]
    error = predicted / measured - 1
    if abs(error).max() > 0.02:
        warnings.append(
            f"the law of the other runs misses the largest by up to {abs(error).max():.1%} in {law.target}"
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
