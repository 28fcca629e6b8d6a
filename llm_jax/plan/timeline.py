"""Simulates a compiled step in the order of its schedule and predicts when each kernel and collective runs.

Kernels run one after the other. An asynchronous collective starts at its start instruction, runs on its own
stream beside the kernels that follow, after collectives that started before it, and must be finished at its
done instruction. A kernel beside a collective is slower (`Efficiency.slowdown`). Synchronous collectives, and
those that XLA marked as such, block the kernels. Copies to and from the host are on a third stream. A
conditional counts as its slowest branch.

A loop is simulated trip by trip until one takes as long as the one before; the rest are counted like it, and
are one block in the trace. Double buffering (two iterations in a body, peeled ones before and after) and
pipelined collectives need nothing special: the program is simulated as it is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import jax

from llm_jax.layout.hardware import Hardware
from llm_jax.layout.hlo import Computation, Instruction, Module
from llm_jax.plan.collectives import Collective, collective_of, read_collective
from llm_jax.plan.cost import NO_KERNEL, KernelCost, read_kernel
from llm_jax.plan.efficiency import HOST_SYNC, Efficiency

COMPUTE, NODE, NETWORK, TRANSFER = (
    "compute",
    "communication within a node",
    "communication across nodes",
    "host transfers",
)
ROWS = (COMPUTE, NODE, NETWORK, TRANSFER)

_EXPECTED_TRIPS = re.compile(r"\btrips=(\d+)")
"""Expected trips of a loop whose trips the data decides, which a model gives by `jax.named_scope("trips=4")`
around it."""

Cost = KernelCost | Collective


@dataclass(frozen=True)
class TimelineEvent:
    """A kernel, collective or transfer that ran, or a block of loop trips that are not shown one by one."""

    name: str
    row: str
    """One of ROWS."""
    start: float
    """Seconds from the start of the step."""
    seconds: float
    details: dict[str, Any]
    """Arguments that the trace viewer shows."""


@dataclass(frozen=True)
class Timeline:
    """The result of one simulation of the step."""

    efficiency: Efficiency
    """The rates that it is predicted with."""
    seconds: float
    """Predicted duration of the step."""
    counts: dict[Instruction, int]
    """Number of runs of each kernel and collective."""
    exposed: dict[Instruction, float]
    """Seconds that kernels waited for each collective or host transfer: time that no kernel hides."""
    events: tuple[TimelineEvent, ...]
    """Events by start time, with loops shortened; empty unless recorded."""
    notes: tuple[str, ...]
    """Assumptions that the simulation made, as sentences."""

    def chrome_trace(self) -> dict[str, Any]:
        """The events as JSON that Perfetto and chrome://tracing open; times in microseconds."""
        named: list[dict[str, Any]] = [
            {"name": "process_name", "args": {"name": f"one device, predicted ({self.efficiency.name})"}}
        ]
        for number, row in enumerate(ROWS):
            named.append({"name": "thread_name", "tid": number, "args": {"name": row}})
            named.append({"name": "thread_sort_index", "tid": number, "args": {"sort_index": number}})
        events = [
            {
                "name": e.name,
                "ph": "X",
                "pid": 0,
                "tid": ROWS.index(e.row),
                "ts": e.start * 1e6,
                "dur": e.seconds * 1e6,
                "args": e.details,
            }
            for e in self.events
        ]
        return {
            "traceEvents": [{"ph": "M", "pid": 0, **name} for name in named] + events,
            "displayTimeUnit": "ms",
        }


class CostedModule:
    """A module and the cost of its instructions, read once for all simulations."""

    def __init__(self, module: Module, mesh: jax.sharding.Mesh, devices_per_node: int):
        self.module = module
        self._mesh, self._devices_per_node = mesh, devices_per_node
        self.costs: dict[Instruction, Cost | None] = {}
        """The cost of each instruction that was simulated; None where nothing runs."""
        self.computation_of: dict[Instruction, Computation] = {}
        """The computation that contains each of these instructions."""

    def cost_of(self, computation: Computation, instruction: Instruction) -> Cost | None:
        """The cost of an instruction, a kernel or a collective; None where nothing runs."""
        if instruction not in self.costs:
            self.costs[instruction], self.computation_of[instruction] = (
                self._read(computation, instruction),
                computation,
            )
        return self.costs[instruction]

    def _read(self, computation: Computation, instruction: Instruction) -> Cost | None:
        if instruction.opcode in NO_KERNEL or instruction.target == "AllocateBuffer":
            return None
        found = collective_of(self.module, computation, instruction)
        if found:
            collective = read_collective(found, self.module, self._mesh, self._devices_per_node)
            return collective if collective.axis else None
        return read_kernel(
            self.module, computation, instruction, widened=self._mesh.devices.flat[0].platform == "cpu"
        )


