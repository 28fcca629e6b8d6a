"""A plan: the memory, collectives and predicted time of an experiment's train step on devices that are not
here."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, Literal

import jax

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment
from llm_jax.layout import gpu_compile
from llm_jax.layout.hardware import USABLE_MEMORY, Hardware
from llm_jax.model import transformer
from llm_jax.model.config import ModelConfig
from llm_jax.plan.analysis import Analysis, analyse
from llm_jax.plan.memory import memory_by_kind
from llm_jax.run.compile import absent_model, check_complete, compile_step
from llm_jax.run.frozen import frozen_models
from llm_jax.run.prepare import check_layout
from llm_jax.train.flops import flops_per_token
from llm_jax.train.state import TrainModel

Compiler = Literal["gpu", "cpu"]
"""gpu: XLA's GPU compiler, for the devices themselves. cpu: XLA's CPU compiler, for as many simulated
devices."""
TOKENS_PER_DOCUMENT = 1024
"""Assumed length of documents if an experiment leaves `model.max_segments` to its corpus."""
TOKENS_PER_EXAMPLE = 128
"""That of examples which aren't cut, such as conversations."""


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a planned step. Bytes and seconds are those of one device; FLOPs those of
    all devices together."""

    experiment: Experiment
    mesh: dict[str, int]
    """Sizes of the mesh axes, slowest network first."""
    hardware: Hardware
    devices: int
    compiler: Compiler
    parameters: int
    trained: int
    """The parameters that are trained; the others have no gradients and no moments."""
    frozen: dict[str, ModelConfig]
    """The objective's frozen models, by role."""
    flops_per_token: float
    memory: dict[str, int]
    """Bytes by kind (`memory.memory_by_kind`) and their total."""
    analysis: Analysis
    """Kernels, collectives and the timeline."""
    largest: list[tuple[int, int, str, tuple[int, ...]]]
    """The largest arrays that a loop carries: (bytes in all, how many, dtype, shape)."""
    assumptions: list[str]
    seconds_to_plan: float
    """Duration of the planning itself."""

    @property
    def usable_bytes(self) -> int:
        """Bytes of a device's memory that a program can use."""
        return int(USABLE_MEMORY * self.hardware.memory_bytes)

    @property
    def fits(self) -> bool:
        """True if the step fits into one device's memory."""
        return self.memory["total"] <= self.usable_bytes

    @property
    def tokens(self) -> int:
        """Tokens of a step, on all devices together."""
        train = self.experiment.train
        return self.experiment.objective.tokens_per_step(train.batch_size, train.sequence_length)

    @property
    def model_flops(self) -> float:
        """FLOPs that the model and the objective's frozen models need for a step (`train.flops`)."""
        return self.tokens * self.flops_per_token

    @property
    def hardware_flops(self) -> float:
        """FLOPs that the devices execute for a step, including recomputation and work that a layout
        duplicates."""
        return self.devices * self.analysis.hardware_flops

    @property
    def tokens_per_second_per_device(self) -> float:
        """Predicted tokens/s of each device, with expected rates."""
        return self.tokens / self.analysis.step_seconds["expected"] / self.devices

    @property
    def mfu(self) -> float:
        """Predicted model FLOPs utilisation: share of the datasheet's peak FLOP/s in the compute dtype."""
        peak = self.hardware.peak_flops[self.experiment.model.compute_dtype]
        return self.model_flops / (self.devices * peak * self.analysis.step_seconds["expected"])

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data. Its keys are stable, for programs that read them."""
        layout = self.experiment.layout
        return {
            "experiment": self.experiment.name,
            "layout": layout.name,
            "tables": dict(layout.tables()),
            "mesh": self.mesh,
            "devices": self.devices,
            "hardware": self.hardware.name,
            "compiler": self.compiler,
            "parameters": self.parameters,
            "parameters_trained": self.trained,
            "tokens": self.tokens,
            "memory_bytes": self.memory,
            "memory_usable_bytes": self.usable_bytes,
            "fits": self.fits,
            "largest_arrays": [
                {"bytes": size, "count": n, "dtype": dtype, "shape": shape}
                for size, n, dtype, shape in self.largest
            ],
            "model_flops": self.model_flops,
            "hardware_flops": self.hardware_flops,
            "step_seconds": self.analysis.step_seconds,
            "tokens_per_second_per_device": self.tokens_per_second_per_device,
            "mfu": self.mfu,
            "attention_kernels": self.analysis.attention_kernels,
            "collectives": [dataclasses.asdict(row) for row in self.analysis.collectives],
            "kernels": [dataclasses.asdict(row) for row in self.analysis.kernels],
            "assumptions": self.assumptions,
            "seconds_to_plan": self.seconds_to_plan,
        }


def make_plan(
    experiment: Experiment, hardware: Hardware, devices: int, compiler: Compiler = "gpu"
) -> tuple[Plan, gpu_compile.CompiledStep]:
    """Compiles a resolved experiment's train step for absent devices and analyses it: (plan, compiled step).

    Raises UserError if the layout doesn't fit the model or the number of devices, or the compiler is missing.
    """
    started = time.perf_counter()
    experiment, assumptions = with_assumptions(experiment, compiler)
    program = plan_program(experiment, absent_devices(hardware, devices, compiler))
    models = frozen_models(experiment, program)
    try:
        step = compile_step(program, experiment, models)
    except jax.errors.JaxRuntimeError as error:
        if "Couldn't find output tile sizes" not in str(error):
            raise
        raise UserError(
            f"hardware={hardware.name}: XLA's compiler for it has no kernel for some product of this model. "
            "Choose sizes (model.head_dim, model.embed, ...) that are multiples of 8, or use compiler=cpu"
        ) from error
    analysis = analyse(step, program.place.mesh, hardware)
    frozen = {role: model.config for role, model in models.items()}
    flops = flops_per_token(experiment.objective, program, experiment.train.sequence_length, frozen)
    plan = Plan(
        experiment=experiment,
        mesh=dict(program.place.mesh.shape),
        hardware=hardware,
        devices=program.place.mesh.size,
        compiler=compiler,
        parameters=program.parameter_count(),
        trained=program.trained_count(),
        frozen=frozen,
        flops_per_token=flops,
        memory=memory_by_kind(step, program, models, experiment),
        analysis=analysis,
        largest=max(
            (loop.largest(9) for loop in step.loops()),
            key=lambda rows: sum(row[0] for row in rows),
            default=[],
        ),
        assumptions=[*assumptions, *analysis.notes],
        seconds_to_plan=time.perf_counter() - started,
    )
    return plan, step


def plan_program(experiment: Experiment, devices: list[Any]) -> TrainModel:
    """The train model on these devices. Raises UserError for a layout that doesn't divide, leaves devices
    idle, or needs another kernel."""
    program = absent_model(experiment, devices)
    if program.place.mesh.size != len(devices):
        used = ", ".join(f"mesh.{axis}={size}" for axis, size in program.place.mesh.shape.items())
        raise UserError(
            f"devices={len(devices)}: layout {experiment.layout.name} ({used}) uses "
            f"{program.place.mesh.size} of them. Change mesh sizes or devices"
        )
    check_layout(experiment, program.place)
    transformer.check(experiment.model, program.place, experiment.train.sequence_length)
    return program


def absent_devices(hardware: Hardware, devices: int, compiler: Compiler) -> list[Any]:
    """Devices to compile for, node by node: absent GPUs (gpu), or simulated devices of the CPU backend (cpu).
    Raises UserError."""
    if compiler == "gpu":
        try:
            gpu_compile.require_cuda()
        except UserError as error:
            raise UserError(f"{error}, or plan on simulated devices with compiler=cpu") from error
        return gpu_compile.topology_devices(hardware.name, devices)
    here = jax.devices("cpu")
    if len(here) < devices:
        raise UserError(
            f"devices={devices}: only {len(here)} are simulated here. Set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={devices}"
        )
    return here[:devices]


def with_assumptions(experiment: Experiment, compiler: Compiler) -> tuple[Experiment, list[str]]:
    """(the experiment with values assumed that only its corpus determines, the assumptions as sentences).
    Raises UserError."""
    model, assumptions = experiment.model, []
    if compiler == "cpu":
        assumptions.append(
            "compiler=cpu: memory, kernels and schedule are those of XLA's CPU compiler, which fuses "
            "less, widens bfloat16 to float32 and runs "
            "collectives one after the other: activations are too large, and nothing is hidden"
        )
        if model.attention == "cudnn":
            model = dataclasses.replace(model, attention="blocked")
            assumptions.append(
                "model.attention=blocked stands in for cudnn, which a CPU does not have: its scores are "
                "in memory a block at a time"
            )
        if model.offload:
            model = dataclasses.replace(model, offload="")
            assumptions.append(
                f"model.offload={experiment.model.offload}: left out, a CPU's devices have no other "
                "memory; these tensors are computed again"
            )
    if model.vocab is None:
        model = dataclasses.replace(model, vocab=experiment.tokenizer.vocab)
        assumptions.append(f"model.vocab={model.vocab}: the tokenizer's, which may turn out smaller")
    if model.attention == "cudnn" and model.max_segments is None:
        cut = experiment.objective.rows == "cut"
        each, what = (TOKENS_PER_DOCUMENT, "documents") if cut else (TOKENS_PER_EXAMPLE, "examples")
        most = max(1, experiment.train.sequence_length // each)
        model = dataclasses.replace(model, max_segments=most)
        assumptions.append(
            f"model.max_segments={most}: {what} of {each:,} tokens; it sizes cuDNN's "
            "workspace, a run counts its own"
        )
    if experiment.objective.rows != "cut":
        assumptions.append("rows are full: the padding behind whole examples counts as tokens")
    experiment = dataclasses.replace(experiment, model=model)
    check_complete(experiment)
    return experiment, assumptions
