"""Over-training: `L(C, M) = E + (a M^eta + b M^-eta) C^-eta`, with M = D/N tokens a parameter (Gadre et al.
2024, arXiv:2403.08540, eq. 4).

It is approach 3 with one exponent, alpha = beta = 2 eta, written in compute and tokens a parameter:
over-trained models lie on lines of the same slope, so that small runs predict a large over-trained one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.bounded import Floor, check_floor, floor_limit
from llm_jax.scaling.fit.fit_law import LawFit, SmallLaw, fit_law, residual_functions
from llm_jax.scaling.fit.law_residuals import Scale
from llm_jax.scaling.fit.outliers import Outliers
from llm_jax.scaling.fit.result import columns, largest_runs, with_flops


def _predict(theta: Any, data: Any) -> Any:
    log_e, log_a, log_b, eta = theta
    more, less = log_a + eta * data["log_m"], log_b - eta * data["log_m"]
    return jnp.exp(log_e) + (jnp.exp(more - eta * data["log_c"]) + jnp.exp(less - eta * data["log_c"]))


RESIDUAL_FNS = residual_functions(_predict)


def overtrained_loss(parameters: Mapping[str, Any], flops: Any, tokens_per_parameter: Any) -> Any:
    """The loss that the law predicts for a run of `flops` = 6 N D with D/N tokens a parameter."""
    e, a, b, eta = (parameters[name] for name in ("E", "a", "b", "eta"))
    return e + (a * tokens_per_parameter**eta + b * tokens_per_parameter**-eta) * flops**-eta


def overtraining(
    parameters: Any,
    tokens: Any,
    loss: Any,
    *,
    name: Any = None,
    floor: Floor = "free",
    residuals: Scale = "log",
    delta: float = 1e-3,
    outliers: Outliers = "leave_out",
    bootstrap: int = 1000,
    resampling: boot.Resampling = "case",
    seed: int = 0,
    convention: str = "as given",
) -> LawFit:
    """Fits Gadre et al.'s law to runs of several sizes and several tokens a parameter; columns are [n].

    `name` is what warnings call the runs; `floor` is E: "free", or a loss (0: none); `residuals` are those of
    "log" loss, or "linear"; `delta` is Huber's. `outliers`: "leave_out" or "keep" a run that is grossly off
    the law of the others.

    Raises UserError where tokens a parameter vary by less than a factor of 2, or the runs do not determine
    the law.
    """
    table = with_flops(columns(parameters=parameters, tokens=tokens, loss=loss, others={"name": name}))
    check_floor(floor, table["loss"].min())
    ratio = table["tokens"] / table["parameters"]
    if ratio.max() < 2 * ratio.min():
        raise UserError(
            f"tokens/parameters: from {ratio.min():.3g} to {ratio.max():.3g} only. Train some runs for at "
            "least twice as long."
        )
    log_m, log_c = np.log(ratio), np.log(table["flops"])
    lowest, middle = table["loss"].min(), np.median(table["loss"])
    starts = []
    for part in (0.3, 0.6, 0.9):
        for eta in np.geomspace(0.03, 0.6, 8):
            half = np.log(max(middle - part * lowest, 1e-3) / 2) + eta * np.median(log_c)
            starts.append(
                [np.log(part * lowest), half - eta * np.median(log_m), half + eta * np.median(log_m), eta]
            )
    law = SmallLaw(
        method="overtraining",
        text="E + (a M^eta + b M^-eta) C^-eta, M = D/N, C = 6 N D",
        names=("E", "a", "b", "eta"),
        positive=(True, True, True, False),
        target="loss",
        residual_fns=RESIDUAL_FNS,
        predict=_predict,
        starts=np.asarray(starts),
        bounds={"a": (1e-6, np.inf), "b": (1e-6, np.inf), "eta": (5e-3, 15.0)},
        limits=(floor_limit(0, lowest),) if floor == "free" else (),
        held={} if floor == "free" else {"E": float(floor)},
    )
    used = np.ones(len(ratio), bool)
    return fit_law(
        law, table, {"log_m": log_m, "log_c": log_c}, used, largest_runs(table["flops"], used),
        residuals=residuals, delta=delta, outliers=outliers, bootstrap=bootstrap, resampling=resampling,
        seed=seed, settings={"floor": floor, "convention": convention},
    )  # fmt: skip
