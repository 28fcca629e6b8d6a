"""Walks a compiled step in the order in which it runs and says when what happens.

Kernels run one after the other. An asynchronous collective starts where its start stands, runs on a stream of its own
beside the kernels that follow, after collectives that started before it, and is waited for at its done. A kernel beside
a collective is slower (`Efficiency.slowdown`). Synchronous collectives, and those that XLA marked so, hold the kernels up.
Copies to the host and back are on a third stream. Of a conditional the branch that takes longest counts.

A loop is walked trip by trip until one is like the one before; the rest are counted like it, and are one block in the
trace. With double buffering (two iterations in a body, peeled ones before and after) or pipelined collectives the program
is walked as it is.
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
from llm_jax.plan.cost import FREE, KernelCost, read_kernel
from llm_jax.plan.efficiency import HOST_SYNC, Efficiency

COMPUTE, NODE, NETWORK, TRANSFER = "compute", "communication within a node", "communication across nodes", "host transfers"
ROWS = (COMPUTE, NODE, NETWORK, TRANSFER)

_SAID_TRIPS = re.compile(r"\btrips=(\d+)")
"""What a model says of loops whose trips its data decides, by `jax.named_scope("trips=4")` around them: how many are expected."""

Work = KernelCost | Collective


@dataclass(frozen=True)
class TimelineEvent:
    """Something that runs, or a block of loop trips that are not shown one by one."""

    name: str
    row: str
    """One of ROWS."""
    start: float
    """Seconds from the start of the step."""
    seconds: float
    details: dict[str, Any]


@dataclass(frozen=True)
class Timeline:
    """One walk through the step."""

    efficiency: Efficiency
    """The rates it is predicted with."""
    seconds: float
    """Of the step."""
    counts: dict[Instruction, int]
    """How often each kernel and collective ran."""
    waited: dict[Instruction, float]
    """Seconds that kernels waited for each collective (or host transfer): what nothing hides."""
    events: tuple[TimelineEvent, ...]
    """In the order of their starts, loops shortened."""
    notes: tuple[str, ...]
    """What the walk could not know."""

    def chrome_trace(self) -> dict[str, Any]:
        """The events as JSON that Perfetto and chrome://tracing open; times in microseconds."""
        named: list[dict[str, Any]] = [{"name": "process_name", "args": {"name": f"one device, predicted ({self.efficiency.name})"}}]
        for number, row in enumerate(ROWS):
            named.append({"name": "thread_name", "tid": number, "args": {"name": row}})
            named.append({"name": "thread_sort_index", "tid": number, "args": {"sort_index": number}})
        events = [
            {"name": e.name, "ph": "X", "pid": 0, "tid": ROWS.index(e.row), "ts": e.start * 1e6, "dur": e.seconds * 1e6, "args": e.details}
            for e in self.events
        ]
        return {"traceEvents": [{"ph": "M", "pid": 0, **name} for name in named] + events, "displayTimeUnit": "ms"}


class CostedModule:
    """A module with what its instructions cost, read once for all walks."""

    def __init__(self, module: Module, mesh: jax.sharding.Mesh, devices_per_node: int):
        self.module = module
        self._mesh, self._devices_per_node = mesh, devices_per_node
        self.works: dict[Instruction, Work | None] = {}
        """The kernel or collective of each instruction that was asked for; None where nothing runs."""
        self.home: dict[Instruction, Computation] = {}
        """The computation that each of them is in."""

    def work(self, computation: Computation, instruction: Instruction) -> Work | None:
        """The kernel or collective of an instruction; None where nothing runs."""
        if instruction not in self.works:
            self.works[instruction], self.home[instruction] = self._read(computation, instruction), computation
        return self.works[instruction]

    def _read(self, computation: Computation, instruction: Instruction) -> Work | None:
        if instruction.opcode in FREE or instruction.target == "AllocateBuffer":
            return None
        found = collective_of(self.module, computation, instruction)
        if found:
            collective = read_collective(found, self.module, self._mesh, self._devices_per_node)
            return collective if collective.axis else None
        return read_kernel(self.module, computation, instruction, widened=self._mesh.devices.flat[0].platform == "cpu")


@dataclass
class _Flight:
    """A collective or transfer under way."""

    instruction: Instruction
    stream: str
    start: float
    end: float


