"""XLA compiler options for programs on CPUs. Options that the user sets in XLA_FLAGS are left alone."""

from __future__ import annotations

import os
from collections.abc import Mapping

from llm_jax.core.xla_flags import set_by_user
from llm_jax.layout.gpu_options import Options

OPTIONS: Options = {
    # The default library for products (YNN, since JAX 0.10) runs a batched product, as in attention, on one
    # core. Eigen uses all cores and is as fast in plain products. Reductions, as in a softmax, are faster in
    # YNN.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}


def compiler_options(environment: Mapping[str, str] = os.environ) -> Options:
    """The options for `jax.jit(..., compiler_options=...)` of a program on CPUs, without those that XLA_FLAGS
    sets."""
    by_user = set_by_user(environment)
    return {name: value for name, value in OPTIONS.items() if name not in by_user}
