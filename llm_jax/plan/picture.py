"""Draws a layout: which device holds which part of each array.

Every array is a rectangle, divided as its layout divides it. A part has the colour of the first device that
holds it, paler the more devices hold it, and grey if all do. The numbers are the devices, in the order of the
mesh.
"""

from __future__ import annotations

import colorsys
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llm_jax.experiment import Experiment
from llm_jax.layout.layout import MeshPlacement
from llm_jax.model.dims import Dims, Table
from llm_jax.train.state import TrainModel

WEIGHT_TABLES: dict[str, Table] = {
    "at rest": "stored",
    "while multiplied": "compute",
    "moments and update": "optimizer",
}
MAX_CELLS_WITH_TEXT = 16
"""Maximum parts in a row that are labelled with devices; more would be unreadable."""


@dataclass(frozen=True)
class PlacedArray:
    """An array under one table of the layout."""

    title: str
    dims: Dims
    shape: tuple[int, ...]
    sharding: NamedSharding

    def parts(self) -> dict[tuple[int, ...], list[int]]:
        """{index of a part along each dim: positions in the mesh of the devices that hold it}, as JAX divides
        the array."""
        local = self.sharding.shard_shape(self.shape)
        place = {device: i for i, device in enumerate(self.sharding.mesh.devices.flat)}
        found: dict[tuple[int, ...], list[int]] = {}
        for device, index in self.sharding.devices_indices_map(self.shape).items():
            part = tuple((slice_.start or 0) // size for slice_, size in zip(index, local, strict=True))
            found.setdefault(part, []).append(place[device])
        return {part: sorted(devices) for part, devices in found.items()}

    def caption(self) -> str:
        """The dims with their sizes and splits: "batch 16/8 x embed 64"."""
        local = self.sharding.shard_shape(self.shape)
        cut = [
            f"{size}/{size // part}" if part != size else str(size)
            for size, part in zip(self.shape, local, strict=True)
        ]
        return " x ".join(f"{dim or '-'} {size}" for dim, size in zip(self.dims, cut, strict=True))


def weights(program: TrainModel) -> list[list[PlacedArray]]:
    """One row for each kind of weight matrix (weights of equal dims and shape share one): at rest, while
    multiplied, in the update."""
    rows: dict[tuple[Dims, tuple[int, ...]], list[str]] = {}
    dims_of = jax.tree_util.tree_leaves(program.dims)
    for (path, leaf), dims in zip(
        jax.tree_util.tree_leaves_with_path(program.abstract), dims_of, strict=True
    ):
        if sum(dim not in (None, "layers") for dim in dims.value) > 1:
            rows.setdefault((dims.value, leaf.shape), []).append(str(getattr(path[-1], "key", path[-1])))
    return [
        [
            PlacedArray(f"{', '.join(names)}: {way}", dims, shape, program.place.sharding(dims, table, shape))
            for way, table in WEIGHT_TABLES.items()
        ]
        for (dims, shape), names in rows.items()
    ]


def activations(experiment: Experiment, place: MeshPlacement) -> list[list[PlacedArray]]:
    """Rows of the activations of one microbatch."""
    m, t = experiment.model, experiment.train
    sizes = {
        "batch": t.batch_size // t.microbatches, "sequence": t.sequence_length, "keys": t.sequence_length,
        "embed": m.embed, "heads": m.heads, "kv_heads": m.kv_heads, "head_dim": m.head_dim, "mlp": m.mlp,
        "vocab": m.vocab,
    }  # fmt: skip
    arrays: list[tuple[str, Dims, Table]] = [
        ("residual stream", ("batch", "sequence", "embed"), "residual"),
        ("a block's input", ("batch", "sequence", "embed"), "compute"),
        ("queries", ("batch", "sequence", "heads", "head_dim"), "attention"),
        ("keys, values", ("batch", "keys", "kv_heads", "head_dim"), "attention"),
        ("hidden units", ("batch", "sequence", "mlp"), "compute"),
        ("logits (a chunk)", ("batch", "sequence", "vocab"), "compute"),
    ]
    made = []
    for title, dims, table in arrays:
        shape = tuple(sizes[dim or ""] or 1 for dim in dims)
        made.append(PlacedArray(title, dims, shape, place.sharding(dims, table, shape)))
    return [made[:3], made[3:]]


def draw(experiment: Experiment, program: TrainModel, path: Path) -> None:
    """Draws the layout of an experiment into a file (PNG, PDF or SVG by its ending)."""
    flowing, at_rest = activations(experiment, program.place), weights(program)
    rows = [[(array, down_and_across([array])) for array in row] for row in flowing]
    rows += [[(array, down_and_across(row)) for array in row] for row in at_rest]
    mesh, columns = program.place.mesh, max(map(len, rows))
    figure = Figure(figsize=(5.2 * columns, 2.2 + 2.6 * len(rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows) + 1, columns)
    draw_mesh(figure.add_subplot(grid[0, :]), mesh)
    for i, row in enumerate(rows, 1):
        for j, (array, (down, across)) in enumerate(row):
            draw_array(figure.add_subplot(grid[i, j]), array, down, across, mesh.size)
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    figure.suptitle(
        f"{experiment.name}: layout {experiment.layout.name}, {axes}\nsame colour: same first device; "
        "paler: held by more; grey: held by all"
    )
    figure.savefig(path, dpi=110)


def draw_mesh(ax: Any, mesh: jax.sharding.Mesh) -> None:
    """Draws the devices as the mesh arranges them: the last axis across, the others down."""
    *others, last = mesh.axis_names
    across = mesh.shape[last]
    down = mesh.size // across
    for device in range(mesh.size):
        draw_part(
            ax,
            device % across,
            down - 1 - device // across,
            [device],
            mesh.size,
            text=across <= 64 and down <= MAX_CELLS_WITH_TEXT,
        )
    finish_axes(ax, across, down, "the devices, in the order of the mesh", ", ".join(others), last)


def down_and_across(row: list[PlacedArray]) -> tuple[int, list[int]]:
    """(the dim drawn down, the dims drawn across) for arrays of equal dims. Dims that any of the arrays
    splits come first."""
    counts = [
        [whole // part for whole, part in zip(a.shape, a.sharding.shard_shape(a.shape), strict=True)]
        for a in row
    ]
    cut = [i for i in range(len(row[0].dims)) if any(n[i] > 1 for n in counts)]
    others = [i for i, dim in enumerate(row[0].dims) if i not in cut and dim not in (None, "layers")]
    down, *across = [*cut, *others][: max(2, len(cut))]
    return down, across


def draw_array(ax: Any, array: PlacedArray, down_dim: int, across_dims: list[int], devices: int) -> None:
    """Draws one array with one dim down and the others across."""
    parts = array.parts()
    counts = [1 + max(part[i] for part in parts) for i in range(len(array.dims))]
    down, across = counts[down_dim], math.prod(counts[i] for i in across_dims)
    text = across <= MAX_CELLS_WITH_TEXT and down <= MAX_CELLS_WITH_TEXT
    for part, held_by in parts.items():
        x = 0
        for i in across_dims:
            x = x * counts[i] + part[i]
        draw_part(ax, x, down - 1 - part[down_dim], held_by, devices, text)
    finish_axes(
        ax,
        across,
        down,
        f"{array.title}\n{array.caption()}",
        array.dims[down_dim] or "",
        ", ".join(array.dims[i] or "" for i in across_dims),
    )


def draw_part(ax: Any, x: int, y: int, held_by: list[int], devices: int, text: bool) -> None:
    """Draws one part, coloured and labelled by the devices that hold it."""
    ax.add_patch(
        Rectangle((x, y), 1, 1, facecolor=part_colour(held_by, devices), edgecolor="white", linewidth=0.8)
    )
    if text:
        ax.text(x + 0.5, y + 0.5, device_text(held_by, devices), ha="center", va="center", fontsize=7)


def part_colour(held_by: list[int], devices: int) -> tuple[float, float, float]:
    """Colour of a part (RGB): that of its first device, paler the more devices hold it, grey if all do."""
    if len(held_by) == devices > 1:
        return (0.88, 0.88, 0.88)
    copies = math.log(len(held_by)) / math.log(max(2, devices))
    return colorsys.hsv_to_rgb(0.9 * held_by[0] / devices, 0.5 * (1 - 0.6 * copies), 0.97)


def device_text(held_by: list[int], devices: int) -> str:
    """Short text for a list of devices.

    >>> [device_text(held_by, 8) for held_by in ([0, 1, 2, 3], [1, 3, 5, 7], [3])], device_text([0, 1], 2)
    (['0-3', '1, 3, .. 7', '3'], 'all')
    """
    if len(held_by) == devices > 1:
        return "all"
    if len(held_by) < 3:
        return ", ".join(map(str, held_by))
    steps = {b - a for a, b in itertools.pairwise(held_by)}
    if steps == {1}:
        return f"{held_by[0]}-{held_by[-1]}"
    if len(steps) == 1:
        return f"{held_by[0]}, {held_by[1]}, .. {held_by[-1]}"
    return f"{held_by[0]}, .. ({len(held_by)})"


def finish_axes(ax: Any, across: int, down: int, title: str, ylabel: str, xlabel: str) -> None:
    """Sets limits, title and labels of the axes, without ticks."""
    ax.set(xlim=(0, across), ylim=(0, down), xticks=[], yticks=[])
    ax.set_title(title, fontsize=8)
    ax.set_ylabel(ylabel, fontsize=8)
    ax.set_xlabel(xlabel, fontsize=8)
    for spine in ax.spines.values():
        spine.set_visible(False)
