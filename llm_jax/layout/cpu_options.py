"""XLA compiler options for programs on CPUs; what the user set in XLA_FLAGS stays theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from llm_jax.core.xla_flags import set_by_user
from llm_jax.layout.gpu_options import Options

OPTIONS: Options = {
    # The library that does products by default (YNN, since JAX 0.10) runs a batched product, as in attention, on one core.
    # Eigen uses all of them and is as fast in plain products. Reductions, the softmax's say, are faster in the library.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}


def compiler_options(environment: Mapping[str, str] = os.environ) -> Options:
    """The options for `jax.jit(..., compiler_options=...)` of a program on CPUs."""
    theirs = set_by_user(environment)
    return {name: value for name, value in OPTIONS.items() if name not in theirs}
