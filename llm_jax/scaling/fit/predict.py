"""What the law of a fit predicts for a run, at the estimates or at each of many resamples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llm_jax.scaling.fit.accuracy_link import sigmoid_link
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT, NAMES, Law
from llm_jax.scaling.fit.overtrained import overtrained_loss
from llm_jax.scaling.fit.repeated import repeated_loss

Parameters = Mapping[str, Any]
"""Name of a parameter → its value, or values [k, 1] of k resamples."""


def predict(fit: Any, columns: Mapping[str, Any], parameters: Parameters | None = None) -> Any:
    """The loss (or accuracy) [m] that a fit's law predicts for runs with columns [m]; [k, m] for parameters
    [k, 1]. The methods without such a law, isoflop and envelope, have no prediction."""
    p, c = fit.parameters if parameters is None else parameters, columns
    if fit.method == "parametric":
        return Law(*(p[name] for name in NAMES)).loss(c["parameters"], c["tokens"])
    if fit.method == "compute":
        return p.get("E", 0.0) + p["K"] * (np.asarray(c["flops"]) / 1e18) ** -p["gamma"]
    if fit.method == "overtraining":
        ratio = np.asarray(c["tokens"]) / c["parameters"]
        return overtrained_loss(p, FLOPS_A_WEIGHT * np.asarray(c["parameters"]) * c["tokens"], ratio)
    if fit.method == "repetition":
        law = Law(**fit.settings["base_law"])
        return repeated_loss(law, c["parameters"], c["tokens"], c["unique_tokens"], p["R_D"], p["R_N"])
    given = {"low": fit.settings["chance"], "high": fit.settings["ceiling"]}
    return sigmoid_link({**given, **p}, c["loss"])


def estimates_of(fit: Any) -> dict[str, float]:
    """The fitted parameters in the order of the fit's covariance and draws."""
    names = NAMES if fit.method == "parametric" else tuple(fit.parameters)
    return {name: fit.parameters[name] for name in names}


def log_slopes(fit: Any, function: Callable[[Parameters], Any]) -> np.ndarray:
    """The derivatives [m, P] of the logarithm of a positive function [m] by a fit's parameters,
    numerically."""
    at = estimates_of(fit)
    slopes = []
    for name, value in at.items():
        step = 1e-6 * abs(value) if value else 1e-9
        ahead, behind = (np.log(function({**at, name: value + sign * step})) for sign in (1, -1))
        slopes.append((ahead - behind) / (2 * step))
    return np.stack([np.atleast_1d(slope) for slope in slopes], -1)
