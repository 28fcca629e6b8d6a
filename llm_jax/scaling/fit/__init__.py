"""Fits of scaling laws, with intervals: `fit.parametric(parameters, tokens, loss)`, `fit.isoflop(flops, parameters, loss)`, ...

The command is `python -m llm_jax.scaling.fit data=TABLE.csv method=NAME`. All computing is in float64, whatever JAX is set to.
"""

from llm_jax.scaling.fit.approach2 import IsoflopFit, Minimum, isoflop
from llm_jax.scaling.fit.approach3 import ParametricFit, parametric
from llm_jax.scaling.fit.law import Law

__all__ = ["IsoflopFit", "Law", "Minimum", "ParametricFit", "isoflop", "parametric"]
