"""Repeated data: the value of repeated tokens (Muennighoff et al. 2023, arXiv:2305.16264, eqs. 5 to 7).

With U unique tokens seen D/U times, D counts as `D' = U + U R_D (1 - exp(-(D/U - 1)/R_D))` in the law of
approach 3: a first repetition is worth almost as much as new tokens, and after about R_D repetitions further
ones add little. Parameters beyond the size for which U unique tokens are optimal saturate likewise, with R_N.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.files import text_of
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.approach3 import parametric
from llm_jax.scaling.fit.bounded import Floor
from llm_jax.scaling.fit.fit_law import LawFit, SmallLaw, fit_law, residual_functions, start_grid
from llm_jax.scaling.fit.law import NAMES, Law
from llm_jax.scaling.fit.law_residuals import Scale
from llm_jax.scaling.fit.outliers import Outliers
from llm_jax.scaling.fit.result import columns, largest_runs, with_flops
from llm_jax.scaling.published import constants

PAPER = "Muennighoff et al. 2023"


def effective(unique: Any, seen: Any, half: Any) -> Any:
    """The amount of unique tokens (or parameters) that `seen` tokens with `unique` different ones are worth;
    `half` is R_D (or R_N).

    >>> [round(float(effective(1.0, seen, 15.4)), 3) for seen in (1.0, 4.0, 1e9)]
    [1.0, 3.726, 16.4]
    """
    xp = jnp if isinstance(half, jax.Array) or isinstance(unique, jax.Array) else np
    repetitions = xp.maximum(seen / unique - 1, 0.0)
    return unique + unique * half * -xp.expm1(-repetitions / half)


def repeated_loss(law: Law, parameters: Any, tokens: Any, unique_tokens: Any, R_D: Any, R_N: Any) -> Any:
    """The loss after `tokens` with `unique_tokens` different ones, given the law for fresh data, R_D and R_N.
    Arrays broadcast."""
    enough = law.G * (law.G * unique_tokens) ** (
        law.a / law.b
    )  # the size that is optimal for the unique tokens
    unique_parameters = (
        np.minimum(parameters, enough)
        if isinstance(enough, np.ndarray | float)
        else jnp.minimum(parameters, enough)
    )
    return law.loss(effective(unique_parameters, parameters, R_N), effective(unique_tokens, tokens, R_D))


def published_repetition() -> tuple[Law, float, float]:
    """The constants that Muennighoff et al. published: the law for fresh data, R_D and R_N."""
    row = constants("repetition", PAPER)
    return Law(*(row[name] for name in NAMES)), row["R_D"], row["R_N"]


def _predict(theta: Any, data: Any) -> Any:
    parameters = effective(data["unique_parameters"], data["parameters"], jnp.exp(theta[1]))
    tokens = effective(data["unique_tokens"], data["tokens"], jnp.exp(theta[0]))
    e, a, b, alpha, beta = data["law"]
    return e + a / parameters**alpha + b / tokens**beta


RESIDUAL_FNS = residual_functions(_predict)


def read_base(base: str) -> Law:
    """The law for fresh data from a fit.json of method=parametric, or the paper's ("muennighoff"). Raises
    UserError for another file."""
    if base == "muennighoff":
        return published_repetition()[0]
    path = Path(base)
    if not path.is_file():
        raise UserError(
            f"base={base}: must be fresh, muennighoff, or the path of a fit.json of method=parametric"
        )
    try:
        parameters = json.loads(text_of(path.read_bytes(), f"base={base}"))["parameters"]
        return Law(*(float(parameters[name]) for name in NAMES))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"base={base}: is not the fit.json of method=parametric ({type(error).__name__}: {error})"
        ) from error


def repetition(
    parameters: Any,
    tokens: Any,
    unique_tokens: Any,
    loss: Any,
    *,
    name: Any = None,
    base: str = "fresh",
    floor: Floor = "free",
    residuals: Scale = "log",
    delta: float = 1e-3,
    outliers: Outliers = "leave_out",
    bootstrap: int = 1000,
    resampling: boot.Resampling = "case",
    seed: int = 0,
    convention: str = "as given",
) -> LawFit:
    """Fits R_D and R_N to runs with repeated data; columns are [n].

    `base` is the law for fresh data: "fresh" fits it to the runs without repetition, a path reads the
    fit.json of method=parametric, and "muennighoff" takes the paper's. `floor` is the fitted base's E:
    "free", or a loss (0: none). `residuals` are those of "log" loss, or "linear"; `delta` is Huber's.
    `outliers`: "leave_out" or "keep" a run that is grossly off the law of the others; `name` [n] is what
    warnings call the runs.

    Raises UserError where fewer than three runs repeat data, or the runs do not determine R_D and R_N.
    """
    table = with_flops(
        columns(
            parameters=parameters,
            tokens=tokens,
            unique_tokens=unique_tokens,
            loss=loss,
            others={"name": name},
        )
    )
    if floor != "free" and base != "fresh":
        raise UserError(f"floor={floor}: is that of base=fresh, but base={base} has its own. Leave it out.")
    repeats = table["tokens"] > 1.01 * table["unique_tokens"]
    if repeats.sum() < 3:
        raise UserError(
            f"unique_tokens: {repeats.sum()} runs repeat tokens, but a fit of two constants needs at "
            "least three. Add runs that repeat."
        )
    if base == "fresh":
        if repeats.all():
            raise UserError(
                "base=fresh: every run repeats tokens, but the law for fresh data is fitted to runs that "
                "do not. "
                "Use base=FIT.json of method=parametric, or base=muennighoff."
            )
        fresh = {name: values[~repeats] for name, values in table.items()}
        fitted = parametric(
            fresh["parameters"], fresh["tokens"], fresh["loss"], name=fresh.get("name"), floor=floor,
            residuals=residuals, delta=delta, outliers=outliers, bootstrap=0,
        )  # fmt: skip
        law, warnings = fitted.law, [f"law for fresh data: {line}" for line in fitted.warnings]
    else:
        law, warnings = read_base(base), []
    five = np.array([getattr(law, name) for name in NAMES])
    enough = law.G * (law.G * table["unique_tokens"]) ** (law.a / law.b)
    small = SmallLaw(
        method="repetition",
        text="E + A/N'^alpha + B/D'^beta, D' = U + U R_D (1 - exp(-(D/U - 1)/R_D)), N' likewise with R_N",
        names=("R_D", "R_N"),
        positive=(True, True),
        target="loss",
        residual_fns=RESIDUAL_FNS,
        predict=_predict,
        starts=start_grid(np.log([0.5, 2, 6, 15, 40]), np.log([0.5, 2, 6, 15, 40])),
        bounds={"R_D": (0.02, 1e4), "R_N": (0.02, 1e4)},
        same=("parameters", "tokens", "unique_tokens"),
    )
    data = {
        "parameters": table["parameters"], "tokens": table["tokens"], "law": five,
        "unique_parameters": np.minimum(table["parameters"], enough),
        "unique_tokens": np.minimum(table["unique_tokens"], table["tokens"]),
    }  # fmt: skip
    settings = {
        "base": base,
        "floor": floor,
        "base_law": dict(zip(NAMES, map(float, five), strict=True)),
        "convention": convention,
    }
    return fit_law(
        small, table, data, repeats, largest_runs(table["flops"], repeats),
        residuals=residuals, delta=delta, outliers=outliers, bootstrap=bootstrap, resampling=resampling,
        seed=seed, settings=settings, warnings=warnings,
    )  # fmt: skip
