"""The train step as it is jitted, on the devices that are here or for GPUs that are not: one function for both."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.layout import cpu_options, gpu_options
from llm_jax.layout.layout import MeshPlacement
from llm_jax.model.dims import Table
from llm_jax.objective.next_token import Objective
from llm_jax.train.config import TrainConfig
from llm_jax.train.optimizer import OptimizerConfig, make_schedule
from llm_jax.train.state import TrainModel
from llm_jax.train.step import make_step

BATCH_DTYPES = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32, "segments": jnp.int32, "positions": jnp.int32}
"""The arrays of a batch (`data.Corpus`)."""


def jit_step(program: TrainModel, objective: Objective, optimizer: OptimizerConfig, steps: int) -> Any:
    """step(state, batch) -> (state, metrics), jitted: the state is donated."""
    step = make_step(program, objective, make_schedule(optimizer, steps), optimizer.clip_norm)
    return jax.jit(step, donate_argnums=0, compiler_options=program_options(program) or None)


def program_options(program: TrainModel) -> gpu_options.Options:
    """The compiler options of whatever runs on the program's devices: the step, evaluation, samples. Some of them keep XLA from being wrong."""
    platform = program.place.platform()
    if platform == "cpu":
        return cpu_options.compiler_options()
    if platform != "gpu":
        return {}
    return gpu_options.compiler_options(program.place.mesh.size, layer_bytes=layer_bytes(program))


def layer_bytes(program: TrainModel) -> dict[str, int]:
    """What comes out on a device of the collectives of one layer's weights and gradients, by kind."""

    def elements(table: Table) -> int:
        shards = jax.tree.map(lambda s, w: math.prod(s.shard_shape(w.shape)[1:]), program.shardings(table)["blocks"], program.abstract["blocks"])
        return sum(jax.tree.leaves(shards))

    weight, gradient = (jnp.dtype(dtype).itemsize for dtype in (program.config.compute_dtype, program.config.gradient_dtype))
    in_use, at_home = elements("compute"), elements("optimizer")
    return {"all_gather": in_use * weight, "reduce_scatter": at_home * gradient, "all_reduce": at_home * gradient}


def abstract_batch(train: TrainConfig, place: MeshPlacement) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of what `Feed` brings."""
    shape = (train.microbatches, train.batch_size // train.microbatches, train.sequence_length)
    sharding = place.sharding((None, "batch", "sequence"), "compute")
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in BATCH_DTYPES.items()}
