"""The train step as it is jitted, on the devices that are here or for GPUs that are not: one function for
both.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.layout import cpu_options, gpu_options
from llm_jax.layout.layout import MeshPlacement
from llm_jax.model.dims import Table
from llm_jax.objective.protocol import ArraySpec, Objective
from llm_jax.train.config import TrainConfig
from llm_jax.train.loader import names, sizes
from llm_jax.train.optimizer import OptimizerConfig, make_schedule
from llm_jax.train.state import TrainModel
from llm_jax.train.step import NO_MODELS, Models, make_step


def jit_step(
    model: TrainModel,
    objective: Objective,
    optimizer: OptimizerConfig,
    steps: int,
    frozen_models: Models = NO_MODELS,
) -> Any:
    """step(state, batch, frozen) -> (state, metrics), jitted: the state is donated."""
    step = make_step(model, objective, make_schedule(optimizer, steps), optimizer.clip_norm, frozen_models)
    return jax.jit(step, donate_argnums=0, compiler_options=program_options(model) or None)


def program_options(program: TrainModel) -> gpu_options.Options:
    """The compiler options of every program on the model's devices: step, evaluation, samples.

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


def abstract_batch(
    objective: Objective, train: TrainConfig, place: MeshPlacement
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of the arrays that `Loader` brings."""

    def abstract(spec: ArraySpec) -> jax.ShapeDtypeStruct:
        shape = (
            train.microbatches,
            *sizes(spec, train.batch_size // train.microbatches, train.sequence_length),
        )
        return jax.ShapeDtypeStruct(
            shape, spec.dtype, sharding=place.sharding((None, *names(spec)), "compute")
        )

    return {name: abstract(spec) for name, spec in objective.arrays().items()}
