"""`layout=all`: plans every preset on every mesh, ranks those that fit, and lists the others with the
reason."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment, first_line, import_file
from llm_jax.layout.hardware import USABLE_MEMORY, Hardware
from llm_jax.layout.layout import TABLES, Layout, split_axes
from llm_jax.layout.presets import PRESETS
from llm_jax.model.dims import DIMS, PipelineConfig
from llm_jax.objective.protocol import source_file
from llm_jax.plan.memory import lower_bound_bytes
from llm_jax.plan.plan import Compiler, absent_devices, make_plan, plan_program, with_assumptions
from llm_jax.run.frozen import frozen_models

Log = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A layout on a mesh whose axes all have more than one device."""

    layout: Layout
    mesh: dict[str, int]

    @property
    def name(self) -> str:
        """Layout and mesh as text: "fsdp_tensor (data 8 x tensor 8)"."""
        return f"{self.layout.name} ({' x '.join(f'{axis} {size}' for axis, size in self.mesh.items())})"


@dataclass(frozen=True)
class LeftOut:
    """A candidate that is not ranked, and why."""

    candidate: Candidate
    why: str


@dataclass(frozen=True)
class Ranking:
    """The result of a search over layouts and meshes."""

    plans: list[dict[str, Any]]
    """Plans (`Plan.to_json`), the most tokens/s per device first."""
    left_out: list[LeftOut]
    same: int
    """Number of meshes that were skipped because they equal another candidate but for axes of one device or
    names."""

    def to_json(self) -> dict[str, Any]:
        """The ranking as plain data."""
        left_out = [
            {"layout": out.candidate.layout.name, "mesh": out.candidate.mesh, "why": out.why}
            for out in self.left_out
        ]
        return {"plans": self.plans, "left_out": left_out, "same": self.same}


def search(
    experiment: Experiment,
    hardware: Hardware,
    devices: int,
    compiler: Compiler,
    log: Log,
    workers: int | None = None,
) -> Ranking:
    """Plans every preset, and the experiment's own layout, on every factorisation of the devices.

    Candidates that don't divide or can't fit (`memory.lower_bound_bytes`) are not compiled. log: called with
    a line for each candidate. workers: processes that compile; None: one per core; 1: this process.
    """
    all_candidates, same = candidates(experiment, devices)
    absent = absent_devices(hardware, devices, compiler)
    assumed, _ = with_assumptions(experiment, compiler)
    to_compile: list[Candidate] = []
    left_out: list[LeftOut] = []
    for candidate in all_candidates:
        why = reason_to_skip(candidate, assumed, hardware, absent)
        if why:
            left_out.append(LeftOut(candidate, why))
        else:
            to_compile.append(candidate)
    log(f"{len(all_candidates)} layouts and meshes, {len(to_compile)} to compile")

    plans = []
    with process_map(min(workers or os.cpu_count() or 1, len(to_compile)), experiment) as run:
        made = run(
            plan_candidate, [(experiment, candidate, hardware, devices, compiler) for candidate in to_compile]
        )
        for number, (candidate, result) in enumerate(zip(to_compile, made, strict=True), 1):
            if isinstance(result, str):
                left_out.append(LeftOut(candidate, result))
            elif not result["fits"]:
                needed, usable = result["memory_bytes"]["total"], result["memory_usable_bytes"]
                left_out.append(
                    LeftOut(candidate, f"does not fit: needs {needed / 1e9:,.1f} GB of {usable / 1e9:,.1f}")
                )
            else:
                plans.append(result)
            outcome = (
                left_out[-1].why
                if not plans or plans[-1] is not result
                else f"{result['tokens_per_second_per_device']:,.0f} tokens/s a device"
            )
            log(f"{number}/{len(to_compile)} {candidate.name}: {outcome}")
    plans.sort(key=lambda plan: -plan["tokens_per_second_per_device"])
    return Ranking(plans, left_out, same)


def candidates(experiment: Experiment, devices: int) -> tuple[list[Candidate], int]:
    """(every preset and the experiment's own layout on every mesh, how many were skipped as equal to an
    earlier one)."""
    found: dict[str, Candidate] = {}
    same = 0
    dims = set(DIMS) if experiment.model.sparse_layers else set(DIMS) - {"experts"}
    for layout in (*PRESETS.values(), experiment.layout):
        for sizes in factorisations(devices, len(layout.mesh)):
            candidate = without_axes_of_one(layout, dict(zip(layout.mesh, sizes, strict=True)))
            key = canonical_form(candidate, dims)
            same += key in found
            found.setdefault(key, candidate)
    return list(found.values()), same


