"""Analyses a compiled step: its kernels, collectives and FLOPs, and a predicted timeline."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import jax

from llm_jax.layout.gpu_compile import CompiledStep
from llm_jax.layout.hardware import Hardware
from llm_jax.plan.collectives import Collective
from llm_jax.plan.cost import BACKWARD, FORWARD, KernelCost, fused_parts
from llm_jax.plan.efficiency import EXPECTED, SETS
from llm_jax.plan.timeline import CostedModule, Timeline, simulate

_SCORES = re.compile(r"->\w*TS\)?/dot_general")
"""Matches the einsum of attention scores, whose result ends in queries and keys (TS). Its products in the
backward pass have that name too."""


@dataclass(frozen=True)
class KernelRow:
    """Kernels of one kind from one place in the model."""

    kind: str
    source: str
    """Place in the model that the kernels come from (`Instruction.op_name`)."""
    count: int
    """Runs in a step; like all numbers below, with loop trips multiplied in."""
    flops: float
    bytes: float
    """Bytes read and written in all."""
    seconds: float
    """Expected duration in all."""


@dataclass(frozen=True)
class CollectiveRow:
    """Collectives of one kind over one set of mesh axes."""

    kind: str
    axis: str
    """Mesh axes, joined by "+"."""
    crosses_nodes: bool
    count: int
    """Runs in a step; like all numbers below, with loop trips multiplied in."""
    bytes: float
    """Bytes that one device sends (counted as in `collectives.py`)."""
    seconds: float
    """Expected time on the links."""
    hidden_seconds: float
    """The part of `seconds` during which kernels run."""


@dataclass(frozen=True)
class Analysis:
    """What one device does in a compiled step. Seconds are predictions."""

    kernels: tuple[KernelRow, ...]
    """Rows, those with the most seconds first."""
    collectives: tuple[CollectiveRow, ...]
    """Rows, those with the most seconds first."""
    hardware_flops: float
    """FLOPs of one device in a step: matrix products, convolutions and attention, recomputation included."""
    attention_kernels: dict[str, int]
    """Attention kernels in the program, and how often each runs: "cudnn forward", "cudnn backward", "xla:
    scores of shape ...". Empty if no known attention is found."""
    step_seconds: dict[str, float]
    """"best", "expected" and "worst" (`efficiency.py`)."""
    timeline: Timeline
    """The timeline with expected rates, with its events."""
    notes: tuple[str, ...]
    """Assumptions of the prediction, as sentences."""


def analyse(step: CompiledStep, mesh: jax.sharding.Mesh, hardware: Hardware) -> Analysis:
    """Predicts a step compiled for the devices of `mesh`, which count as `hardware` (simulated CPU devices
    too)."""
    program = CostedModule(step.module, mesh, hardware.devices_per_node)
    walks = {
        efficiency.name: simulate(program, hardware, efficiency, record_events=efficiency is EXPECTED)
        for efficiency in SETS
    }
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
    """The kernels that ran, and how often."""
    costs = ((program.costs[instruction], n) for instruction, n in timeline.counts.items())
    return [(cost, n) for cost, n in costs if isinstance(cost, KernelCost)]


def kernel_rows(program: CostedModule, timeline: Timeline, hardware: Hardware) -> tuple[KernelRow, ...]:
    """Kernels grouped by kind and place in the model, the most seconds first."""
    rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for kernel, n in kernels(program, timeline):
        row = rows[kernel.kind, kernel.source]
        for i, value in enumerate(
            (1, kernel.flops, kernel.bytes, kernel.seconds(hardware, timeline.efficiency))
        ):
            row[i] += n * value
    return tuple(
        sorted(
            (KernelRow(*key, int(row[0]), *row[1:]) for key, row in rows.items()),
            key=lambda row: -row.seconds,
        )
    )


def collective_rows(
    program: CostedModule, timeline: Timeline, hardware: Hardware
) -> tuple[CollectiveRow, ...]:
    """Collectives grouped by kind, axes and whether they cross nodes, the most seconds first."""
    rows: dict[tuple[str, str, bool], list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for instruction, n in timeline.counts.items():
        collective = program.costs[instruction]
        if isinstance(collective, Collective):
            row = rows[collective.kind, collective.axis, collective.crosses_nodes]
            seconds = n * collective.seconds(hardware, timeline.efficiency)
            for i, value in enumerate(
                (n, n * collective.bytes, seconds, max(0.0, seconds - timeline.exposed.get(instruction, 0.0)))
            ):
                row[i] += value
    return tuple(
        sorted(
            (CollectiveRow(*key, int(row[0]), *row[1:]) for key, row in rows.items()),
            key=lambda row: -row.seconds,
        )
    )


def attention_kernels(program: CostedModule, timeline: Timeline) -> dict[str, int]:
    """Attention kernels that ran, and how often (`Analysis.attention_kernels`)."""
    found: Counter[str] = Counter()
    for instruction, n in timeline.counts.items():
        cost = program.costs[instruction]
        if isinstance(cost, KernelCost) and cost.kind in (FORWARD, BACKWARD):
            found["cudnn forward" if cost.kind == FORWARD else "cudnn backward"] += n
        elif isinstance(cost, KernelCost) and cost.kind == "matmul":
            for _, part in fused_parts(program.module, program.computation_of[instruction], instruction):
                again = "transpose(" not in part.op_name or "rematted" in part.op_name
                if part.opcode == "dot" and again and _SCORES.search(part.op_name):
                    found[f"xla: scores of shape {part.shape}"] += n
    return dict(found)
