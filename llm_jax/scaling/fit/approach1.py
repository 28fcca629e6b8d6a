"""Approach 1, the envelope: the run with the lowest loss at every compute, from whole training curves
(Hoffmann et al. 2022).

It needs no common budgets, but every point of a curve must be as good as a run that ends there. With a
learning rate that decays to a fixed end only the last point is, and the envelope favours runs that are near
their end: use it with a constant learning rate, or with several training lengths per size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError, check_choice, require
from llm_jax.core.format import counted, listed, short
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.curves import fit_lines
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT
from llm_jax.scaling.fit.optimum import OptimumFit, estimates, line_covariance, predicted_optimum
from llm_jax.scaling.fit.outliers import MISTYPED, SHOWN, Outliers
from llm_jax.scaling.fit.result import columns
from llm_jax.scaling.fit.solve import float64

DIP = 0.2
"""A point of a curve that is lower by this part than both neighbours is a mistake."""
BATCH = 64
"""Resamples whose envelopes are found in one call, each from an array [runs, computes]."""


@dataclass(frozen=True, kw_only=True)
class EnvelopeFit(OptimumFit):
    """Result of approach 1. `objective` is the mean square of the residuals of log N*; `points` are the
    curves' points.

    `covariance` [2, 2] of log N_coefficient and a takes the computes as independent, which they are not: use
    the interval.
    """

    method: str = "envelope"
    frontier: dict[str, np.ndarray] = field(repr=False)
    """At each compute: flops, parameters, tokens, loss of the best run; used: whether a smaller and a larger
    size reach that compute."""

    def to_json(self) -> dict[str, Any]:
        """The result as fit.json holds it: without `points`, which are long and stand in the table of
        runs."""
        return {name: value for name, value in super().to_json().items() if name != "points"}


def envelope(
    run: Any,
    flops: Any,
    parameters: Any,
    loss: Any,
    *,
    computes: int = 1500,
    outliers: Outliers = "leave_out",
    bootstrap: int = 1000,
    seed: int = 0,
    convention: str = "as given",
) -> EnvelopeFit:
    """Fits `N* = k C^a` to the lower envelope of training curves.

    Columns are [n], one entry for each point of a curve: `run` names the curve, `flops` is the run's compute
    up to the point, `loss` its loss there, which the caller has smoothed. The envelope is evaluated at
    `computes` points, spaced evenly in log C (Hoffmann et al. take 1,500). A compute at which the best run
    has the smallest or largest size is left out, since the optimum may be beyond. `outliers`: "leave_out" or
    "keep" a point that dips far below its neighbours, and a curve whose size is far off the line of the
    others. Intervals come from resamples of whole curves with replacement. Raises UserError for columns that
    don't fit together, fewer than three sizes, or an envelope or resamples with fewer than three.
    """
    run = np.asarray(run).reshape(-1)
    require(computes >= 10, "computes", computes, "at least 10")
    boot.check_resampling("case", bootstrap, seed)
    require(
        bootstrap > 0,
        "bootstrap",
        bootstrap,
        "at least 20: the points of one curve are not independent, so only resamples give an error",
    )
    check_choice("outliers", outliers, get_args(Outliers))
    table = columns(flops=flops, parameters=parameters, loss=loss, others={"run": run})
    names, numbers = np.unique(table.pop("run"), return_inverse=True)
    curves = [np.flatnonzero(numbers == i) for i in range(numbers.max() + 1)]
    sizes = np.array([table["parameters"][rows[0]] for rows in curves])
    for rows in curves:
        if np.ptp(table["parameters"][rows]) > 0:
            raise UserError(
                f"run={run[rows[0]]}: has points of several sizes, but a curve is of one model. Give each "
                "model its own run name."
            )
    if len(np.unique(sizes)) < 3:
        raise UserError(
            f"parameters: {len(np.unique(sizes))} different sizes, but an envelope needs at least three. "
            "Add curves of other sizes."
        )
    warnings = []
    if outliers == "leave_out" and len(dips := find_dips(table, curves)):
        curves = [np.setdiff1d(rows, dips) for rows in curves]
        warnings.append(
            f"left out: {counted(len(dips), 'point')} more than {DIP:.0%} below both neighbours, of the "
            f"curves {listed([str(name) for name in np.unique(names[numbers[dips]])[:SHOWN]])}. To keep: "
            "outliers=keep"
        )
    log_c = np.linspace(np.log(table["flops"].min()), np.log(table["flops"].max()), computes)
    log_loss = np.stack(
        [
            interpolate_curve(np.log(table["flops"][rows]), np.log(table["loss"][rows]), log_c)
            for rows in curves
        ]
    )
    log_n = np.log(sizes)
    kept = np.ones(len(curves), bool)
    if outliers == "leave_out":
        for i in off_the_line(log_c, log_loss, log_n):
            kept[i] = False
            warnings.append(
                f"left out: curve {names[i]} of {short(sizes[i])} parameters, which is the lowest where the "
                "other curves' line has a size more than "
                f"{MISTYPED:g} times as large or small. Correct its rows, or keep it with outliers=keep"
            )
    best, used = (array[0] for array in find_envelopes(log_loss, log_n, kept[None]))
    if len(np.unique(sizes[best[used]])) < 3:
        raise UserError(
            f"parameters: {len(np.unique(sizes[best[used]]))} sizes are best at a compute between the "
            "smallest and the largest size, but the "
            "envelope needs at least three. Vary the sizes more."
        )
    log_d = log_c - np.log(FLOPS_A_WEIGHT) - log_n[best]
    line_n, line_d = fit_lines(log_c, np.stack([log_n[best], log_d]), np.stack([used.astype(float)] * 2))

    there = np.flatnonzero(kept)
    chosen = there[np.random.default_rng(seed).integers(len(there), size=(bootstrap, len(there)))]
    present = np.zeros((bootstrap, len(curves)), bool)
    present[np.arange(bootstrap)[:, None], chosen] = True
    best_many, used_many = find_envelopes(log_loss, log_n, present)
    has_line = np.array([len(np.unique(log_n[b[i]])) >= 3 for b, i in zip(best_many, used_many, strict=True)])
    if has_line.sum() < 20:
        raise UserError(
            f"run: {has_line.sum()} of {bootstrap} resamples have an envelope of three sizes, and 20 "
            "must. Train more curves."
        )
    weights = used_many[has_line].astype(float)
    stars = log_n[best_many[has_line]]
    draws = np.concatenate(
        [fit_lines(log_c, stars, weights), fit_lines(log_c, log_c - np.log(FLOPS_A_WEIGHT) - stars, weights)],
        -1,
    )

    covariance, objective = line_covariance(log_c[used], log_n[best][used], np.ones(used.sum()), line_n)
    if not used.all():
        warnings.append(
            f"{(~used).sum()} of {computes} computes left out: the best run there is of the smallest or "
            "the largest size"
        )
    if not has_line.all():
        warnings.append(
            f"{(~has_line).sum()} of {bootstrap} resamples had fewer than three sizes and are left out"
        )
    return EnvelopeFit(
        **estimates(line_n, line_d, draws),
        objective=objective,
        covariance=covariance,
        leave_largest_out=leave_largest_out(log_c, log_n[best], used),
        settings={
            "law": "N* = N_coefficient C^a",
            "computes": computes,
            "computes_used": int(used.sum()),
            "outliers": outliers,
            "runs": len(curves),
            "runs_used": int(kept.sum()),
            "points": len(run),
            "convention": convention,
            "bootstrap": bootstrap,
            "resampling": "case, of curves",
            "widening": 1.0,
            "seed": seed,
        },
        warnings=warnings,
        frontier={
            "flops": np.exp(log_c), "parameters": sizes[best], "tokens": np.exp(log_d), "used": used,
            "loss": np.exp(np.take_along_axis(log_loss, best[None], 0)[0]),
        },
        points={"run": numbers, **table},
        draws=draws,
    )  # fmt: skip


def find_dips(table: dict[str, np.ndarray], curves: list[np.ndarray]) -> np.ndarray:
    """The points that are far below both of their neighbours on their curve: their numbers in the table."""
    found = []
    for rows in curves:
        rows = rows[np.argsort(table["flops"][rows], kind="stable")]
        loss = table["loss"][rows]
        low = loss[1:-1] < (1 - DIP) * np.minimum(loss[:-2], loss[2:])
        found.append(rows[1:-1][low])
    return np.concatenate(found) if found else np.zeros(0, int)


def off_the_line(log_c: np.ndarray, log_loss: np.ndarray, log_n: np.ndarray) -> list[int]:
    """The curves that are the lowest at computes where the line through the sizes of the others has a far
    larger or smaller one; log losses [runs, m] at log computes [m], log sizes [runs]."""
    found: list[int] = []
    present = np.ones(len(log_n), bool)
    for _ in range(max(1, len(log_n) // 10)):
        best, used = (array[0] for array in find_envelopes(log_loss, log_n, present[None]))
        off = np.zeros(len(log_n))
        for i in np.unique(best[used]):
            others = used & (best != i)
            if len(np.unique(log_n[best[others]])) >= 3:
                line = fit_lines(log_c, log_n[best][None], others.astype(float)[None])[0]
                off[i] = np.median(log_n[i] - line[0] - line[1] * log_c[used & (best == i)])
        worst = int(abs(off).argmax())
        if abs(off[worst]) <= np.log(MISTYPED):
            break
        present[worst] = False
        found.append(worst)
    return found


def interpolate_curve(log_c: np.ndarray, log_loss: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A curve's log loss [m] at the log computes `at` [m], infinite outside of the curve's range."""
    order = np.argsort(log_c)
    value = np.interp(at, log_c[order], log_loss[order])
    rounding = 1e-9  # the ends of `at` are ends of curves, up to rounding
    return np.where((at >= log_c.min() - rounding) & (at <= log_c.max() + rounding), value, np.inf)


