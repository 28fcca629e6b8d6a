"""Approach 1, the envelope: at every compute, the run with the lowest loss so far, from whole training curves (Hoffmann et al. 2022).

It needs no budgets, but every point on a curve must be as good as a run that ends there: with a learning rate that decays to a
fixed end, only the last point is, and the envelope then favours runs that are near their end. Use it with a constant rate, or
with several horizons a size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError, require
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.curves import lines
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT
from llm_jax.scaling.fit.optimum import OptimumFit, estimates, foretold, line_covariance
from llm_jax.scaling.fit.result import columns
from llm_jax.scaling.fit.solve import float64

BATCH = 64
"""Resamples whose envelopes are found at once: a table of runs x computes each."""


@dataclass(frozen=True)
class EnvelopeFit(OptimumFit):
    """Approach 1's result."""

    method = "envelope"
    a: float
    b: float
    a_interval_95: tuple[float, float]
    objective: float
    """Mean square of the residuals of log N*."""
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    intervals_95: dict[str, tuple[float, float]]
    covariance: np.ndarray
    """[2, 2] of log N_coefficient and a, as if the computes were independent; they are not: read the interval."""
    leave_largest_out: dict[str, Any]
    settings: dict[str, Any]
    warnings: list[str]
    frontier: dict[str, np.ndarray] = field(repr=False)
    """At each compute: flops, parameters, tokens, loss of the best run; used (its size is not at the edge of those there)."""
    points: dict[str, np.ndarray] = field(repr=False)
    """The curves: run (numbered), flops, parameters, loss. Not in fit.json, for the table has them and they are long."""
    draws: np.ndarray = field(repr=False)
    """[resamples, 4]: log N_coefficient, a, log D_coefficient, b."""

    def to_json(self) -> dict[str, Any]:
        """As in fit.json."""
        return {name: value for name, value in super().to_json().items() if name != "points"}


def envelope(
    run: Any,
    flops: Any,
    parameters: Any,
    loss: Any,
    *,
    computes: int = 1500,
    bootstrap: int = 1000,
    seed: int = 0,
    convention: str = "as given",
) -> EnvelopeFit:
    """Fits `N* = k C^a` to the lower envelope of training curves.

    Columns are [n], a point of a curve each: `run` says of which, `flops` what the run had cost by then, `loss` (smoothed by you)
    what it had reached. `computes` points, spaced evenly in log C, are read off the envelope (Hoffmann et al. take 1,500). Where
    the best run is of the smallest or largest size that is there, the optimum may be beyond, and the compute is left out.
    Intervals are of whole curves drawn with replacement.
    """
    run = np.asarray(run).reshape(-1)
    require(computes >= 10, "computes", computes, "at least 10")
    boot.check_resampling("case", bootstrap, seed)
    require(bootstrap > 0, "bootstrap", bootstrap, "at least 20: computes of one curve are no independent points, so there is no other error")
    table = columns(flops=flops, parameters=parameters, loss=loss)
    if len(run) != len(table["loss"]):
        raise UserError(f"columns of different lengths: run {len(run)}, loss {len(table['loss'])}")
    _, numbers = np.unique(run, return_inverse=True)
    curves = [np.flatnonzero(numbers == i) for i in range(numbers.max() + 1)]
    sizes = np.array([table["parameters"][rows[0]] for rows in curves])
    for rows in curves:
        if np.ptp(table["parameters"][rows]) > 0:
            raise UserError(f"run={run[rows[0]]}: has points of several sizes; each curve is of one model")
    if len(np.unique(sizes)) < 3:
        raise UserError(f"parameters: {len(np.unique(sizes))} different sizes: an envelope needs at least three")
    at = np.linspace(np.log(table["flops"].min()), np.log(table["flops"].max()), computes)
    read = np.stack([curve_at(np.log(table["flops"][rows]), np.log(table["loss"][rows]), at) for rows in curves])
    log_n = np.log(sizes)
    best, used = lowest_of(read, log_n, np.ones((1, len(curves)), bool))
    best, used = best[0], used[0]
    if len(np.unique(sizes[best[used]])) < 3:
        raise UserError(f"{len(np.unique(sizes[best[used]]))} sizes are best anywhere inside: the envelope needs at least three; vary the sizes more")
    log_d = at - np.log(FLOPS_A_WEIGHT) - log_n[best]
    line_n, line_d = lines(at, np.stack([log_n[best], log_d]), np.stack([used.astype(float)] * 2))

    drawn = np.random.default_rng(seed).integers(len(curves), size=(bootstrap, len(curves)))
    there = np.zeros((bootstrap, len(curves)), bool)
    there[np.arange(bootstrap)[:, None], drawn] = True
    many, inside = lowest_of(read, log_n, there)
    varied = np.array([len(np.unique(log_n[b[i]])) >= 3 for b, i in zip(many, inside, strict=True)])
    if varied.sum() < 20:
        raise UserError(f"{varied.sum()} of {bootstrap} resamples have an envelope of three sizes: train more curves")
    weights = inside[varied].astype(float)
    stars = log_n[many[varied]]
    draws = np.concatenate([lines(at, stars, weights), lines(at, at - np.log(FLOPS_A_WEIGHT) - stars, weights)], -1)

    found = estimates(line_n, line_d, draws)
    covariance, objective = line_covariance(at[used], log_n[best][used], np.ones(used.sum()), line_n)
    held_out = leave_largest_out(at, log_n[best], used)
    warnings = [] if used.all() else [f"{(~used).sum()} of {computes} computes left out: the best run there is of the smallest or the largest size"]
    if (~varied).any():
        warnings.append(f"{(~varied).sum()} of {bootstrap} resamples had fewer than three sizes and are left out")
    return EnvelopeFit(
        a=found["parameters"]["a"],
        b=found["parameters"]["b"],
        a_interval_95=found["intervals_95"]["a"],
        objective=objective,
        **found,
        covariance=covariance,
        leave_largest_out=held_out,
        settings={
            "law": "N* = N_coefficient C^a",
            "computes": computes,
            "computes_used": int(used.sum()),
            "runs": len(curves),
            "points": len(run),
            "convention": convention,
            "bootstrap": bootstrap,
            "resampling": "case, of curves",
            "widening": 1.0,
            "seed": seed,
        },
        warnings=warnings,
        frontier={
            "flops": np.exp(at), "parameters": sizes[best], "tokens": np.exp(log_d), "used": used,
            "loss": np.exp(np.take_along_axis(read, best[None], 0)[0]),
        },
        points={"run": numbers, **table},
        draws=draws,
    )  # fmt: skip


