"""XLA compiler options for training on GPUs, each with its source. Options that the user sets in XLA_FLAGS
are left alone.

Sources: [T] NVIDIA JAX-Toolbox, docs/GPU_performance.md; [E] its getting-started/environment-variables.md;
[J] docs.jax.dev, "GPU performance tips". JAX 0.10.2 and 0.11.2 accept these names and values as
`compiler_options`; `tests/gpu_compile` tries each. docs/gpu_options.md lists what each option changed, and
which others were tried and rejected.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from llm_jax.core.xla_flags import set_by_user

Options = dict[str, bool | int | str]

SINGLE: Options = {
    # Schedules by estimated latencies, so that copies and collectives run beside kernels. NVIDIA's JAX image
    # sets it for everybody [E], and it is part of its optimization level O1 [T].
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Only `model.remat` decides what is computed twice. XLA's rematerialization pass starts at three quarters
    # of the memory, by an estimate that double buffering nearly doubles (W3 on 8 GPUs: 169 GiB, where 90 are
    # allocated), and then silently repeats matrix products. Without the pass, a step that doesn't fit fails
    # with an error. The simplifier turns an all-gather whose result each device cuts to its own part into a
    # collective-permute without pairs, which returns zeros: seen in JAX 0.10.2, in gradients of a stream that
    # is scattered over `tensor`.
    "xla_disable_hlo_passes": "rematerialization,all-gather-to-collective-permute-simplifier",
}
"""Options for any number of GPUs."""

SEVERAL: Options = {
    # Two iterations in one loop body: the next layer's weights arrive while this one computes; part of O1
    # [T].
    "xla_gpu_enable_while_loop_double_buffering": True,
    # Above this per cent of the device's memory, by its own estimate, the scheduler trades overlap for memory
    # [T]. The estimate is too high (see SINGLE): at the default of 95 a 70B step of 71 of 85 GB waits for
    # every collective of its backward pass; at 120 it takes 73 GB and waits for hardly any.
    "xla_gpu_memory_limit_slop_factor": 120,
}
"""Options for more than one GPU, where there are collectives."""

COLLECTIVES = ("all_gather", "reduce_scatter", "all_reduce")


def pipelining(jax_version: tuple[int, ...] = jax.__version_info__) -> Options:
    """Options that move collectives of a layer scan to the neighbouring iteration, to run beside its kernels;
    part of O1 [T].

    JAX 0.10 has a switch for each kind of collective, JAX 0.11 a mode under another name.
    """
    if jax_version < (0, 11):
        return {f"xla_gpu_enable_pipelined_{kind}": True for kind in COLLECTIVES}
    return {f"xla_gpu_pipeline_{kind}": "COLLECTIVE_PIPELINING_MODE_ON" for kind in COLLECTIVES}


DETERMINISTIC: Options = {
    # Every kernel is bit-reproducible, or compilation fails. cuDNN's attention then uses a backward pass with
    # a workspace of batch × heads × sequence² (cuDNN frontend, `use_dp_workspace`): for short sequences only.
    "xla_gpu_exclude_nondeterministic_ops": True,
}
"""Options for runs that must be bit-reproducible on a GPU."""


COLLECTIVES_PER_LAYER = 4
"""The number of collectives of a kind that a layer's small ones are combined into."""


def combining(layer_bytes: Mapping[str, int]) -> Options:
    """Options that combine small collectives of one kind into larger ones, about `COLLECTIVES_PER_LAYER` for
    each layer.

    NVIDIA advises to combine a layer's weights or more [T]. But a combined collective can't start before its
    last input is ready, and none of it can be used before all has arrived: with a quarter of a layer,
    latencies are few and most is hidden (docs/gpu_options.md).

    layer_bytes: for each kind (of COLLECTIVES) the bytes of a layer's weights as XLA counts them, of the
    result on one device.
    """
    return {
        f"xla_gpu_{kind}_combine_threshold_bytes": max(1, layer_bytes[kind] // COLLECTIVES_PER_LAYER)
        for kind in COLLECTIVES
    }


def compiler_options(
    devices: int,
    layer_bytes: Mapping[str, int] | None = None,
    deterministic: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Options:
    """The options for `jax.jit(...).compile(compiler_options=...)` of a step on this many GPUs.

    Compiler options override XLA_FLAGS, so options that XLA_FLAGS names are left out.
    """
    options = dict(SINGLE)
    if devices > 1:
        options |= SEVERAL | pipelining()
        if layer_bytes is not None:
            options |= combining(layer_bytes)
    if deterministic:
        options |= DETERMINISTIC
    by_user = set_by_user(environment)
    return {name: value for name, value in options.items() if name not in by_user}
