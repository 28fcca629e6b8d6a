"""Approach 2, IsoFLOP: N*(C) from the minima of loss over model size at several compute budgets (Hoffmann et
al. 2022).

The losses of a budget form a curve in log N whose minimum is N*. The slope of a weighted line through log N*
against log C is the exponent. The defaults follow Porian et al. (2024): Akima's curve through the points,
evaluated at 25 points per interval between sizes; resamples of its minimum with noise on the losses (their
seeds differ by 0.002 in loss); N* is the median of the minima, its error their spread, but at least 0.33 of
an interval; a budget whose minimum is at the smallest or largest size is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from scipy import stats

from llm_jax.core.errors import UserError, check_choice, require
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.curves import akima_curves, fit_lines, fit_parabolas
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT
from llm_jax.scaling.fit.optimum import OptimumFit, estimates, line_covariance, predicted_optimum
from llm_jax.scaling.fit.result import columns

Curve = Literal["akima", "parabola", "parabola_local"]
Resampling = Literal["noise", "case", "residual", "subsample"]
LEAST_ERROR = 0.33
"""The error of log N* is at least this part of the distance between sizes (Porian et al. 2024,
`min_std_factor`)."""
SAME_BUDGET = 1.25
"""Runs sorted by FLOPs belong to one budget if neighbours differ by less than this factor."""


@dataclass(frozen=True)
class Minimum:
    """The loss curve of one budget and its minimum. Logarithms are natural."""

    flops: float
    """FLOPs of the budget: the geometric mean of its runs'."""
    sizes: int
    """Number of different model sizes that were trained."""
    parameters: float | None
    """N*; None if the budget is left out."""
    tokens: float | None
    """D*; None if the budget is left out."""
    loss: float | None
    """The curve's loss at N*, nats a token; None if the budget is left out."""
    log_error: float | None
    """Standard error of log N*; None if the budget is left out."""
    on_edge: bool
    """Whether the lowest loss is at the smallest or largest size, so that the minimum lies outside of the
    sizes."""
    left_out: str
    """Why the budget is not in the fit; empty if it is."""
    curve_parameters: np.ndarray = field(repr=False)
    """N [m] of the curve's points."""
    curve_loss: np.ndarray = field(repr=False)
    """Loss [m] of the curve's points."""


@dataclass(frozen=True, kw_only=True)
class IsoflopFit(OptimumFit):
    """Result of approach 2. `objective` is the weighted mean of the squared residuals of log N*.

    `covariance` [2, 2] is that of log N_coefficient and a; `points` has flops, parameters, tokens, loss and
    budget (the number of the run's budget among the minima).
    """

    method: str = "isoflop"
    b_interval_95: tuple[float, float]
    a_interval_95_delta: tuple[float, float]
    """From the line's own residuals, by Student's t."""
    minima: tuple[Minimum, ...]
    sensitivity: list[dict[str, Any]]
    """The exponent under other choices: curves without noise, other weights, budgets left out."""


@dataclass(frozen=True)
class Budget:
    """The best run of each size of one budget, arrays [sizes] by rising size."""

    flops: float
    """The geometric mean of the runs' FLOPs."""
    log_n: np.ndarray
    log_d: np.ndarray
    loss: np.ndarray


