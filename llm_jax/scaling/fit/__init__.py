"""Fits of scaling laws, with intervals: `fit.parametric(parameters, tokens, loss)`, `fit.isoflop(flops,
parameters, loss)`, ...

The command is `python -m llm_jax.scaling.fit data=TABLE.csv method=NAME`. All fits compute in float64,
whatever JAX is set to.
"""

from llm_jax.scaling.fit.accuracy_link import accuracy, sigmoid_link
from llm_jax.scaling.fit.approach1 import EnvelopeFit, envelope
from llm_jax.scaling.fit.approach2 import IsoflopFit, Minimum, isoflop
from llm_jax.scaling.fit.approach3 import ParametricFit, parametric
from llm_jax.scaling.fit.compute import compute_law
from llm_jax.scaling.fit.fit_law import LawFit
from llm_jax.scaling.fit.law import Law
from llm_jax.scaling.fit.overtrained import overtrained_loss, overtraining
from llm_jax.scaling.fit.repeated import published_repetition, repeated_loss, repetition

__all__ = [
    "EnvelopeFit",
    "IsoflopFit",
    "Law",
    "LawFit",
    "Minimum",
    "ParametricFit",
    "accuracy",
    "compute_law",
    "envelope",
    "isoflop",
    "overtrained_loss",
    "overtraining",
    "parametric",
    "published_repetition",
    "repeated_loss",
    "repetition",
    "sigmoid_link",
]
