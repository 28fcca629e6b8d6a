"""Approach 2, IsoFLOP: N*(C) from the minima of loss over model size at several compute budgets (Hoffmann et
al. 2022).

The losses of a budget form a curve in log N whose minimum is N*. The slope of a weighted line through log N*
against log C is the exponent. The defaults follow Porian et al. (2024): Akima's curve through the points;
resamples of its minimum with noise on the losses (their seeds differ by 0.002 in loss); N* is the median of
the minima, its error their spread, but at least 0.33 of an interval; a budget whose minimum is at the
smallest or largest size is left out. A run off the curve of its budget's other runs is left out too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy import stats

from llm_jax.core.errors import UserError, check_choice, require
from llm_jax.core.format import counted
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.curves import CURVES, fit_lines
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT
from llm_jax.scaling.fit.minima import (
    LEAST_ERROR,
    Budget,
    Minimum,
    budget_numbers,
    find_minimum,
    leave_out_outliers,
    make_budget,
)
from llm_jax.scaling.fit.optimum import OptimumFit, estimates, line_covariance, predicted_optimum
from llm_jax.scaling.fit.outliers import Outliers, mistyped
from llm_jax.scaling.fit.repeats import seed_noise
from llm_jax.scaling.fit.result import columns, names_of, run_text

Curve = Literal["akima", "parabola", "parabola_local"]
Resampling = Literal["noise", "case", "residual", "subsample"]
MOST_NAMED = 5
"""The most budgets that an error line names."""
LOSS_NOISE = 0.002
"""The standard deviation of loss between seeds, in nats, where runs don't show it (Porian et al. 2024)."""


@dataclass(frozen=True, kw_only=True)
class IsoflopFit(OptimumFit):
    """Result of approach 2. `objective` is the weighted mean of the squared residuals of log N*.

    `covariance` [2, 2] is that of log N_coefficient and a; `points` has flops, parameters, tokens, loss,
    budget (the number of the run's budget among the minima, -1 without) and used (in the curves).
    """

    method: str = "isoflop"
    b_interval_95: tuple[float, float]
    a_interval_95_delta: tuple[float, float]
    """From the line's own residuals, by Student's t."""
    minima: tuple[Minimum, ...]
    sensitivity: list[dict[str, Any]]
    """The exponent under other choices: curves without noise, other weights, budgets left out."""


