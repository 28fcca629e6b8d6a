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
        experiment.model.resolved(), experiment.optimizer, place, train.ema_decay, train.trainable
    )


def compile_step(model: TrainModel, experiment: Experiment) -> gpu_compile.CompiledStep:
    """The train step of the experiment, compiled for its model's devices, which may be absent."""
    objective, models = experiment.objective, frozen_models(experiment, model)
    step = jit_step(model, objective, experiment.optimizer, experiment.train.steps, models)
    parameters = {role: frozen.abstract_parameters() for role, frozen in models.items()}
    frozen = Frozen(model.rest(model.abstract_parameters()), parameters)
    arguments = (model.abstract_state(), abstract_batch(objective, experiment.train, model.place), frozen)
    return gpu_compile.compile_for(model.place.mesh, step, arguments)


def compile_absent(experiment: Experiment, hardware: str, devices: int) -> gpu_compile.CompiledStep:
    """The experiment's train step, compiled for GPUs that are not here.

    Raises UserError for what doesn't fit their number, and where XLA's GPU compiler is not installed.
    """
    check_complete(experiment)
    return compile_step(absent_model(experiment, gpu_compile.topology_devices(hardware, devices)), experiment)
