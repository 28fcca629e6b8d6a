"""The train step of an experiment, compiled for the devices that are here or for GPUs that are not."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment
from llm_jax.layout import gpu_compile
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.run.frozen import frozen_models
from llm_jax.train.compile import abstract_batch, jit_step
from llm_jax.train.state import Frozen, TrainModel
from llm_jax.train.step import NO_MODELS, Models


def check_complete(experiment: Experiment) -> None:
    """Raises UserError for what only a corpus could tell: `model.vocab`, and `model.max_segments` for
    attention=cudnn.
    """
    for key in ("vocab", *(("max_segments",) if experiment.model.attention == "cudnn" else ())):
        if getattr(experiment.model, key) is None:
            raise UserError(f"model.{key}=null: must be a number to compile without the corpus")


def absent_model(experiment: Experiment, devices: Sequence[jax.Device]) -> TrainModel:
    """The experiment's model on devices that may be absent.

    Raises UserError for what doesn't fit their number.
    """
    check_complete(experiment)
    place = MeshPlacement(experiment.layout, make_mesh(experiment.layout, experiment.mesh, devices))
    train = experiment.train
    return TrainModel(
        experiment.model.resolved(),
        experiment.optimizer,
        place,
        train.ema_decay,
        train.trainable,
        experiment.adapter,
    )


def compile_step(
    model: TrainModel, experiment: Experiment, models: Models = NO_MODELS
) -> gpu_compile.CompiledStep:
    """The train step of the experiment, compiled for its model's devices, which may be absent.

    models: the objective's frozen ones (`frozen_models`).
    """
    objective = experiment.objective
    step = jit_step(model, objective, experiment.optimizer, experiment.train.steps, models)
    batch = abstract_batch(objective, experiment.train, model.place)
    arguments = (model.abstract_state(), batch, abstract_frozen(model, models))
    return gpu_compile.compile_for(model.place.mesh, step, arguments)


def abstract_frozen(model: TrainModel, models: Models) -> Frozen:
    """The abstract frozen parameters of a step: those of its model that are not trained, and the frozen
    models', without what these share with it."""
    parameters = {role: frozen.trainable(frozen.abstract_parameters()) for role, frozen in models.items()}
    return Frozen(model.rest(model.abstract_parameters()), parameters)


def compile_absent(experiment: Experiment, hardware: str, devices: int) -> gpu_compile.CompiledStep:
    """The experiment's train step, compiled for GPUs that are not here.

    Raises UserError for what doesn't fit their number, and where XLA's GPU compiler is not installed.
    """
    check_complete(experiment)
    model = absent_model(experiment, gpu_compile.topology_devices(hardware, devices))
    return compile_step(model, experiment, frozen_models(experiment, model))
