"""The train step of an experiment, compiled for the devices that are here or for GPUs that are not."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment
from llm_jax.layout import gpu_compile
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.objective.next_token import make_objective
from llm_jax.train.compile import abstract_batch, jit_step
from llm_jax.train.state import TrainModel


def check_complete(experiment: Experiment) -> None:
    """Raises UserError for what only a corpus could tell: `model.vocab`, and `model.max_segments` for attention=cudnn."""
    for key in ("vocab", *(("max_segments",) if experiment.model.attention == "cudnn" else ())):
        if getattr(experiment.model, key) is None:
            raise UserError(f"model.{key}=null: must be a number to compile without the corpus")


def absent_program(experiment: Experiment, devices: Sequence[jax.Device]) -> TrainModel:
    """The experiment's program on devices that may be absent. Raises UserError for what doesn't fit their number."""
    check_complete(experiment)
    mesh = make_mesh(experiment.layout, experiment.mesh, devices)
    return TrainModel(experiment.model.resolved(), experiment.optimizer, MeshPlacement(experiment.layout, mesh), experiment.train.ema_decay)


def compile_program(program: TrainModel, experiment: Experiment) -> gpu_compile.CompiledStep:
    """The train step of the experiment's program, compiled for its devices, which may be absent."""
    step = jit_step(program, make_objective(experiment.objective), experiment.optimizer, experiment.train.steps)
    return gpu_compile.compile_for(program.place.mesh, step, (program.abstract_state(), abstract_batch(experiment.train, program.place)))


def compile_absent(experiment: Experiment, hardware: str, devices: int) -> gpu_compile.CompiledStep:
    """The experiment's train step, compiled for GPUs that are not here; raises UserError also where XLA's GPU compiler is not installed."""
    check_complete(experiment)
    return compile_program(absent_program(experiment, gpu_compile.topology_devices(hardware, devices)), experiment)
