"""Loss against compute alone: `L(C) = E + K C^-gamma` through the runs on the frontier of loss against
compute.

The oldest form of a scaling law (Hestness et al. 2017; Kaplan et al. 2020 without E; Henighan et al. 2020
with it). It predicts the loss of the best run of a larger budget, but not its size.
"""

from __future__ import annotations

from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError, check_choice
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.bounded import Floor, check_floor, floor_limit
from llm_jax.scaling.fit.fit_law import LawFit, SmallLaw, fit_law, residual_functions
from llm_jax.scaling.fit.law_residuals import Scale
from llm_jax.scaling.fit.outliers import Outliers, mistyped
from llm_jax.scaling.fit.result import columns, largest_runs, names_of, run_text


def frontier(flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """[n], bool: the runs on the frontier: no other run with as little compute has as low a loss.

    >>> frontier(np.array([1.0, 2.0, 3.0, 3.0]), np.array([4.0, 4.5, 3.0, 3.5])).tolist()
    [True, False, True, False]
    """
    order = np.lexsort((loss, flops))
    best = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    on_frontier = np.zeros(len(flops), bool)
    on_frontier[order] = loss[order] < best
    return on_frontier


def _with_floor(theta: Any, data: Any) -> Any:
    return jnp.exp(theta[0]) + jnp.exp(theta[1] - theta[2] * data["log_c"])


def _without_floor(theta: Any, data: Any) -> Any:
    return jnp.exp(theta[0] - theta[1] * data["log_c"])


RESIDUAL_FNS = {True: residual_functions(_with_floor), False: residual_functions(_without_floor)}
HIDES = 3
"""A run that alone keeps this many others off the frontier is compared with them, ..."""
TOO_LOW = 0.2
"""... and is a mistake if its loss is lower by more than this part."""


def compute_law(
    flops: Any,
    loss: Any,
    *,
    parameters: Any = None,
    tokens: Any = None,
    name: Any = None,
    irreducible: bool = True,
    floor: Floor = "free",
    frontier_only: bool = True,
    residuals: Scale = "log",
    delta: float = 1e-3,
    outliers: Outliers = "leave_out",
    bootstrap: int = 1000,
    resampling: boot.Resampling = "case",
    seed: int = 0,
    convention: str = "as given",
) -> LawFit:
    """Fits `L = E + K C^-gamma` (without E if not `irreducible`) to the runs on the frontier, or to all runs.

    `flops`, `loss` are [n]. K is a loss, that at C = 1e18 FLOPs less E: `L = E + K (C/1e18)^-gamma`. `floor`
    is E: "free", or a loss. `parameters`, `tokens`, `name` [n] are for the record: runs of one (N, D) are
    resampled together. `residuals` are those of "log" loss, or "linear"; `delta` is Huber's. `outliers`:
    "leave_out" or "keep" a run that is grossly off the law of the others. Raises UserError where the runs do
    not determine the law: too few on the frontier, or no curvature.
    """
    check_choice("outliers", outliers, get_args(Outliers))
    if not irreducible and floor != "free":
        raise UserError(f"floor={floor}: irreducible=false has no floor. Leave one of the two out.")
    table = columns(flops=flops, loss=loss, parameters=parameters, tokens=tokens, others={"name": name})
    check_floor(floor, table["loss"].min())
    present, warnings = mistyped(table, outliers)
    if frontier_only and outliers == "leave_out":
        for row, low in too_low(table["flops"], np.where(present, table["loss"], np.inf)):
            present[row] = False
            warnings.append(
                f"left out: {run_text(table, row)}, {low:.0%} below the runs that it alone keeps off the "
                "frontier. Correct its row, or keep it with outliers=keep"
            )
    used = present.copy()
    if frontier_only:
        used[present] = frontier(table["flops"][present], table["loss"][present])
    need = 4 if irreducible and floor == "free" else 3
    if frontier_only and used.sum() < need:
        raise UserError(
            f"runs={used.sum()}: so many of {len(used)} runs are on the frontier, where no cheaper run beats "
            f"them, but a fit of {need - 1} parameters needs at least {need}. Add runs, or use "
            "frontier_only=false."
        )
    log_c = np.log(table["flops"] / 1e18)
    lowest, middle, at = table["loss"][used].min(), np.median(table["loss"][used]), np.median(log_c[used])
    gammas = np.geomspace(0.01, 0.8, 12)
    if irreducible:
        starts = [
            [np.log(part * lowest), np.log(middle - part * lowest + 1e-3) + g * at, g]
            for part in (0.2, 0.5, 0.8, 0.95)
            for g in gammas
        ]
    else:
        starts = [[np.log(middle) + g * at, g] for g in gammas]
    names = ("E", "K", "gamma") if irreducible else ("K", "gamma")
    law = SmallLaw(
        method="compute",
        text="E + K (C/1e18)^-gamma" if irreducible else "K (C/1e18)^-gamma",
        names=names,
        positive=tuple(name != "gamma" for name in names),
        target="loss",
        residual_fns=RESIDUAL_FNS[irreducible],
        predict=_with_floor if irreducible else _without_floor,
        starts=np.asarray(starts),
        bounds={"K": (1e-4 * lowest, 1e6), "gamma": (1e-3, 30.0)},
        limits=(floor_limit(0, lowest),) if irreducible and floor == "free" else (),
        held={} if floor == "free" else {"E": float(floor)},
        same=("parameters", "tokens") if {"parameters", "tokens"} <= set(table) else ("flops", "loss"),
    )
    settings = {
        "frontier_only": frontier_only, "irreducible": irreducible, "floor": floor, "convention": convention,
        "left_out": names_of(table, np.flatnonzero(~present)),
    }  # fmt: skip
    return fit_law(
        law, table, {"log_c": log_c}, used, largest_runs(table["flops"], used),
        residuals=residuals, delta=delta, outliers=outliers, bootstrap=bootstrap, resampling=resampling,
        seed=seed, settings=settings, warnings=warnings,
    )  # fmt: skip


def too_low(flops: np.ndarray, loss: np.ndarray) -> list[tuple[int, float]]:
    """The runs on the frontier whose loss is too low to be true, each with how much lower it is (a part) than
    the runs that it alone keeps off the frontier.

    >>> too_low(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([1.0, 3.5, 3.2, 3.0, 2.9]))
    [(0, 0.7142857142857143)]
    """
    found, present = [], np.ones(len(loss), bool)
    for _ in range(max(1, len(loss) // 10)):
        rows = np.flatnonzero(present)
        first = rows[frontier(flops[rows], loss[rows])]
        for row in first:
            others = rows[rows != row]
            hidden = np.setdiff1d(others[frontier(flops[others], loss[others])], first)
            if len(hidden) < HIDES:
                continue
            nearest = hidden[abs(np.log(flops[hidden] / flops[row])).argmin()]
            low = 1 - loss[row] / loss[nearest]
            if low > TOO_LOW:
                found.append((int(row), float(low)))
                present[row] = False
                break
        else:
            break
    return found
