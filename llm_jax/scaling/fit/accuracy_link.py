"""From loss to a task's accuracy: `accuracy = low + (high - low) / (1 + exp(k (L - middle)))`.

A sigmoid link (Llama 3, Dubey et al. 2024, section 3.2.1; Bhagia et al. 2024, arXiv:2412.04403): flat at
chance while the loss is high, rising in the middle, flat again where the task is solved. It composes with any
law of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from llm_jax.core.errors import UserError, require
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.bounded import Limit
from llm_jax.scaling.fit.fit_law import LawFit, SmallLaw, fit_law, residual_functions, start_grid
from llm_jax.scaling.fit.law_residuals import Scale
from llm_jax.scaling.fit.outliers import Outliers
from llm_jax.scaling.fit.result import columns

FREE = -1.0
"""Value of `chance` or `ceiling` that means: fit it."""
HELD_OUT = 0.2
"""The extrapolation test leaves out this part of the runs: those of the lowest losses."""


def sigmoid_link(parameters: Mapping[str, Any], loss: Any) -> Any:
    """The accuracies that the link predicts for losses of any shape; parameters: low, high, k, middle."""
    p = parameters
    return p["low"] + (p["high"] - p["low"]) * expit(-p["k"] * (np.asarray(loss) - p["middle"]))


def _predict_fn(free: tuple[bool, bool]) -> Any:
    """The link in JAX as predict(theta, data); free: whether low and high are in theta, or are data."""

    def predict(theta: Any, data: Any) -> Any:
        rest = list(theta[2:])
        low, high = (
            rest.pop(0) if is_free else data[name]
            for is_free, name in zip(free, ("low", "high"), strict=True)
        )
        return low + (high - low) * jax.nn.sigmoid(jnp.exp(theta[0]) * (theta[1] - data["loss"]))

    return predict


PREDICT_FNS = {(low, high): _predict_fn((low, high)) for low in (False, True) for high in (False, True)}
RESIDUAL_FNS = {free: residual_functions(predict) for free, predict in PREDICT_FNS.items()}


def accuracy(
    loss: Any,
    accuracy: Any,
    *,
    name: Any = None,
    chance: float = FREE,
    ceiling: float = FREE,
    residuals: Scale = "linear",
    delta: float = float("inf"),
    outliers: Outliers = "leave_out",
    bootstrap: int = 1000,
    resampling: boot.Resampling = "case",
    seed: int = 0,
    convention: str = "as given",
) -> LawFit:
    """Fits the sigmoid to the losses [n] and accuracies [n], from 0 to 1, of n runs.

    `chance` and `ceiling` fix the two ends (a four-way choice has chance=0.25); -1 fits them, between 0 and
    1, which needs runs that are flat there. `residuals` are those of accuracy, or of its "log"; `delta` is
    Huber's. `outliers`: "leave_out" or "keep" a run that is grossly off the link of the others; `name` [n] is
    what warnings call the runs. Raises UserError where the runs do not determine the link.
    """
    table = columns(loss=loss, others={"accuracy": np.asarray(accuracy, np.float64), "name": name})
    wrong = ~((table["accuracy"] >= 0) & (table["accuracy"] <= 1))
    if wrong.any():
        raise UserError(
            f"accuracy={table['accuracy'][wrong][0]}: must be from 0 to 1 (a percentage: divide it by 100)"
        )
    for name, value in (("chance", chance), ("ceiling", ceiling)):
        require(value == FREE or 0 <= value <= 1, name, value, "from 0 to 1, or -1 to fit it")
    free = (chance == FREE, ceiling == FREE)
    names = ("k", "middle", *(["low"] if free[0] else []), *(["high"] if free[1] else []))
    low, high = table["accuracy"].min(), table["accuracy"].max()
    span = np.ptp(table["loss"])
    if not span > 0:
        raise UserError("loss: all runs have one loss, but a link needs several. Add runs of other losses.")
    ends = [[low] if free[0] else None, [high] if free[1] else None]
    starts = start_grid(
        np.log([1 / span, 4 / span, 12 / span]),
        np.quantile(table["loss"], [0.1, 0.35, 0.65, 0.9]),
        *(end for end in ends if end),
    )
    law = SmallLaw(
        method="accuracy",
        text="low + (high - low) / (1 + exp(k (L - middle)))",
        names=names,
        positive=tuple(name == "k" for name in names),
        target="accuracy",
        residual_fns=RESIDUAL_FNS[free],
        predict=PREDICT_FNS[free],
        starts=starts,
        bounds={"k": (0.05 / span, 1e3 / span), "middle": (0, 20)},
        limits=tuple(
            Limit(names.index(name), low=0.0, at_low=0.0, high=1.0, at_high=1.0)
            for name in ("low", "high")
            if name in names
        ),
        same=("loss",),
        extreme="the runs of the lowest losses",
    )
    data = {"loss": table["loss"], "low": np.asarray(chance), "high": np.asarray(ceiling)}
    used = np.ones(len(table["loss"]), bool)
    held_out = table["loss"] <= np.quantile(table["loss"], HELD_OUT)
    fit = fit_law(
        law, table, data, used, held_out,
        residuals=residuals, delta=delta, outliers=outliers, bootstrap=bootstrap, resampling=resampling,
        seed=seed,
        settings={"chance": "fitted" if free[0] else chance, "ceiling": "fitted" if free[1] else ceiling,
        "convention": convention},
    )  # fmt: skip
    check_ends(fit)
    return fit


def check_ends(fit: LawFit) -> None:
    """Raises UserError where an end of the link is at 0 or 1, and no run is on that side of its middle."""
    p, s = fit.parameters, fit.settings
    low, high = (p[end] if end in p else s[given] for end, given in (("low", "chance"), ("high", "ceiling")))
    measured, middle = fit.points["accuracy"][fit.points["used"]], (low + high) / 2
    for end, key, shown in (
        ("high", "ceiling", (measured > middle).any()),
        ("low", "chance", (measured < middle).any()),
    ):
        if p.get(end) in (0.0, 1.0) and not shown:
            raise UserError(
                f"{end}={p[end]:g}: at a bound (0 to 1), and every run is beyond the middle of the link: the "
                f"runs do not determine it. Give {key}=, or add runs of other losses."
            )
