"""From a compiled step to what it costs: kernels, collectives, FLOPs and a predicted timeline."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import jax

from llm_jax.layout.gpu_compile import CompiledStep
from llm_jax.layout.hardware import Hardware
from llm_jax.plan.collectives import Collective
from llm_jax.plan.cost import BACKWARD, FORWARD, KernelCost, parts
from llm_jax.plan.efficiency import EXPECTED, SETS
from llm_jax.plan.timeline import CostedModule, Timeline, walk

_SCORES = re.compile(r"->\w*TS\)?/dot_general")
"""Attention scores by their einsum, whose result ends in queries and keys; products of the backward pass keep its name."""


@dataclass(frozen=True)
class KernelRow:
    """Kernels of one kind from one place of the model."""

    kind: str
    source: str
    """Where it comes from in the model."""
    count: int
    """Loop trips included, as in all that follows."""
    flops: float
    bytes: float
    """To and from memory."""
    seconds: float
    """Expected."""


@dataclass(frozen=True)
class CollectiveRow:
    """Collectives of one kind over the same axes."""

    kind: str
    axis: str
    """Mesh axes, joined by "+"."""
    crosses_nodes: bool
    count: int
    """Loop trips included, as in all that follows."""
    bytes: float
    """That one device sends (`collectives.py` has the convention)."""
    seconds: float
    """On the links, expected."""
    hidden_seconds: float
    """Of these, while kernels run."""


@dataclass(frozen=True)
class Analysis:
    """What a compiled step does on one device. Seconds are predictions."""

    kernels: tuple[KernelRow, ...]
    """The most seconds first."""
    collectives: tuple[CollectiveRow, ...]
    """The most seconds first."""
    hardware_flops: float
    """Of one device and step: matrix products, convolutions and attention, recomputation included."""
    attention_kernels: dict[str, int]
    """Which attention is really there, and how often it runs: "cudnn forward", "cudnn backward", "xla: scores of shape ...";
    empty where there is none that is known."""
    step_seconds: dict[str, float]
    """"best", "expected" and "worst" (`efficiency.py`)."""
    timeline: Timeline
    """The expected one, with its events."""
    notes: tuple[str, ...]
    """What was assumed or is not known."""


def analyse(step: CompiledStep, mesh: jax.sharding.Mesh, hardware: Hardware) -> Analysis:
    """Predicts a step that was compiled for the devices of `mesh`, on `hardware` (of simulated CPU devices: as if they were that)."""
    program = CostedModule(step.module, mesh, hardware.devices_per_node)
    walks = {efficiency.name: walk(program, hardware, efficiency, record=efficiency is EXPECTED) for efficiency in SETS}
    expected = walks[EXPECTED.name]
    return Analysis(
        kernels=kernel_rows(program, expected, hardware),
        collectives=collective_rows(program, expected, hardware),
        hardware_flops=sum(n * kernel.flops for kernel, n in kernels(program, expected)),
        attention_kernels=attention_kernels(program, expected),
        step_seconds={name: timeline.seconds for name, timeline in walks.items()},
        timeline=expected,
        notes=expected.notes,
    )


def kernels(program: CostedModule, timeline: Timeline) -> list[tuple[KernelCost, int]]:
    """How often each kernel runs."""
    works = ((program.works[instruction], n) for instruction, n in timeline.counts.items())
    return [(work, n) for work, n in works if isinstance(work, KernelCost)]


def kernel_rows(program: CostedModule, timeline: Timeline, hardware: Hardware) -> tuple[KernelRow, ...]:
    """Kernels grouped by kind and place in the model."""
    rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for kernel, n in kernels(program, timeline):
        row = rows[kernel.kind, kernel.source]
        for i, value in enumerate((1, kernel.flops, kernel.bytes, kernel.seconds(hardware, timeline.efficiency))):
            row[i] += n * value
    return tuple(sorted((KernelRow(*key, int(row[0]), *row[1:]) for key, row in rows.items()), key=lambda row: -row.seconds))


def collective_rows(program: CostedModule, timeline: Timeline, hardware: Hardware) -> tuple[CollectiveRow, ...]:
    """Collectives grouped by kind, axes and whether they cross nodes."""
    rows: dict[tuple[str, str, bool], list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for instruction, n in timeline.counts.items():
        collective = program.works[instruction]
        if isinstance(collective, Collective):
            row = rows[collective.kind, collective.axis, collective.crosses_nodes]
            seconds = n * collective.seconds(hardware, timeline.efficiency)
            for i, value in enumerate((n, n * collective.bytes, seconds, max(0.0, seconds - timeline.waited.get(instruction, 0.0)))):
                row[i] += value
    return tuple(sorted((CollectiveRow(*key, int(row[0]), *row[1:]) for key, row in rows.items()), key=lambda row: -row.seconds))


def attention_kernels(program: CostedModule, timeline: Timeline) -> dict[str, int]:
    """Which attention runs, and how often."""
    found: Counter[str] = Counter()
    for instruction, n in timeline.counts.items():
        work = program.works[instruction]
        if isinstance(work, KernelCost) and work.kind in (FORWARD, BACKWARD):
            found["cudnn forward" if work.kind == FORWARD else "cudnn backward"] += n
        elif isinstance(work, KernelCost) and work.kind == "matmul":
            for _, part in parts(program.module, program.home[instruction], instruction):
                again = "transpose(" not in part.op_name or "rematted" in part.op_name
                if part.opcode == "dot" and again and _SCORES.search(part.op_name):
                    found[f"xla: scores of shape {part.shape}"] += n
    return dict(found)