def isoflop(
    flops: Any,
    parameters: Any,
    loss: Any,
    *,
    tokens: Any = None,
    curve: Curve = "akima",
    points_per_interval: int = 25,
    loss_noise: float = 0.002,
    weighted: bool = True,
    bootstrap: int = 1000,
    resampling: Resampling = "noise",
    seed: int = 0,
    convention: str = "as given",
) -> IsoflopFit:
    """Finds each budget's best size N* and fits `N* = k C^a`.

    `flops`, `parameters`, `loss` are [n], one entry a run; `tokens` [n] are flops/(6 parameters) if None.
    Runs whose FLOPs differ by less than 25 % form one budget. `curve` is "akima", a "parabola" of loss
    against log N through all sizes, or "parabola_local" through the lowest three. `loss_noise` is the
    standard deviation of loss between seeds, in nats. `weighted` weights each minimum by 1/error².
    `resampling`: "noise" on the losses, "residual" (parabolas), or "case" and "subsample" of the budgets.

    Raises UserError where fewer than three budgets have a minimum between their smallest and largest size.
    """
    check_choice("curve", curve, get_args(Curve))
    check_choice("resampling", resampling, get_args(Resampling))
    boot.check_seed(seed)
    require(bootstrap >= 20, "bootstrap", bootstrap, "at least 20: the errors of the minima come from it")
    require(points_per_interval >= 2, "points_per_interval", points_per_interval, "at least 2")
    require(loss_noise > 0, "loss_noise", loss_noise, "above 0, in nats: how much seeds differ")
    if resampling == "residual" and curve != "parabola":
        raise UserError(
            f"resampling=residual: curve={curve} interpolates the points and leaves no residuals. Use "
            "resampling=noise or curve=parabola."
        )
    table = columns(flops=flops, parameters=parameters, loss=loss, tokens=tokens)
    table.setdefault("tokens", table["flops"] / FLOPS_A_WEIGHT / table["parameters"])
    numbers = budget_numbers(table["flops"])
    budgets = [make_budget(table, numbers == i) for i in range(numbers.max() + 1)]
    rng = np.random.default_rng(seed)
    found = [
        find_minimum(budget, curve, points_per_interval, loss_noise, bootstrap, resampling, rng)
        for budget in budgets
    ]
    minima = tuple(minimum for minimum, _ in found)
    inside = [i for i, minimum in enumerate(minima) if not minimum.left_out]
    if len(inside) < 3:
        why = "; ".join(f"{m.flops:.3g} FLOPs: {m.left_out}" for m in minima if m.left_out)
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
    return IsoflopFit(
        **summary,
        b_interval_95=summary["intervals_95"]["b"],
        a_interval_95_delta=(float(line_n[1] - half), float(line_n[1] + half)),
        objective=objective,
        covariance=covariance,
        minima=minima,
        leave_largest_out=held_out,
        sensitivity=sensitivity(budgets, log_c, log_n, weights, points_per_interval),
        settings={
            "law": "N* = N_coefficient C^a",
            "curve": curve,
            "points_per_interval": points_per_interval,
            "loss_noise": loss_noise,
            "least_error_of_log_N": f"{LEAST_ERROR} of the distance between sizes",
            "weighted": weighted,
            "runs": len(table["loss"]),
            "budgets": len(minima),
            "budgets_used": len(inside),
            "convention": convention,
            "bootstrap": bootstrap,
            "resampling": resampling,
            "widening": widen,
            "seed": seed,
        },
        warnings=caveats(
            minima,
            line_n,
            log_c,
            log_n,
            error,
            held_out,
            summary["a_interval_95"],
            (line_n[1] - half, line_n[1] + half),
        ),
        points={**table, "budget": numbers},
        draws=draws,
    )


def budget_numbers(flops: np.ndarray) -> np.ndarray:
    """The number [n] of each run's budget, counted from the smallest. Raises UserError where the FLOPs form
    no separate budgets.

    >>> budget_numbers(np.array([1e18, 3e18, 1.02e18])).tolist()
    [0, 1, 0]
    """
    order = np.argsort(flops, kind="stable")
    numbers = np.empty(len(flops), int)
    numbers[order] = np.concatenate([[0], np.cumsum(np.diff(np.log(flops[order])) > np.log(SAME_BUDGET))])
    for i in range(numbers.max() + 1):
        own = flops[numbers == i]
        if own.max() > SAME_BUDGET * own.min():
            raise UserError(
                f"flops: {len(own)} runs from {own.min():.3g} to {own.max():.3g} FLOPs run into each "
                "other, so they are no IsoFLOP budgets. "
                "Use method=parametric, or give each run its budget's FLOPs."
            )
    return numbers


def make_budget(table: dict[str, np.ndarray], own: np.ndarray) -> Budget:
    """The budget of the runs `own` [n], bool; where several runs have one size, the one of lowest loss."""
    best: dict[float, int] = {}
    for i in np.flatnonzero(own):
        size = table["parameters"][i]
        if size not in best or table["loss"][i] < table["loss"][best[size]]:
            best[size] = int(i)
    rows = [best[size] for size in sorted(best)]
    flops = float(np.exp(np.log(table["flops"][own]).mean()))
    return Budget(
        flops, np.log(table["parameters"][rows]), np.log(table["tokens"][rows]), table["loss"][rows]
    )