@dataclass
class _AsyncOperation:
    """A collective or transfer that has started and not finished."""

    instruction: Instruction
    stream: str
    start: float
    end: float


@dataclass
class _Simulation:
    """The state of a simulation."""

    program: CostedModule
    hardware: Hardware
    efficiency: Efficiency
    record_events: bool
    now: float = 0.0
    busy_until: dict[str, float] = field(default_factory=lambda: {"collectives": 0.0, TRANSFER: 0.0})
    """When each stream beside the kernels' becomes idle."""
    in_flight: list[_AsyncOperation] = field(default_factory=list)
    counts: dict[Instruction, int] = field(default_factory=lambda: defaultdict(int))
    exposed: dict[Instruction, float] = field(default_factory=lambda: defaultdict(float))
    events: list[TimelineEvent] = field(default_factory=list)
    unknowns: dict[str, set[Instruction]] = field(default_factory=lambda: defaultdict(set))
    """Texts of `Timeline.notes`, and the instructions that each applies to."""

    def run(self, computation: Computation) -> None:
        """Simulates all instructions of a computation, in order."""
        for instruction in computation:
            self.step(computation, instruction)

    def step(self, computation: Computation, instruction: Instruction) -> None:
        """Simulates one instruction."""
        opcode = instruction.opcode
        if opcode == "while":
            self.loop(instruction)
        elif opcode == "conditional":
            self.conditional(instruction)
        elif opcode == "call":
            self.run(self.program.module.computations[instruction.called[0]])
        elif opcode.endswith("-done"):
            self.wait(_start_of(computation, instruction))
        elif not opcode.endswith("-update") and (cost := self.program.cost_of(computation, instruction)):
            self.counts[instruction] += 1
            if isinstance(cost, Collective):
                self.communicate(instruction, cost)
            elif opcode.endswith("-start") and cost.kind == "host copy":
                self.start_async(instruction, TRANSFER, TRANSFER, cost)
            else:
                self.compute(instruction, cost)

    def compute(self, instruction: Instruction, kernel: KernelCost) -> None:
        """Runs a kernel, slower for as long as a collective runs beside it."""
        seconds, start = kernel.seconds(self.hardware, self.efficiency), self.now
        beside = max(0.0, self.busy_until["collectives"] - self.now)
        slower = 1 + self.efficiency.slowdown
        self.now += seconds * slower if seconds * slower <= beside else seconds + beside * (1 - 1 / slower)
        self.record_event(instruction.name, COMPUTE, start, self.now - start, kernel)

    def communicate(self, instruction: Instruction, collective: Collective) -> None:
        """Starts a collective; waits for it if it is synchronous."""
        self.start_async(
            instruction, "collectives", NETWORK if collective.crosses_nodes else NODE, collective
        )
        config = instruction.backend_config.get("collective_backend_config", {})
        if not instruction.opcode.endswith("-start") or config.get("is_sync"):
            self.wait(instruction)

    def start_async(self, instruction: Instruction, stream: str, row: str, cost: Cost) -> None:
        """Queues a collective or transfer on a stream."""
        start = max(self.now, self.busy_until[stream])
        end = self.busy_until[stream] = start + cost.seconds(self.hardware, self.efficiency)
        self.in_flight.append(_AsyncOperation(instruction, stream, start, end))
        self.record_event(instruction.name, row, start, end - start, cost)

    def wait(self, instruction: Instruction) -> None:
        """Waits until an asynchronous instruction has finished. The waiting time is charged to the operations
        that are on its stream in that time."""
        operation = next((f for f in reversed(self.in_flight) if f.instruction is instruction), None)
        if operation is None or operation.end <= self.now:
            return
        for other in self.in_flight:
            if other.stream == operation.stream:
                self.exposed[other.instruction] += max(
                    0.0, min(other.end, operation.end) - max(other.start, self.now)
                )
        self.now = operation.end
        self.in_flight = [f for f in self.in_flight if f.end > self.now]

    def loop(self, instruction: Instruction) -> None:
        """Runs all trips of a loop."""
        body = self.program.module.computations[(instruction.attribute("body") or "").lstrip("%")]
        trips, sync = instruction.trips, 0.0
        if trips is None:
            sync = HOST_SYNC  # the host reads the loop condition from the device
            expected_trips = _EXPECTED_TRIPS.findall(instruction.op_name)
            trips = int(expected_trips[-1]) if expected_trips else 1
            self.unknowns[
                "loops whose trips the data decides: counted "
                + ("as the model expects" if expected_trips else "once")
            ].add(instruction)
        before = None
        for trip in range(trips):
            start, counts, exposed = self.now, dict(self.counts), dict(self.exposed)
            self.now += sync
            self.run(body)
            state = (
                self.now - start,
                *(max(0.0, busy_until - self.now) for busy_until in self.busy_until.values()),
            )
            if before and all(abs(a - b) <= 1e-9 + 1e-6 * b for a, b in zip(state, before, strict=True)):
                self.repeat(instruction, trips - trip - 1, self.now - start, counts, exposed)
                break
            before = state

    def repeat(
        self,
        loop: Instruction,
        trips: int,
        seconds: float,
        counts: dict[Instruction, int],
        exposed: dict[Instruction, float],
    ) -> None:
        """Adds `trips` more trips like the last one, before which the totals were `counts` and `exposed`."""
        if not trips:
            return
        self.record_event(f"{trips} more trips of {loop.name}", COMPUTE, self.now, trips * seconds, None)
        for key in self.counts:
            self.counts[key] += trips * (self.counts[key] - counts.get(key, 0))
        for key in self.exposed:
            self.exposed[key] += trips * (self.exposed[key] - exposed.get(key, 0.0))
        shift = trips * seconds
        self.now += shift
        self.busy_until = {stream: busy_until + shift for stream, busy_until in self.busy_until.items()}
        for operation in self.in_flight:
            operation.start, operation.end = operation.start + shift, operation.end + shift

    def conditional(self, instruction: Instruction) -> None:
        """Runs the slowest branch of a conditional."""
        self.unknowns["conditionals: counted as the branch that takes longest"].add(instruction)

        def seconds_alone(name: str) -> float:
            simulation = _Simulation(self.program, self.hardware, self.efficiency, record_events=False)
            simulation.run(self.program.module.computations[name])
            return simulation.now

        self.run(self.program.module.computations[max(instruction.called, key=seconds_alone)])

    def record_event(self, name: str, row: str, start: float, seconds: float, cost: Cost | None) -> None:
        """Records an event for the trace, if events are recorded and it takes time."""
        if not self.record_events or seconds <= 0:
            return
        details: dict[str, Any] = {}
        if isinstance(cost, KernelCost):
            name, details = (
                f"{cost.kind}: {name}",
                {"source": cost.source, "flops": cost.flops, "bytes": cost.bytes},
            )
        elif isinstance(cost, Collective):
            name, details = (
                f"{cost.kind} over {cost.axis}",
                {"instruction": name, "bytes": cost.bytes, "devices": cost.devices, "nodes": cost.nodes},
            )
        self.events.append(TimelineEvent(name, row, start, seconds, details))


def _start_of(computation: Computation, done: Instruction) -> Instruction:
    """The start instruction of a done instruction."""
    while not done.opcode.endswith("-start"):
        done = computation.operands_of(done)[0]
    return done


def simulate(
    program: CostedModule, hardware: Hardware, efficiency: Efficiency, record_events: bool = False
) -> Timeline:
    """Predicts one step. record_events: keeps `Timeline.events`. Raises ValueError for a program without a
    schedule."""
    if not program.module.scheduled:
        raise ValueError(
            "the program is not scheduled: the order of its instructions is not the order in which they run"
        )
    state = _Simulation(program, hardware, efficiency, record_events)
    state.run(program.module.entry)
    seconds = max(state.now, *state.busy_until.values())
    events = tuple(sorted(state.events, key=lambda event: (event.start, event.row)))
    notes = tuple(f"{len(where)} {what}" for what, where in state.unknowns.items())
    return Timeline(efficiency, seconds, dict(state.counts), dict(state.exposed), events, notes)
