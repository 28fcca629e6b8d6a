"""XLA compiler options for training on GPUs, each with its source; what the user set in XLA_FLAGS stays theirs.

Sources: [T] NVIDIA JAX-Toolbox, docs/GPU_performance.md; [E] its getting-started/environment-variables.md;
[J] docs.jax.dev, "GPU performance tips". The names and values are those that JAX 0.10.2 and 0.11.2 take as
`compiler_options`; `tests/gpu_compile` tries each. docs/gpu_options.md has what each of them changed, and what was tried and left.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from llm_jax.core.xla_flags import set_by_user

Options = dict[str, bool | int | str]

SINGLE: Options = {
    # Schedules by estimated latencies, so that copies and collectives run beside kernels. The one flag that NVIDIA's
    # JAX image sets for everybody [E], and part of its optimization level O1 [T].
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # `model.remat` says what is computed twice, and nobody else. XLA's own pass begins at three quarters of the memory, by
    # an estimate that double buffering nearly doubles (W3 on 8 GPUs: 169 GiB, where 90 are allocated), and then repeats
    # matrix products without a word. Without it a step that doesn't fit says so.
    # The other pass turns an all-gather of which each device takes its own part again into a collective-permute without
    # pairs, which gives zeros: seen in JAX 0.10.2, in gradients of a stream that is scattered over `tensor`.
    "xla_disable_hlo_passes": "rematerialization,all-gather-to-collective-permute-simplifier",
}
"""For any number of GPUs."""

SEVERAL: Options = {
    # Two iterations in one loop body: the next layer's weights arrive while this one computes; part of O1 [T].
    "xla_gpu_enable_while_loop_double_buffering": True,
    # Above this per cent of the device's memory, by its own estimate, the scheduler gives up overlap for memory [T]. The estimate is
    # too high (see SINGLE): at the default of 95 a 70B step of 71 of 85 GB waits for every collective of its backward pass; at 120 it
    # takes 73 and waits for hardly any.
    "xla_gpu_memory_limit_slop_factor": 120,
}
"""Also, where there are collectives."""

COLLECTIVES = ("all_gather", "reduce_scatter", "all_reduce")


def pipelining(jax_version: tuple[int, ...] = jax.__version_info__) -> Options:
    """Collectives of a layer scan move to the neighbouring iteration, to run beside its kernels; part of O1 [T].

    XLA made the switches of JAX 0.10 into modes of another name in 0.11.
    """
    if jax_version < (0, 11):
        return {f"xla_gpu_enable_pipelined_{kind}": True for kind in COLLECTIVES}
    return {f"xla_gpu_pipeline_{kind}": "COLLECTIVE_PIPELINING_MODE_ON" for kind in COLLECTIVES}


DETERMINISTIC: Options = {
    # Every kernel gives the same bits each time, or compilation fails. cuDNN's attention then takes a backward pass
    # with a workspace of batch × heads × sequence² (cuDNN frontend, `use_dp_workspace`): for short sequences only.
    "xla_gpu_exclude_nondeterministic_ops": True,
}
"""For runs that must repeat bit by bit on a GPU."""


PARTS = 4
"""Into how many collectives of a kind those of a layer are combined."""


def combining(layer_bytes: Mapping[str, int]) -> Options:
    """Small collectives of one kind become larger ones, about `PARTS` to a layer.

    NVIDIA advises to combine a layer's weights or more [T]. But what is combined can't start before the last of it is there, nor
    be used before all of it has come: with a quarter of a layer, latencies are few and most of it is hidden (docs/gpu_options.md).

    `layer_bytes`: for each kind (of COLLECTIVES) the bytes of a layer's weights, as XLA counts them: of what comes out on one device.
    """
    return {f"xla_gpu_{kind}_combine_threshold_bytes": max(1, layer_bytes[kind] // PARTS) for kind in COLLECTIVES}


def compiler_options(
    devices: int, layer_bytes: Mapping[str, int] | None = None, deterministic: bool = False, environment: Mapping[str, str] = os.environ
) -> Options:
    """The options for `jax.jit(...).compile(compiler_options=...)` of a step on this many GPUs.

    Compiler options win over XLA_FLAGS, so those that XLA_FLAGS names are left out here.
    """
    options = dict(SINGLE)
    if devices > 1:
        options |= SEVERAL | pipelining()
        if layer_bytes is not None:
            options |= combining(layer_bytes)
    if deterministic:
        options |= DETERMINISTIC
    theirs = set_by_user(environment)
    return {name: value for name, value in options.items() if name not in theirs}