def find_minimum(
    budget: Budget,
    curve: str,
    per_interval: int,
    noise: float,
    count: int,
    resampling: str,
    rng: np.random.Generator,
) -> tuple[Minimum, np.ndarray]:
    """A budget's minimum, and log N* and log D* [k, 2] of its resamples (k of `count`: those with a minimum
    inside of the sizes)."""
    x, loss, n = budget.log_n, budget.loss, len(budget.log_n)

    def left_out(why: str, on_edge: bool = False) -> tuple[Minimum, np.ndarray]:
        return Minimum(budget.flops, n, None, None, None, None, on_edge, why, np.exp(x), loss), np.zeros(
            (0, 2)
        )

    if n < 3:
        return left_out(f"{n} size{'s' * (n > 1)}, a minimum needs at least three")
    at = np.linspace(x[0], x[-1], (n - 1) * per_interval)
    curve_through = CURVES[curve]
    smooth = curve_through(x, loss[None], at)[0]
    if smooth.argmin() in (0, len(at) - 1):
        side = "smallest" if smooth.argmin() == 0 else "largest"
        return left_out(
            f"minimum on the edge, at the {side} size of {n}: train "
            f"{'smaller' if side == 'smallest' else 'larger'} ones",
            True,
        )
    if resampling == "residual":
        fitted = np.interp(x, at, smooth)
        noisy = fitted + boot.resampled_residuals(
            loss - fitted, np.ones(n, bool), 3, count, int(rng.integers(2**31))
        )
    else:
        noisy = loss + noise * rng.standard_normal((count, n))
    lowest = curve_through(x, noisy, at).argmin(-1)
    lowest = lowest[(lowest > 0) & (lowest < len(at) - 1)]
    if len(lowest) < count // 2:
        return left_out(f"with noise of {noise} in loss most minima are on an edge", True)
    stars = at[lowest]
    error = max(float(stars.std()), LEAST_ERROR * per_interval * (at[1] - at[0])) * count / len(stars)
    star = float(np.median(stars))
    log_d = np.interp(np.concatenate([[star], stars]), x, budget.log_d)
    minimum = Minimum(
        flops=budget.flops,
        sizes=n,
        parameters=float(np.exp(star)),
        tokens=float(np.exp(log_d[0])),
        loss=float(np.interp(star, at, smooth)),
        log_error=error,
        on_edge=False,
        left_out="",
        curve_parameters=np.exp(at),
        curve_loss=smooth,
    )
    return minimum, np.stack([stars, log_d[1:]], -1)


def akima_curve(x: np.ndarray, loss: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Akima's curves of log loss, as loss: log N [n], loss [k, n], at [m] -> [k, m]."""
    return np.exp(akima_curves(x, np.log(loss), at))


def parabola_curve(x: np.ndarray, loss: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Least-squares parabolas of loss against log N: log N [n], loss [k, n], at [m] -> [k, m]."""
    middle = x.mean()
    coefficients = fit_parabolas(x - middle, loss, np.ones_like(loss))
    return np.einsum("kp,mp->km", coefficients, (at[:, None] - middle) ** np.arange(3))


def local_parabola_curve(x: np.ndarray, loss: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Parabolas through the lowest size and its two neighbours, straight lines beyond these: log N [n], loss
    [k, n], at [m] -> [k, m]."""
    lowest_size = np.clip(loss.argmin(-1), 1, len(x) - 2)
    rows = np.arange(len(loss))[:, None]
    near = lowest_size[:, None] + np.array([-1, 0, 1])
    weights = np.zeros_like(loss)
    weights[rows, near] = 1
    middle = x.mean()
    coefficients = fit_parabolas(x - middle, loss, weights)
    curve = np.einsum("kp,mp->km", coefficients, (at[:, None] - middle) ** np.arange(3))
    beyond = (at < x[near[:, :1]]) | (at > x[near[:, 2:]])
    straight = np.stack([np.interp(at, x, row) for row in loss])
    return np.where(beyond, straight, curve)


CURVES = {"akima": akima_curve, "parabola": parabola_curve, "parabola_local": local_parabola_curve}


def leave_largest_out(log_c: np.ndarray, log_n: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Extrapolation test: predicts N* of the largest budget from a line through the others."""
    if len(log_c) < 4:
        return {"budgets": 1, "refused": "a line through two budgets has no error"}
    line = fit_lines(log_c[:-1], log_n[None, :-1], weights[None, :-1])[0]
    return {"budgets": 1, **predicted_optimum(line, log_c[-1], log_n[-1])}


def sensitivity(
    budgets: list[Budget], log_c: np.ndarray, log_n: np.ndarray, weights: np.ndarray, per_interval: int
) -> list[dict[str, Any]]:
    """The exponent from the minima of each kind of curve without noise or weights, and from the fit's minima
    with other weights or budgets."""
    found = []
    for name, curve_through in CURVES.items():
        stars = []
        for budget in budgets:
            x = budget.log_n
            if len(x) < 3:
                continue
            at = np.linspace(x[0], x[-1], (len(x) - 1) * per_interval)
            lowest = curve_through(x, budget.loss[None], at)[0].argmin()
            if 0 < lowest < len(at) - 1:
                stars.append((np.log(budget.flops), at[lowest]))
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
