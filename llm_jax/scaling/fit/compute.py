"""Loss against compute alone: `L(C) = E + K C^-gamma` through the runs on the frontier of loss against
compute.

The oldest form of a scaling law (Hestness et al. 2017; Kaplan et al. 2020 without E; Henighan et al. 2020
with it). It predicts the loss of the best run of a larger budget, but not its size.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.fit_law import LawFit, SmallLaw, fit_law, residual_function
from llm_jax.scaling.fit.result import columns, largest_runs


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


RESIDUAL_FNS = {
    True: residual_function(_with_floor, "loss", log=True),
    False: residual_function(_without_floor, "loss", log=True),
}


def compute_law(
    flops: Any,
    loss: Any,
    *,
    irreducible: bool = True,
    frontier_only: bool = True,
    delta: float = 1e-3,
    bootstrap: int = 1000,
    resampling: boot.Resampling = "case",
    seed: int = 0,
    convention: str = "as given",
) -> LawFit:
    """Fits `L = E + K C^-gamma` (without E if not `irreducible`) to the runs on the frontier, or to all runs.

    `flops`, `loss` are [n]. K is a loss, that at C = 1e18 FLOPs less E: `L = E + K (C/1e18)^-gamma`. `delta`
    is Huber's, of log loss. Raises UserError where the runs do not determine the law: too few on the
    frontier, or no curvature.
    """
    table = columns(flops=flops, loss=loss)
    used = frontier(table["flops"], table["loss"]) if frontier_only else np.ones(len(table["loss"]), bool)
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
        residual_fn=RESIDUAL_FNS[irreducible],
        predict=_with_floor if irreducible else _without_floor,
        starts=np.asarray(starts),
        bounds={"E": (1e-3 * lowest, np.inf), "K": (1e-4 * lowest, 1e6), "gamma": (1e-3, 3.0)},
    )
    settings = {"frontier_only": frontier_only, "irreducible": irreducible, "convention": convention}
    return fit_law(
        law, table, {"log_c": log_c}, used, largest_runs(table["flops"], used),
        log=True, delta=delta, bootstrap=bootstrap, resampling=resampling, seed=seed, settings=settings,
    )  # fmt: skip
