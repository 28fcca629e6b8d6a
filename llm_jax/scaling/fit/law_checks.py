"""The numbers that follow from the law of approach 3, and the warnings of its fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.scaling.fit.bootstrap import standard_errors
from llm_jax.scaling.fit.bounded import Floor
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT, NAMES, Law
from llm_jax.scaling.fit.repeats import cell_numbers


def check_points(table: dict[str, np.ndarray], used: np.ndarray, tied: bool, floor: Floor = "free") -> None:
    """Raises UserError where the table has too few different runs, sizes or numbers of tokens for the fit."""
    need = 6 - tied - (floor != "free")
    different = len(np.unique(cell_numbers(table, ("parameters", "tokens"))[used]))
    if different < need:
        repeated = f" ({used.sum()}, of {different} sizes and numbers of tokens)"
        raise UserError(
            f"runs={different}: a fit of {need - 1} parameters needs at least {need}"
            f"{repeated if different < used.sum() else ''}. Add runs, or use another method."
        )
    for name, what in (("parameters", "sizes"), ("tokens", "numbers of tokens")):
        values = np.log(np.sort(table[name][used]))
        different = 1 + int((np.diff(values) > 0.01).sum())
        if different < 3:
            raise UserError(
                f"{name}: {different} different {what}, but a power law with a floor needs at least "
                "three. Add runs that differ."
            )


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
    steps = 1e-6 * np.where(at > 0, at, 1.0)
    ahead = [values_by_name(Law(*(at + np.eye(5)[i] * steps[i]))) for i in range(5)]
    behind = [values_by_name(Law(*(at - np.eye(5)[i] * steps[i]))) for i in range(5)]
    errors = {}
    for name in values_by_name(law):
        slope = np.array([(ahead[i][name] - behind[i][name]) / (2 * steps[i]) for i in range(5)])
        errors[name] = float(standard_errors(np.maximum(slope @ covariance @ slope, 0.0)))
    return errors


def caveats(fit: Any) -> list[str]:
    """The warnings of a `ParametricFit`: wide intervals, dependence on the highest losses, a failed
    extrapolation test, columns that vary too little."""
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
        largest = "largest run" if held["runs"] == 1 else f"{held['runs']} largest runs"
        warnings.append(f"no extrapolation test: without the {largest}, {held['refused']}")
    elif held["largest_relative_error"] > 0.02:
        warnings.append(
            "the law of the smaller runs misses the largest by up to "
            f"{held['largest_relative_error']:.1%} in loss"
        )
    p = {name: fit.points[name][fit.points["used"]] for name in ("flops", "parameters", "tokens")}
    times = p["flops"] / (FLOPS_A_WEIGHT * p["parameters"] * p["tokens"])
    if abs(np.log(times)).max() > np.log(1.05):
        warnings.append(
            f"flops are {times.min():.2f} to {times.max():.2f} times 6 N D, but a, b and recommendations "
            "assume C = 6 N D"
        )
    if np.ptp(np.log(p["tokens"] / p["parameters"])) < np.log(4):
        warnings.append(
            "tokens a parameter hardly vary: alpha and beta are not determined separately, and a, b rest "
            "on the form of the law alone"
        )
    return warnings