def curve_at(log_c: np.ndarray, log_loss: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[m]: a curve's log loss at some log computes, infinite where it does not reach."""
    order = np.argsort(log_c)
    value = np.interp(at, log_c[order], log_loss[order])
    reach = 1e-9  # the ends of the grid are ends of curves, up to rounding
    return np.where((at >= log_c.min() - reach) & (at <= log_c.max() + reach), value, np.inf)


@jax.jit
def _lowest(read: Any, log_n: Any, there: Any) -> tuple[Any, Any]:
    seen = jnp.isfinite(read) & there[:, None]
    best = jnp.argmin(jnp.where(seen, read, jnp.inf), 0)
    smallest = jnp.min(jnp.where(seen, log_n[:, None], jnp.inf), 0)
    largest = jnp.max(jnp.where(seen, log_n[:, None], -jnp.inf), 0)
    return best, (log_n[best] > smallest) & (log_n[best] < largest)


def lowest_of(read: np.ndarray, log_n: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For resamples `there` [k, runs]: the best run at each compute [k, m], and whether its size is inside the range of those there."""
    with float64():
        found = jax.lax.map(lambda row: _lowest(read, log_n, row), jnp.asarray(there), batch_size=min(BATCH, len(there)))
        return np.asarray(found[0]), np.asarray(found[1])


def leave_largest_out(at: np.ndarray, log_n: np.ndarray, used: np.ndarray) -> dict[str, Any]:
    """The largest size on the envelope, as the line through the computes of the others has it."""
    top = used & (log_n == log_n[used].max())
    rest = used & (at < at[top].min())
    if len(np.unique(log_n[rest])) < 3:
        return {"sizes": 1, "refused": "fewer than three sizes are left"}
    line = lines(at, log_n[None], rest.astype(float)[None])[0]
    return {"sizes": 1, **foretold(line, at[top].mean(), log_n[top][0])}
