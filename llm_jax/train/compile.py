"""The train step as it is jitted, on the devices that are here or for GPUs that are not: one function for both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.errors import UserError
from llm_jax.experiment import Experiment
from llm_jax.layout import cpu_options, gpu_compile, gpu_options
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.model.dims import Table
from llm_jax.objective.next_token import Objective, make_objective
from llm_jax.train.optimizer import make_schedule
from llm_jax.train.state import Program
from llm_jax.train.step import make_step

BATCH_DTYPES = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32, "segments": jnp.int32, "positions": jnp.int32}
"""The arrays of a batch (`data.Corpus`)."""


def jit_step(program: Program, objective: Objective, experiment: Experiment) -> Any:
    """step(state, batch) -> (state, metrics), jitted: the state is donated."""
    schedule = make_schedule(experiment.optimizer, experiment.train.steps)
    step = make_step(program, objective, schedule, experiment.optimizer.clip_norm)
    return jax.jit(step, donate_argnums=0, compiler_options=program_options(program) or None)


def program_options(program: Program) -> gpu_options.Options:
    """The compiler options of whatever runs on the program's devices: the step, evaluation, samples. Some of them keep XLA from being wrong."""
    platform = program.place.platform()
    if platform == "cpu":
        return cpu_options.compiler_options()
    if platform != "gpu":
        return {}
    return gpu_options.compiler_options(program.place.mesh.size, layer_bytes=layer_bytes(program))


def layer_bytes(program: Program) -> dict[str, int]:
    """What comes out on a device of the collectives of one layer's weights and gradients, by kind."""

    def elements(table: Table) -> int:
        shards = jax.tree.map(lambda s, w: math.prod(s.shard_shape(w.shape)[1:]), program.shardings(table)["blocks"], program.abstract["blocks"])
        return sum(jax.tree.leaves(shards))

    weight, gradient = (jnp.dtype(dtype).itemsize for dtype in (program.config.compute_dtype, program.config.gradient_dtype))
    in_use, at_home = elements("compute"), elements("optimizer")
    return {"all_gather": in_use * weight, "reduce_scatter": at_home * gradient, "all_reduce": at_home * gradient}


def abstract_batch(experiment: Experiment, place: MeshPlacement) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of what `Feed` brings."""
    t = experiment.train
    shape = (t.microbatches, t.batch_size // t.microbatches, t.sequence_length)
    sharding = place.sharding((None, "batch", "sequence"), "compute")
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in BATCH_DTYPES.items()}


def check_complete(experiment: Experiment) -> None:
    """Raises UserError for what only a corpus could tell: `model.vocab`, and `model.max_segments` for attention=cudnn."""
    for key in ("vocab", *(("max_segments",) if experiment.model.attention == "cudnn" else ())):
        if getattr(experiment.model, key) is None:
            raise UserError(f"model.{key}=null: must be a number to compile without the corpus")


def absent_program(experiment: Experiment, devices: Sequence[jax.Device]) -> Program:
    """The experiment's program on devices that may be absent. Raises UserError for what doesn't fit their number."""
    check_complete(experiment)
    mesh = make_mesh(experiment.layout, experiment.mesh, devices)
    return Program(experiment.model.resolved(), experiment.optimizer, MeshPlacement(experiment.layout, mesh), experiment.train.ema_decay)


def compile_program(program: Program, experiment: Experiment) -> gpu_compile.CompiledStep:
    """The train step of the experiment's program, compiled for its devices, which may be absent."""
    step = jit_step(program, make_objective(experiment.objective), experiment)
    return gpu_compile.compile_for(program.place.mesh, step, (program.abstract_state(), abstract_batch(experiment, program.place)))


def compile_absent(experiment: Experiment, hardware: str, devices: int) -> gpu_compile.CompiledStep:
    """The experiment's train step, compiled for GPUs that are not here; raises UserError also where XLA's GPU compiler is not installed."""
    check_complete(experiment)
    return compile_program(absent_program(experiment, gpu_compile.topology_devices(hardware, devices)), experiment)
