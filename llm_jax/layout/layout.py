"""A layout is data: five small tables from names of dims to mesh axes, and what follows from them.

| table       | what it places                                                                      |
| ----------- | ----------------------------------------------------------------------------------- |
| `compute`   | weights and activations while they are multiplied                                   |
| `stored`    | weights at rest: what is said here is added to `compute`                            |
| `optimizer` | moments at rest and the update: what is said here is added to `stored`              |
| `residual`  | the stream between blocks: what is said here is added to `compute`                  |
| `attention` | queries, keys and values while they attend: what is said here is added to `compute` |

An entry is the mesh axis that splits the dim, or several joined by commas; "" takes an entry of the table
below back. In one array a mesh axis is used once, by the first dim that asks for it. In a product of activations and a weight, the
activations come first: an axis that splits batch or sequence splits a weight at rest only, which is gathered over it for use.

Two dims may have a size that does not divide. Key/value heads fewer than the devices that split them stay whole, and each
device takes those that its queries need. A vocabulary stays whole at rest, and is padded while it is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, get_args

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from llm_jax.errors import UserError, nearest, require
from llm_jax.model.dims import DIMS, Dims, PipelineConfig, Placement, Table

Axes = dict[str, str]
"""Name of a dim → the mesh axes that split it, joined by commas."""
TABLES: tuple[Table, ...] = get_args(Table)
MAY_STAY_WHOLE = ("kv_heads", "vocab")
IN_PRODUCTS = {"embed", "heads", "kv_heads", "head_dim", "mlp", "vocab"}
"""Dims of weights that are multiplied with activations which have batch and sequence."""


@dataclass(frozen=True)
class Layout:
    """Which mesh axis splits which dim, in each way that an array can live."""

    name: str = "single"
    """What the layout is called in headers and errors."""
    mesh: dict[str, int] = field(default_factory=lambda: {"data": 1})
    """Its mesh axes and their default sizes, slowest network first; -1: all devices that the others leave."""
    compute: Axes = field(default_factory=dict)
    """Where weights and activations are while they are multiplied."""
    stored: Axes = field(default_factory=dict)
    """Where weights are at rest, where it differs from `compute`."""
    optimizer: Axes = field(default_factory=dict)
    """Where moments are at rest, where it differs from `stored`."""
    residual: Axes = field(default_factory=dict)
    """Where the residual stream is between blocks, where it differs from `compute`."""
    attention: Axes = field(default_factory=dict)
    """Where queries, keys and values are while they attend, where it differs from `compute`."""
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    """How the batch flows through the stages, where `compute` splits `layers` over mesh axes: these are the stages."""

    def check(self) -> None:
        """Raises UserError where a table names a dim or an axis that there is none of."""
        for table in TABLES:
            for dim, axes in getattr(self, table).items():
                if dim not in DIMS:
                    raise UserError(f"layout.{table}.{dim}={axes}: there is no dim {dim!r}; {nearest(dim, DIMS)}")
                for axis in split_axes(axes):
                    if axis not in self.mesh:
                        raise UserError(f"layout.{table}.{dim}={axes}: the mesh has no axis {axis!r}; {nearest(axis, self.mesh)}")
        self.check_pipeline()

    def check_pipeline(self) -> None:
        """Raises UserError where `layers` is split in a way that no pipeline can run."""
        microbatches, rounds = self.pipeline.microbatches, self.pipeline.rounds
        require(microbatches is None or microbatches >= 1, "layout.pipeline.microbatches", microbatches, "at least 1, or null for as many as fit")
        require(rounds >= 1, "layout.pipeline.rounds", rounds, "at least 1")
        tables = self.tables()
        stages, at_rest = (split_axes(tables[table].get("layers", "")) for table in ("compute", "stored"))
        if not stages:
            require(not at_rest, "layout.stored.layers", ", ".join(at_rest), "split in layout.compute too (a pipeline), or not at all")
            changed = [f.name for f in fields(PipelineConfig) if getattr(self.pipeline, f.name) != f.default]
            if changed:
                raise UserError(
                    f"layout.pipeline.{changed[0]}={getattr(self.pipeline, changed[0])}: layout {self.name} has no pipeline; "
                    "layout.compute.layers=AXIS makes one"
                )
            return
        for table in ("compute", "residual"):
            batch = split_axes(tables[table].get("batch", ""))
            right = ", ".join((*stages, *(a for a in batch if a not in stages)))
            require(
                batch[: len(stages)] == stages, f"layout.{table}.batch", ", ".join(batch), f"{right!r}: outside of the blocks the stages split it"
            )
        if rounds > 1:
            right = (
                f'"" with layout.pipeline.rounds={rounds}, where a stage has layers from {rounds} places; split another dim, as layout.stored.embed'
            )
            require(not at_rest, "layout.stored.layers", ", ".join(at_rest), right)

    def tables(self) -> dict[Table, Axes]:
        """The five tables, each complete."""
        stored = {**self.compute, **self.stored}
        compute = dict(self.compute)
        taken = {axis for dim in ("batch", "sequence") for axis in split_axes(compute.get(dim, ""))}
        for dim in IN_PRODUCTS & compute.keys():
            compute[dim] = ",".join(axis for axis in split_axes(compute[dim]) if axis not in taken)
        return {
            "compute": compute,
            "stored": stored,
            "optimizer": {**stored, **self.optimizer},
            "residual": {**compute, **self.residual},
            "attention": {**compute, **self.attention},
        }


def split_axes(axes: str) -> tuple[str, ...]:
    """The axes of a table's entry: "data, tensor" → ("data", "tensor")."""
    return tuple(axis.strip() for axis in axes.split(",") if axis.strip())


