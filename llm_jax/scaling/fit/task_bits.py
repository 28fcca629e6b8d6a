"""From loss to the bits per byte of a task's right answers: `B = K L^kappa`.

A power law between the losses of one model on two texts (Brandfonbrener et al. 2024, arXiv:2411.12925),
without their two offsets, which the runs of a small grid don't determine. The second link, from these bits to
accuracy, is `accuracy_link` (Bhagia et al. 2024, arXiv:2412.04403).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.scaling.fit.accuracy_link import HELD_OUT
from llm_jax.scaling.fit.fit_law import LawFit, SmallLaw, fit_law, residual_functions, start_grid
from llm_jax.scaling.fit.outliers import Outliers
from llm_jax.scaling.fit.result import columns


def _predict(theta: Any, data: Any) -> Any:
    return jnp.exp(theta[0] + theta[1] * data["log_loss"])


RESIDUAL_FNS = residual_functions(_predict)


def power_of_loss(parameters: Any, loss: Any) -> Any:
    """The bits per byte that the law predicts for losses of any shape; parameters: K, kappa."""
    return parameters["K"] * np.asarray(loss) ** parameters["kappa"]


def task_bits(
    loss: Any,
    bits_per_byte: Any,
    *,
    name: Any = None,
    delta: float = float("inf"),
    outliers: Outliers = "leave_out",
    bootstrap: int = 1000,
    seed: int = 0,
) -> LawFit:
    """Fits `B = K L^kappa` to the held-out losses [n] (nats a token) and the bits per byte of a task's right
    answers [n] of n runs, by residuals of logarithms.

    `delta`, `outliers`, `bootstrap` and `seed` as in `accuracy_link.accuracy`. Raises UserError where the
    runs do not determine the law.
    """
    table = columns(loss=loss, bits_per_byte=bits_per_byte, others={"name": name})
    log_loss = np.log(table["loss"])
    if not np.ptp(log_loss) > 0:
        raise UserError("loss: all runs have one loss, but a link needs several. Add runs of other losses.")
    slopes = np.array([-1.0, 0.3, 1.0, 2.0])
    middle = np.median(np.log(table["bits_per_byte"]))
    starts = start_grid([middle], slopes)
    starts[:, 0] -= starts[:, 1] * np.median(log_loss)
    law = SmallLaw(
        method="task_bits",
        text="K L^kappa",
        names=("K", "kappa"),
        positive=(True, False),
        target="bits_per_byte",
        residual_fns=RESIDUAL_FNS,
        predict=_predict,
        starts=starts,
        bounds={"kappa": (-50.0, 50.0)},
        same=("loss",),
        extreme="the runs of the lowest losses",
    )
    used = np.ones(len(log_loss), bool)
    held_out = table["loss"] <= np.quantile(table["loss"], HELD_OUT)
    return fit_law(
        law, table, {"log_loss": log_loss}, used, held_out,
        residuals="log", delta=delta, outliers=outliers, bootstrap=bootstrap, resampling="case", seed=seed,
        settings={},
    )  # fmt: skip
