"""XLA compiler options for training on GPUs, each with its source; what the user set in XLA_FLAGS stays theirs.

Sources: [T] NVIDIA JAX-Toolbox, docs/GPU_performance.md; [E] its getting-started/environment-variables.md;
[J] docs.jax.dev, "GPU performance tips". All names are accepted as `compiler_options` by JAX 0.10.2 and 0.11.2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

Options = dict[str, bool | int | str]

SINGLE: Options = {
    # Schedules by estimated latencies, so that copies and collectives run beside kernels. The one flag that NVIDIA's
    # JAX image sets for everybody [E], and part of its optimization level O1 [T].
    "xla_gpu_enable_latency_hiding_scheduler": True,
}
"""For any number of GPUs."""

SEVERAL: Options = {
    # Collectives of a layer scan are moved to the neighbouring iteration, to run beside its kernels; part of O1 [T].
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
    # Two iterations in one loop body: the next layer's weights arrive while this one computes; part of O1 [T].
    "xla_gpu_enable_while_loop_double_buffering": True,
}
"""Also, where there are collectives."""

DETERMINISTIC: Options = {
    # Every kernel gives the same bits each time, or compilation fails. cuDNN's attention then takes a backward pass
    # with a workspace of batch × heads × sequence² (cuDNN frontend, `use_dp_workspace`): for short sequences only.
    "xla_gpu_exclude_nondeterministic_ops": True,
}
"""For runs that must repeat bit by bit on a GPU."""


def combining(layer_bytes: int) -> Options:
    """Small collectives of one kind become one of up to the weights of a layer, "at least" which NVIDIA advises [T].

    `layer_bytes`: a block's weights, all of them, in the dtype that they travel in.
    """
    kinds = ("all_gather", "reduce_scatter", "all_reduce")
    return {f"xla_gpu_{kind}_combine_threshold_bytes": layer_bytes for kind in kinds}


def compiler_options(
    devices: int, layer_bytes: int | None = None, deterministic: bool = False, environment: Mapping[str, str] = os.environ
) -> Options:
    """The options for `jax.jit(...).compile(compiler_options=...)` of a step on this many GPUs.

    Compiler options win over XLA_FLAGS, so those that XLA_FLAGS names are left out here.
    """
    options = dict(SINGLE)
    if devices > 1:
        options |= SEVERAL
        if layer_bytes is not None:
            options |= combining(layer_bytes)
    if deterministic:
        options |= DETERMINISTIC
    return {name: value for name, value in options.items() if name not in set_by_user(environment)}


def set_by_user(environment: Mapping[str, str] = os.environ) -> set[str]:
    """The names of the flags in XLA_FLAGS.

    >>> set_by_user({"XLA_FLAGS": "--xla_a=true --xla_b"}) == {"xla_a", "xla_b"}
    True
    """
    return set(re.findall(r"--(\w+)", environment.get("XLA_FLAGS", "")))