def factorisations(n: int, factors: int) -> Iterator[tuple[int, ...]]:
    """All ways to write n as a product, in order.

    >>> list(factorisations(4, 2))
    [(1, 4), (2, 2), (4, 1)]
    """
    if factors == 1:
        yield (n,)
        return
    for first in (d for d in range(1, n + 1) if n % d == 0):
        for rest in factorisations(n // first, factors - 1):
            yield (first, *rest)


def without_axes_of_one(layout: Layout, mesh: dict[str, int]) -> Candidate:
    """The layout on a mesh without the axes of one device, which split nothing."""
    kept = {axis: size for axis, size in mesh.items() if size > 1} or dict(list(mesh.items())[:1])

    def entry(axes: str) -> str:
        return ",".join(axis for axis in split_axes(axes) if axis in kept)

    tables: dict[str, Any] = {
        table: {dim: entry(axes) for dim, axes in getattr(layout, table).items()} for table in TABLES
    }
    if not tables["compute"].get("layers"):
        tables["pipeline"] = PipelineConfig()
    return Candidate(dataclasses.replace(layout, mesh=kept, **tables), kept)


def canonical_form(candidate: Candidate, dims: Collection[str] = DIMS) -> str:
    """A text that is equal for candidates that do the same, whatever they and their axes are called.

    Neighbouring axes that split every array together count as one axis. dims: the dims that the model has.
    """
    entries = {
        (table, dim): list(split_axes(axes))
        for table, placed in candidate.layout.tables().items()
        for dim, axes in sorted(placed.items())
        if dim in dims and split_axes(axes)
    }
    sizes = dict(candidate.mesh)
    for before, axis in reversed(list(itertools.pairwise(candidate.mesh))):
        pairs = sum(pair == (before, axis) for axes in entries.values() for pair in itertools.pairwise(axes))
        if all(pairs == sum(axes.count(one) for axes in entries.values()) for one in (before, axis)):
            sizes[before] *= sizes.pop(axis)
            entries = {key: [one for one in axes if one != axis] for key, axes in entries.items()}
    number = {axis: i for i, axis in enumerate(sizes)}
    placed = [[*key, [number[axis] for axis in axes]] for key, axes in entries.items()]
    others = {
        f.name: str(getattr(candidate.layout, f.name))
        for f in dataclasses.fields(Layout)
        if f.name not in ("name", "mesh", *TABLES)
    }
    return json.dumps([list(sizes.values()), placed, others])


def uses_axis(layout: Layout, axis: str) -> bool:
    """True if a layout splits anything over a mesh axis."""
    tables = layout.tables().values()
    return any(axis in split_axes(axes) for table in tables for axes in table.values())


def with_candidate(experiment: Experiment, candidate: Candidate) -> Experiment:
    """The experiment with the candidate's layout and mesh."""
    return dataclasses.replace(experiment, layout=candidate.layout, mesh=candidate.mesh)


def reason_to_skip(
    candidate: Candidate, experiment: Experiment, hardware: Hardware, absent: list[Any]
) -> str:
    """Why a candidate is not compiled; "" if it is."""
    idle = [
        axis for axis in candidate.mesh if not uses_axis(candidate.layout, axis) and candidate.mesh[axis] > 1
    ]
    if idle:
        return f"splits nothing over {idle[0]}: its devices would all do the same"
    try:
        candidate.layout.check()
        planned = with_candidate(experiment, candidate)
        program = plan_program(planned, absent)
        models = frozen_models(planned, program)
    except UserError as error:
        return str(error)
    needed = lower_bound_bytes(program, models, experiment)
    usable = USABLE_MEMORY * hardware.memory_bytes
    if needed > usable:
        return (
            "does not fit: weights, gradients, moments and the stream that enters the layers need "
            f"{needed / 1e9:,.1f} GB of {usable / 1e9:,.1f}"
        )
    return ""


def plan_candidate(arguments: tuple[Experiment, Candidate, Hardware, int, Compiler]) -> dict[str, Any] | str:
    """The plan of one candidate as plain data, or the error as text: a layout that fails must not end the
    search."""
    experiment, candidate, hardware, devices, compiler = arguments
    try:
        return make_plan(with_candidate(experiment, candidate), hardware, devices, compiler)[0].to_json()
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"failed to compile: {type(error).__name__}: {first_line(error)}"


@contextlib.contextmanager
def process_map(workers: int, experiment: Experiment) -> Iterator[Callable]:
    """A `map` that runs in `workers` new processes, which know the experiment's objective; for 1, the
    builtin."""
    if workers <= 1:
        yield map
        return
    kind = type(experiment.objective)
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=import_definition,
        initargs=(kind.__module__, source_file(kind)),
    ) as executor:
        yield executor.map


def import_definition(module: str, path: str) -> None:
    """Imports the experiment file that defines an objective, which a new process can't find by its module's
    name."""
    if importlib.util.find_spec(module) is None:
        import_file(Path(path))
