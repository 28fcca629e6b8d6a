"""The train step as it is jitted, on the devices that are here or for GPUs that are not: one function for
both.
"""

from __future__ import annotations

from typing import Any

import jax

from llm_jax.layout.layout import MeshPlacement
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
    return model.jit(step, donate_argnums=0)


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
