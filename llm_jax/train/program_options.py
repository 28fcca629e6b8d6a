"""The compiler options of every program on a model's devices. `TrainModel.jit` compiles with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from llm_jax.layout import cpu_options, gpu_options
from llm_jax.model.dims import Table

if TYPE_CHECKING:
    from llm_jax.train.state import TrainModel


def program_options(program: TrainModel) -> gpu_options.Options:
    """The compiler options of every program on the model's devices: step, evaluation, samples, and what only
    makes or merges weights.

    Some work around XLA bugs.
    """
    platform = program.place.platform()
    if platform == "cpu":
        return cpu_options.compiler_options()
    if platform != "gpu":
        return {}
    return gpu_options.compiler_options(program.place.mesh.size, layer_bytes=layer_bytes(program))


def layer_bytes(program: TrainModel) -> dict[str, int]:
    """Output bytes per device of the collectives over one layer's weights and gradients, by kind of
    collective.
    """

    def elements(table: Table) -> int:
        shards = jax.tree.map(
            lambda s, w: math.prod(s.shard_shape(w.shape)[1:]),
            program.shardings(table)["blocks"],
            program.abstract["blocks"],
        )
        return sum(jax.tree.leaves(shards))

    weight, gradient = (
        jnp.dtype(dtype).itemsize for dtype in (program.config.compute_dtype, program.config.gradient_dtype)
    )
    in_use, at_home = elements("compute"), elements("optimizer")
    return {
        "all_gather": in_use * weight,
        "reduce_scatter": at_home * gradient,
        "all_reduce": at_home * gradient,
    }