@dataclass
class _Walk:
    """Where a walk is."""

    program: CostedModule
    hardware: Hardware
    efficiency: Efficiency
    record: bool
    now: float = 0.0
    free: dict[str, float] = field(default_factory=lambda: {"collectives": 0.0, TRANSFER: 0.0})
    """When each stream beside the kernels' has done what it was given."""
    flights: list[_Flight] = field(default_factory=list)
    counts: dict[Instruction, int] = field(default_factory=lambda: defaultdict(int))
    waited: dict[Instruction, float] = field(default_factory=lambda: defaultdict(float))
    events: list[TimelineEvent] = field(default_factory=list)
    noted: dict[str, set[Instruction]] = field(default_factory=lambda: defaultdict(set))
    """What the walk could not know, of which instructions."""

    def run(self, computation: Computation) -> None:
        """All of a computation."""
        for instruction in computation:
            self.step(computation, instruction)

    def step(self, computation: Computation, instruction: Instruction) -> None:
        """One instruction."""
        opcode = instruction.opcode
        if opcode == "while":
            self.loop(instruction)
        elif opcode == "conditional":
            self.branch(instruction)
        elif opcode == "call":
            self.run(self.program.module.computations[instruction.called[0]])
        elif opcode.endswith("-done"):
            self.wait(_started(computation, instruction))
        elif not opcode.endswith("-update") and (work := self.program.work(computation, instruction)):
            self.counts[instruction] += 1
            if isinstance(work, Collective):
                self.communicate(instruction, work)
            elif opcode.endswith("-start") and work.kind == "host copy":
                self.fly(instruction, TRANSFER, TRANSFER, work)
            else:
                self.compute(instruction, work)

    def compute(self, instruction: Instruction, kernel: KernelCost) -> None:
        """A kernel: slower for as long as a collective runs beside it."""
        seconds, start = kernel.seconds(self.hardware, self.efficiency), self.now
        beside = max(0.0, self.free["collectives"] - self.now)
        slower = 1 + self.efficiency.slowdown
        self.now += seconds * slower if seconds * slower <= beside else seconds + beside * (1 - 1 / slower)
        self.show(instruction.name, COMPUTE, start, self.now - start, kernel)

    def communicate(self, instruction: Instruction, collective: Collective) -> None:
        """A collective, beside the kernels or in their way."""
        self.fly(instruction, "collectives", NETWORK if collective.crosses_nodes else NODE, collective)
        config = instruction.backend_config.get("collective_backend_config", {})
        if not instruction.opcode.endswith("-start") or config.get("is_sync"):
            self.wait(instruction)

    def fly(self, instruction: Instruction, stream: str, row: str, work: Work) -> None:
        """Puts something on a stream, behind what is there."""
        start = max(self.now, self.free[stream])
        end = self.free[stream] = start + work.seconds(self.hardware, self.efficiency)
        self.flights.append(_Flight(instruction, stream, start, end))
        self.show(instruction.name, row, start, end - start, work)

    def wait(self, instruction: Instruction) -> None:
        """Until that has arrived. Who was on its stream meanwhile is who was waited for."""
        flight = next((f for f in reversed(self.flights) if f.instruction is instruction), None)
        if flight is None or flight.end <= self.now:
            return
        for other in self.flights:
            if other.stream == flight.stream:
                self.waited[other.instruction] += max(0.0, min(other.end, flight.end) - max(other.start, self.now))
        self.now = flight.end
        self.flights = [f for f in self.flights if f.end > self.now]

    def loop(self, instruction: Instruction) -> None:
        """All trips of a loop."""
        body = self.program.module.computations[(instruction.attribute("body") or "").lstrip("%")]
        trips, sync = instruction.trips, 0.0
        if trips is None:
            sync = HOST_SYNC  # the host reads whether to go on
            said = _SAID_TRIPS.findall(instruction.op_name)
            trips = int(said[-1]) if said else 1
            self.noted["loops whose trips the data decides: counted " + ("as the model expects" if said else "once")].add(instruction)
        before = None
        for trip in range(trips):
            start, counts, waited = self.now, dict(self.counts), dict(self.waited)
            self.now += sync
            self.run(body)
            state = (self.now - start, *(max(0.0, free - self.now) for free in self.free.values()))
            if before and all(abs(a - b) <= 1e-9 + 1e-6 * b for a, b in zip(state, before, strict=True)):
                self.repeat(instruction, trips - trip - 1, self.now - start, counts, waited)
                break
            before = state

    def repeat(self, loop: Instruction, trips: int, seconds: float, counts: dict[Instruction, int], waited: dict[Instruction, float]) -> None:
        """So many trips more like the last, before which the totals were `counts` and `waited`."""
        if not trips:
            return
        self.show(f"{trips} more trips of {loop.name}", COMPUTE, self.now, trips * seconds, None)
        for key in self.counts:
            self.counts[key] += trips * (self.counts[key] - counts.get(key, 0))
        for key in self.waited:
            self.waited[key] += trips * (self.waited[key] - waited.get(key, 0.0))
        shift = trips * seconds
        self.now += shift
        self.free = {stream: free + shift for stream, free in self.free.items()}
        for flight in self.flights:
            flight.start, flight.end = flight.start + shift, flight.end + shift

    def branch(self, instruction: Instruction) -> None:
        """The branch that takes longest."""
        self.noted["conditionals: counted as the branch that takes longest"].add(instruction)

        def alone(name: str) -> float:
            walk = _Walk(self.program, self.hardware, self.efficiency, record=False)
            walk.run(self.program.module.computations[name])
            return walk.now

        self.run(self.program.module.computations[max(instruction.called, key=alone)])

    def show(self, name: str, row: str, start: float, seconds: float, work: Work | None) -> None:
        """Keeps an event for the trace."""
        if not self.record or seconds <= 0:
            return
        details: dict[str, Any] = {}
        if isinstance(work, KernelCost):
            name, details = f"{work.kind}: {name}", {"source": work.source, "flops": work.flops, "bytes": work.bytes}
        elif isinstance(work, Collective):
            name, details = f"{work.kind} over {work.axis}", {"instruction": name, "bytes": work.bytes, "devices": work.devices, "nodes": work.nodes}
        self.events.append(TimelineEvent(name, row, start, seconds, details))


def _started(computation: Computation, done: Instruction) -> Instruction:
    """What a done waits for."""
    while not done.opcode.endswith("-start"):
        done = computation.operands_of(done)[0]
    return done


def walk(program: CostedModule, hardware: Hardware, efficiency: Efficiency, record: bool = False) -> Timeline:
    """Predicts one step; `record` keeps the events. Raises ValueError for a program without a schedule."""
    if not program.module.scheduled:
        raise ValueError("the program is not scheduled: the order of its instructions is not the order in which they run")
    state = _Walk(program, hardware, efficiency, record)
    state.run(program.module.entry)
    seconds = max(state.now, *state.free.values())
    events = tuple(sorted(state.events, key=lambda event: (event.start, event.row)))
    notes = tuple(f"{len(where)} {what}" for what, where in state.noted.items())
    return Timeline(efficiency, seconds, dict(state.counts), dict(state.waited), events, notes)