def isoflop(
    flops: Any,
    parameters: Any,
    loss: Any,
    *,
    tokens: Any = None,
    seeds: Any = None,
    name: Any = None,
    curve: Curve = "akima",
    points_per_interval: int = 25,
    loss_noise: float | None = None,
    weighted: bool = True,
    outliers: Outliers = "leave_out",
    bootstrap: int = 1000,
    resampling: Resampling = "noise",
    seed: int = 0,
    convention: str = "as given",
) -> IsoflopFit:
    """Finds each budget's best size N* and fits `N* = k C^a`.

    `flops`, `parameters`, `loss` are [n], one entry a run; `tokens` [n] are flops/(6 parameters) if None.
    Runs whose FLOPs differ by less than 25 %, or are one number, form one budget. Of several runs of one size
    the one of lowest loss counts; with `seeds` [n], those that differ in it alone are averaged. `name` [n] is
    what warnings call the runs. `curve` is "akima", a "parabola" of loss against log N through all sizes, or
    "parabola_local" through the lowest three. `loss_noise` is the standard deviation of loss between seeds,
    in nats; None: that of repeated seeds, or else 0.002. `weighted` weights each minimum by 1/error².
    `points_per_interval` are the points between two sizes at which a curve is drawn; a minimum that is nearer
    to the smallest or largest size than one of them is on the edge.
    `outliers`: "leave_out" or "keep" a run far off the curve of its budget's others. `resampling`: "noise" on
    the losses, "residual" (parabolas), or "case" and "subsample" of the budgets.

    Raises UserError where fewer than three budgets have a minimum between their smallest and largest size.
    """
    check_choice("curve", curve, get_args(Curve))
    check_choice("resampling", resampling, get_args(Resampling))
    check_choice("outliers", outliers, get_args(Outliers))
    boot.check_seed(seed)
    require(bootstrap >= 20, "bootstrap", bootstrap, "at least 20: the errors of the minima come from it")
    require(points_per_interval >= 2, "points_per_interval", points_per_interval, "at least 2")
    require(
        loss_noise is None or loss_noise > 0,
        "loss_noise",
        loss_noise,
        "above 0, in nats: how much seeds differ",
    )
    if resampling == "residual" and curve != "parabola":
        raise UserError(
            f"resampling=residual: curve={curve} interpolates the points and leaves no residuals. Use "
            "resampling=noise or curve=parabola."
        )
    table = columns(
        flops=flops, parameters=parameters, loss=loss, tokens=tokens, others={"seeds": seeds, "name": name}
    )
    table.setdefault("tokens", table["flops"] / FLOPS_A_WEIGHT / table["parameters"])
    right, warnings = mistyped(table, outliers)
    numbers = np.full(len(right), -1)  # that of a run which is wrong
    numbers[right] = budget_numbers(table["flops"][right])
    measured = seed_noise({**table, "budget": numbers}, ("budget", "parameters"))
    noise = loss_noise or (measured.noise if measured else LOSS_NOISE)
    budgets = [make_budget(table, numbers == i, measured is not None) for i in range(numbers.max() + 1)]
    rows = np.concatenate([budget.rows for budget in budgets])
    averaged = noise / np.sqrt(right.sum() / len(rows)) if measured else noise  # that of a mean over seeds
    out: list[tuple[int, float]] = []
    if outliers == "leave_out":
        budgets, out = leave_out_outliers(budgets, averaged)
    warnings += [
        f"left out: {run_text(table, row)}, where the curve of its budget's other runs has "
        f"{expected:.4f}. Correct its row, or keep it with outliers=keep"
        for row, expected in out
    ]
    if repeated := int(right.sum()) - len(rows):
        warnings.append(
            f"{counted(repeated, 'run')} of {len(table['loss'])} repeat a size of their budget: "
            + ("seeds are averaged" if measured else "the lowest loss of each size is used")
        )
    used = right if measured else np.isin(np.arange(len(table["loss"])), rows)
    for row, _ in out:
        used[(numbers == numbers[row]) & (table["parameters"] == table["parameters"][row])] = False
    rng = np.random.default_rng(seed)
    found = [
        find_minimum(budget, curve, points_per_interval, averaged, bootstrap, resampling, rng)
        for budget in budgets
    ]
    minima = tuple(minimum for minimum, _ in found)
    inside = [i for i, minimum in enumerate(minima) if not minimum.left_out]
    if len(inside) < 3:
        whys = [line for line in warnings if line.startswith("left out: ")]
        whys += [f"{m.flops:.3g} FLOPs: {m.left_out}" for m in minima if m.left_out]
        more = f"; and {len(whys) - MOST_NAMED} more" if len(whys) > MOST_NAMED else ""
        why = "; ".join(whys[:MOST_NAMED]) + more
        raise UserError(
            f"flops: {len(inside)} of {len(minima)} budgets have a minimum inside of their sizes, but a "
            "line needs at least three "
            f"({why or 'train more budgets'})"
        )
    log_c = np.log([minima[i].flops for i in inside])
    log_n, log_d = (
        np.log(np.array([getattr(minima[i], name) for i in inside])) for name in ("parameters", "tokens")
    )
    error = np.array([minima[i].log_error for i in inside])
    weights = error**-2 if weighted else np.ones_like(error)
    line_n, line_d = fit_lines(log_c, np.stack([log_n, log_d]), np.stack([weights] * 2))

    count = min(len(found[i][1]) for i in inside)
    stars_n = np.stack([found[i][1][:count, 0] for i in inside], -1)
    stars_d = np.stack([found[i][1][:count, 1] for i in inside], -1)
    many, widen = np.broadcast_to(weights, (count, len(inside))), 1.0
    if resampling in ("case", "subsample"):
        counts = boot.resampled_weights(resampling, np.ones(len(inside), bool), count, seed)
        counts = counts[(counts > 0).sum(-1) >= 2]  # a line needs two budgets
        many = weights * counts
        stars_n, stars_d = (np.broadcast_to(s, counts.shape) for s in (log_n, log_d))
        widen = boot.widening(resampling, len(inside))
    draws = np.concatenate([fit_lines(log_c, stars_n, many), fit_lines(log_c, stars_d, many)], -1)
    summary = estimates(line_n, line_d, draws, widen)
    covariance, objective = line_covariance(log_c, log_n, weights, line_n)
    half = stats.t.ppf((1 + boot.LEVEL) / 2, len(inside) - 2) * np.sqrt(covariance[1, 1])
    held_out = leave_largest_out(log_c, log_n, weights)
    deep = [b for b, m in zip(budgets, minima, strict=True) if m.on_edge or not m.left_out]
    return IsoflopFit(
        **summary,
        b_interval_95=summary["intervals_95"]["b"],
        a_interval_95_delta=(float(line_n[1] - half), float(line_n[1] + half)),
        objective=objective,
        covariance=covariance,
        minima=minima,
        leave_largest_out=held_out,
        sensitivity=sensitivity(deep, log_c, log_n, weights),
        settings={
            "law": "N* = N_coefficient C^a",
            "curve": curve,
            "points_per_interval": points_per_interval,
            "loss_noise": noise,
            "loss_noise_from": "given" if loss_noise else "repeated seeds" if measured else "Porian et al.",
            "least_error_of_log_N": f"{LEAST_ERROR} of the distance between sizes",
            "weighted": weighted,
            "outliers": outliers,
            "left_out": names_of(table, np.flatnonzero(numbers < 0))
            + names_of(table, [row for row, _ in out]),
            "runs": len(table["loss"]),
            "runs_used": int(used.sum()),
            "budgets": len(minima),
            "budgets_used": len(inside),
            "convention": convention,
            "bootstrap": bootstrap,
            "resampling": resampling,
            "widening": widen,
            "seed": seed,
        },
        warnings=warnings
        + caveats(
            minima,
            line_n,
            log_c,
            log_n,
            error,
            held_out,
            summary["a_interval_95"],
            (line_n[1] - half, line_n[1] + half),
        ),
        points={**table, "budget": numbers, "used": used},
        draws=draws,
    )