@jax.jit
def _find_envelope(log_loss: Any, log_n: Any, present: Any) -> tuple[Any, Any]:
    """The envelope of the curves that are `present` [runs]: the best run [m], and whether its size is neither
    smallest nor largest."""
    known = jnp.isfinite(log_loss) & present[:, None]
    best = jnp.argmin(jnp.where(known, log_loss, jnp.inf), 0)
    smallest = jnp.min(jnp.where(known, log_n[:, None], jnp.inf), 0)
    largest = jnp.max(jnp.where(known, log_n[:, None], -jnp.inf), 0)
    return best, (log_n[best] > smallest) & (log_n[best] < largest)


def find_envelopes(
    log_loss: np.ndarray, log_n: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The envelopes of resamples, each of the curves that are `present` in it [k, runs], with log losses
    [runs, m] and log sizes [runs].

    Returns the best run at each compute [k, m], and [k, m], bool, whether a smaller and a larger size reach
    that compute too.
    """
    with float64():
        best, inside = jax.lax.map(
            lambda row: _find_envelope(log_loss, log_n, row),
            jnp.asarray(present),
            batch_size=min(BATCH, len(present)),
        )
        return np.asarray(best), np.asarray(inside)


def leave_largest_out(log_c: np.ndarray, log_n: np.ndarray, used: np.ndarray) -> dict[str, Any]:
    """Extrapolation test: predicts the computes of the envelope's largest size from the computes of all
    smaller sizes."""
    top = used & (log_n == log_n[used].max())
    rest = used & (log_c < log_c[top].min())
    if len(np.unique(log_n[rest])) < 3:
        return {"sizes": 1, "refused": "fewer than three sizes are left"}
    line = fit_lines(log_c, log_n[None], rest.astype(float)[None])[0]
    return {"sizes": 1, **predicted_optimum(line, log_c[top].mean(), log_n[top][0])}
