"""Fits of laws with a few parameters, all in one way: robust regression from a grid of starts, resamples, the largest runs left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError, require
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.result import plain
from llm_jax.scaling.fit.solve import Look, Solutions, minimise, sandwich

Z = 1.959964
"""Half of a normal's 95 %."""


@dataclass(frozen=True)
class LawFit:
    """A fitted law. Tables are by the law's parameters."""

    method: str
    objective: float
    """Sum of Huber's loss of the residuals."""
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    """Of resamples; by the delta method where there are none."""
    intervals_95: dict[str, tuple[float, float]]
    standard_errors_delta: dict[str, float]
    covariance: np.ndarray
    """[P, P], by the delta method, in the order of `parameters`."""
    leave_largest_out: dict[str, Any]
    settings: dict[str, Any]
    warnings: list[str]
    points: dict[str, np.ndarray] = field(repr=False)
    """Each run: the columns, used (in the fit), predicted."""
    draws: np.ndarray = field(repr=False)
    """[resamples, P]"""

    def to_json(self) -> dict[str, Any]:
        """As in fit.json."""
        return plain(self)


@dataclass(frozen=True)
class SmallLaw:
    """A law as `fit_law` wants it. `theta` [P] has the logarithms of those parameters that must be above 0."""

    method: str
    text: str
    """The law, for people."""
    names: tuple[str, ...]
    positive: tuple[bool, ...]
    """Which of them are fitted as logarithms."""
    target: str
    """The column that it foretells."""
    look: Look
    predict: Callable[[Any, Any], Any]
    """predict(theta, data) -> [n]: the column, in JAX."""
    starts: np.ndarray
    """[S, P]"""
    bounds: dict[str, tuple[float, float]]
    """Beyond these a parameter is not determined by the runs."""

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """The parameters themselves, from theta [..., P]."""
        return np.where(self.positive, np.exp(np.where(self.positive, theta, 0.0)), theta)


def looking(predict: Callable[[Any, Any], Any], target: str, log: bool) -> Look:
    """The residuals of a law and their derivatives, which JAX takes."""

    def residuals(theta: Any, data: Any) -> Any:
        predicted = predict(theta, data)
        if not log:
            return predicted - data["target"]
        return jnp.log(jnp.maximum(predicted, 1e-300)) - data["target"]

    return lambda theta, data: (residuals(theta, data), jax.jacfwd(residuals)(theta, data))


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
    """Fits a law to the runs `used` [n]; `held_out` [n] are the ones that a second fit leaves out and foretells.

    `data` is what the law's `predict` reads. Raises UserError where the runs do not determine the law.
    """
    boot.check_resampling(resampling, bootstrap, seed)
    require(delta > 0, "delta", delta, "above 0 (inf: least squares)")
    unknown = len(law.names)
    if used.sum() < unknown + 1:
        raise UserError(f"{used.sum()} runs: a fit of {unknown} parameters needs at least {unknown + 1}")
    target = np.log(table[law.target]) if log else table[law.target]

    def fit(starts: np.ndarray, weights: np.ndarray, own: dict[str, np.ndarray] | None = None) -> Solutions:
        return minimise(law.look, starts, data if own else {**data, "target": target}, weights, delta, own)

    solutions = fit(law.starts, used.astype(float))
    theta = checked(law, solutions)
    values = law.natural(theta)
    scale = np.where(law.positive, values, 1.0)
    covariance = scale[:, None] * sandwich(law.look, theta, {**data, "target": target}, used.astype(float), delta) * scale
    with np.errstate(invalid="ignore"):
        errors_delta = np.sqrt(np.diag(covariance))
    predicted = np.asarray(predicted_by(law, theta, data))

    draws, widen = np.zeros((0, unknown)), boot.widening(resampling, int(used.sum()))
    warnings: list[str] = []
    errors, intervals = list(errors_delta), [(v - Z * e, v + Z * e) for v, e in zip(values, errors_delta, strict=True)]
    if bootstrap:
        own = None
        if resampling == "residual":
            centre = np.log(predicted) if log else predicted
            own = {"target": centre + boot.resampled_residuals(target - centre, used, unknown, bootstrap, seed)}
        refits = fit(np.repeat(theta[None], bootstrap, 0), boot.resampled_weights(resampling, used, bootstrap, seed), own)
        if (failed := int((~refits.converged).sum())) > 0.02 * bootstrap:
            warnings.append(f"{failed} of {bootstrap} resamples did not converge and are left out: the intervals are too narrow")
        draws = law.natural(refits.theta[refits.converged])
        if len(draws) < bootstrap / 2:
            raise UserError(f"{failed} of {bootstrap} resamples have no fit: the runs do not determine {', '.join(law.names)}")
        errors, intervals = (list(part) for part in zip(*(boot.spread(values[i], draws[:, i], widen) for i in range(unknown)), strict=True))
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
        leave_largest_out=leave_out(law, table, data, target, used, held_out, theta, delta, warnings),
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


def predicted_by(law: SmallLaw, theta: np.ndarray, data: dict[str, np.ndarray]) -> np.ndarray:
    """The law's column [n], in float64."""
    from llm_jax.scaling.fit.solve import float64

    with float64():
        return np.asarray(law.predict(jnp.asarray(theta), data))


def checked(law: SmallLaw, solutions: Solutions) -> np.ndarray:
    """The best theta. Raises UserError where it is at a bound or none was found."""
    if not np.isfinite(solutions.objective).any():
        raise UserError("no start has a finite objective: look at the table's units")
    best = solutions.best
    for name, value in zip(law.names, law.natural(solutions.theta[best]), strict=True):
        low, high = law.bounds.get(name, (-np.inf, np.inf))
        if not low < value < high:
            raise UserError(f"{name}={value:.4g}: at a bound ({low:g} to {high:g}): the runs do not determine it")
    if not solutions.converged[best]:
        raise UserError(f"the best fit did not converge: the runs do not determine all of {', '.join(law.names)}")
    return solutions.theta[best]


def leave_out(
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
    """What the law fitted without `held_out` says of them, against what was measured."""
    out, rest = used & held_out, used & ~held_out
    if not out.any() or rest.sum() < len(law.names) + 1:
        refused = f"{rest.sum()} runs are left, and {len(law.names)} parameters need one more than that"
        warnings.append(f"no extrapolation test: {refused}")
        return {"runs": int(out.sum()), "refused": refused}
    refit = minimise(law.look, theta, {**data, "target": target}, rest.astype(float), delta)
    predicted, measured = predicted_by(law, refit.theta[0], data)[out], table[law.target][out]
    error = predicted / measured - 1
    if abs(error).max() > 0.02:
        warnings.append(f"the law of the other runs misses the largest by up to {abs(error).max():.1%} in {law.target}")
    return {
        "runs": int(out.sum()),
        "measured": measured,
        "predicted": predicted,
        "mean_relative_error": float(error.mean()),
        "largest_relative_error": float(abs(error).max()),
        "parameters": dict(zip(law.names, map(float, law.natural(refit.theta[0])), strict=True)),
    }


def grid(*axes: Any) -> np.ndarray:
    """All combinations of some values of each parameter, [S, P].

    >>> grid([1, 2], [3]).tolist()
    [[1.0, 3.0], [2.0, 3.0]]
    """
    return np.stack([np.asarray(part, float).ravel() for part in np.meshgrid(*axes, indexing="ij")], -1)