def leave_largest_out(log_c: np.ndarray, log_n: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Extrapolation test: predicts N* of the largest budget from a line through the others."""
    if len(log_c) < 4:
        return {"budgets": 1, "refused": "a line through two budgets has no error"}
    line = fit_lines(log_c[:-1], log_n[None, :-1], weights[None, :-1])[0]
    return {"budgets": 1, **predicted_optimum(line, log_c[-1], log_n[-1])}


def sensitivity(
    budgets: list[Budget], log_c: np.ndarray, log_n: np.ndarray, weights: np.ndarray
) -> list[dict[str, Any]]:
    """The exponent from the minima of each kind of curve without noise or weights, and from the fit's minima
    with other weights or budgets."""
    found = []
    for name, curve_through in CURVES.items():
        stars = []
        for budget in budgets:
            (star,) = curve_through(budget.log_n, budget.loss[None]).minima()
            if budget.log_n[0] < star < budget.log_n[-1]:
                stars.append((np.log(budget.flops), star))
        if len(stars) >= 3:
            x, y = np.array(stars).T
            found.append(
                {
                    "curve": f"{name}, no noise",
                    "budgets": len(x),
                    "a": float(fit_lines(x, y[None], np.ones((1, len(x))))[0, 1]),
                }
            )
    everything = np.ones(len(log_c), bool)
    choices = {"all alike": (everything, np.ones_like(weights))}
    if len(log_c) >= 4:
        for name, left_out in (("without the smallest budget", 0), ("without the largest budget", -1)):
            kept = everything.copy()
            kept[left_out] = False
            choices[name] = (kept, weights)
    for name, (kept, weight) in choices.items():
        slope = fit_lines(log_c, log_n[None], (weight * kept)[None])[0, 1]
        found.append({"weights": name, "budgets": int(kept.sum()), "a": float(slope)})
    return found


def caveats(
    minima: tuple[Minimum, ...],
    line: np.ndarray,
    log_c: np.ndarray,
    log_n: np.ndarray,
    error: np.ndarray,
    held_out: dict[str, Any],
    interval: tuple[float, float],
    interval_delta: tuple[float, float],
) -> list[str]:
    """The warnings of a fit: budgets left out, minima far from the line, a failed extrapolation test, a short
    span, too narrow intervals."""
    found = [f"{m.flops:.3g} FLOPs left out: {m.left_out}" for m in minima if m.left_out]
    far = abs(log_n - line[0] - line[1] * log_c) / error
    found += [
        f"{np.exp(log_c[i]):.3g} FLOPs: N* is {far[i]:.1f} errors from the line"
        for i in np.flatnonzero(far > 3)
    ]
    if "refused" in held_out:
        found.append(f"no extrapolation test: {held_out['refused']}")
    elif abs(np.log1p(held_out["relative_error"])) > 2 * error[-1]:
        found.append(
            "the smaller budgets' line misses the largest budget's N* by "
            f"{held_out['relative_error']:+.0%}, more than twice its error"
        )
    if np.ptp(log_c) < np.log(10):
        found.append(
            f"budgets span a factor of {np.exp(np.ptp(log_c)):.1f} only: the exponent is uncertain beyond it"
        )
    if interval_delta[1] - interval_delta[0] > 2 * (interval[1] - interval[0]):
        found.append(
            "the minima scatter about the line more than the noise of each explains: use the wider "
            "interval (a_interval_95_delta)"
        )
    return found