def partition_spec(table: Axes, dims: Dims, shape: tuple[int, ...] | None = None, mesh: Mesh | None = None) -> PartitionSpec:
    """The partition spec of an array with these dims. Each mesh axis serves the first dim that asks for it.

    With the array's shape and the mesh, those dims that may (`MAY_STAY_WHOLE`) stay whole where they don't divide.
    """
    used: set[str] = set()
    entries: list[Any] = []
    for i, dim in enumerate(dims):
        axes = tuple(axis for axis in split_axes(table.get(dim or "", "")) if axis not in used)
        if shape is not None and mesh is not None and dim in MAY_STAY_WHOLE and shape[i] % math.prod(mesh.shape[a] for a in axes):
            axes = ()
        used.update(axes)
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)


def without(table: Axes, used: Collection[str]) -> Axes:
    """A table without some mesh axes."""
    return {dim: ", ".join(axis for axis in split_axes(axes) if axis not in used) for dim, axes in table.items()}


@dataclass(frozen=True)
class MeshPlacement(Placement):
    """The placement that a layout's tables give on a mesh."""

    layout: Layout
    mesh: Mesh
    used: tuple[str, ...] = ()
    """Mesh axes that the code around has used up (`inside`)."""

    def __hash__(self) -> int:
        return hash((self.layout.name, self.mesh, self.used))

    @property
    def pipeline(self) -> PipelineConfig:  # type: ignore[override]
        return self.layout.pipeline

    @cached_property
    def tables(self) -> dict[Table, Axes]:
        return {name: without(table, self.used) for name, table in self.layout.tables().items()}

    @cached_property
    def traced_mesh(self) -> Mesh | AbstractMesh:
        """The mesh as code sees it that uses this placement."""
        return self.mesh.abstract_mesh.update_axis_types(dict.fromkeys(self.used, AxisType.Manual)) if self.used else self.mesh

    def weight(self, w: jax.Array, dims: Dims) -> jax.Array:
        return self.move(w, dims)

    def spec(self, dims: Dims, table: Table = "compute") -> PartitionSpec:
        return partition_spec(self.tables[table], dims)

    def move(self, x: jax.Array, dims: Dims, table: Table = "compute") -> jax.Array:
        return jax.sharding.reshard(x, self.sharding(dims, table, x.shape))

    def local(self, f: Callable, in_dims: tuple[Dims | None, ...], out_dims: Any, table: Table = "compute", only: str | None = None) -> Callable:
        over = self.axes(only) if only else tuple(a for a in self.mesh.axis_names if a not in self.used)
        entries = without(self.tables[table], [a for a in self.mesh.axis_names if a not in over])

        def specs(dims: Any, x: Any = None) -> Any:
            if dims and isinstance(dims[0], tuple):  # several results
                return tuple(specs(d) for d in dims)
            return PartitionSpec() if dims is None else partition_spec(entries, dims, getattr(x, "shape", None), self.mesh)

        def run(*arguments: Any) -> Any:
            in_specs = tuple(specs(dims, x) for x, dims in zip(arguments, in_dims, strict=True))
            mapped = jax.shard_map(f, mesh=self.traced_mesh, axis_names=set(over), in_specs=in_specs, out_specs=specs(out_dims), check_vma=False)
            return mapped(*arguments)

        return run

    def axes(self, dim: str, table: Table = "compute") -> tuple[str, ...]:
        return split_axes(self.tables[table].get(dim, ""))

    def inside(self, dim: str) -> MeshPlacement:
        return replace(self, used=(*self.used, *self.axes(dim)))

    def split_layers(self, w_RL: jax.Array) -> jax.Array:
        axes = self.axes("layers")
        spec = [tuple(a for a in ((e,) if isinstance(e, str) else e or ()) if a not in axes) for e in jax.typeof(w_RL).sharding.spec]
        return jax.sharding.reshard(w_RL, NamedSharding(self.mesh, PartitionSpec(None, axes, *spec[2:])))

    def parts(self, dim: str, table: Table = "compute") -> int:
        return self.size(self.axes(dim, table))

    def platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    def sharding(self, dims: Dims, table: Table, shape: tuple[int, ...] | None = None) -> NamedSharding:
        """Where an array with these dims (and this shape) lives according to one of the tables."""
        return NamedSharding(self.traced_mesh, partition_spec(self.tables[table], dims, shape, self.mesh))

    def size(self, axes: tuple[str, ...]) -> int:
        """Into how many parts these mesh axes split a dim."""
        n = 1
        for axis in axes:
            n *= self.mesh.shape[axis]
        return n

    def check_divides(self, sizes: dict[str, tuple[int, str]]) -> None:
        """Raises UserError where a dim of the given size (and the key that sets it) does not divide over its axes."""
        for table_name, table in self.tables.items():
            for dim, (size, key) in sizes.items():
                axes = split_axes(table.get(dim, ""))
                parts = self.size(axes)
                if size % parts:
                    raise UserError(
                        f"{key}={size}: layout {self.layout.name} ({table_name}) splits dim {dim!r} over "
                        f"{self.named(axes)}, and {size} is not a multiple of {parts}"
                    )
        if self.axes("layers"):
            self.check_stages(sizes)

    def check_stages(self, sizes: dict[str, tuple[int, str]]) -> None:
        """Raises UserError where microbatches, batch or layers do not divide over the stages of the pipeline."""
        stages, config, (layers, key) = self.parts("layers"), self.pipeline, sizes["layers"]
        there = f"layout {self.layout.name} has {stages} stages ({self.named(self.axes('layers'))})"
        pieces = stages * config.rounds
        if layers % pieces:
            raise UserError(f"{key}={layers}: {there} and {config.rounds} rounds, and {layers} is not a multiple of {pieces}")
        if config.microbatches is None:
            return
        if config.microbatches % stages:
            raise UserError(f"layout.pipeline.microbatches={config.microbatches}: {there}, and {config.microbatches} is not a multiple of {stages}")
        batch, key = sizes["batch"]
        rows = config.microbatches * self.parts("batch") // stages
        if batch % rows:
            others = self.named(tuple(a for a in self.axes("batch") if a not in self.axes("layers")))
            over = f"layout.pipeline.microbatches={config.microbatches}" + (f", each over {others}" if others else "")
            raise UserError(f"{key}={batch}: {there} and {over}, and {batch} is not a multiple of {rows}")

    def named(self, axes: tuple[str, ...]) -> str:
        """Mesh axes with their sizes, for an error."""
        return " x ".join(f"{a}={self.mesh.shape[a]}" for a in axes)
