"""A layout is data: five small tables from names of dims to mesh axes, and the placement of every array that
follows from them.

| table       | what it places                                                    |
| ----------- | ----------------------------------------------------------------- |
| `compute`   | weights and activations while they are multiplied                 |
| `stored`    | weights at rest; its entries are added to those of `compute`      |
| `optimizer` | moments and the update; its entries are added to those of `stored`|
| `residual`  | the stream between blocks; added to `compute`                     |
| `attention` | queries, keys and values while they attend; added to `compute`    |

An entry is the mesh axis that splits the dim, or several joined by commas; "" removes the entry of the table
that it is added to. In one array a mesh axis splits one dim: the first that names it. In a product of
activations and a weight the activations come first: an axis that splits batch or sequence can split a weight
at rest only, and the weight is gathered over it for use.

Some dims may have a size that does not divide (UNEVEN_OK). Key/value heads fewer than the devices that split
them stay whole, and each device takes those that its queries need. Attention's latents, and the blocks of
quantised weights, are split at rest by as many axes as divide them. A vocabulary stays whole at rest, and is
padded while it is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from llm_jax.core.errors import UserError, nearest, require
from llm_jax.model.dims import DIMS, Dims, PipelineConfig, StagePlacement, Table

Axes = dict[str, str]
"""Name of a dim → the mesh axes that split it, joined by commas."""
TABLES: tuple[Table, ...] = get_args(Table)
UNEVEN_OK = ("kv_heads", "latent", "vocab", "blocks")
"""Dims whose size need not be a multiple of the devices that split them."""
WEIGHT_DIMS = ("embed", "heads", "kv_heads", "head_dim", "latent", "mlp", "experts", "vocab", "layers")
PLACEABLE: dict[Table, tuple[str, ...]] = {
    "compute": DIMS,
    "stored": WEIGHT_DIMS,
    "optimizer": WEIGHT_DIMS,
    "residual": ("batch", "sequence", "embed"),
    "attention": ("batch", "sequence", "keys", "heads", "kv_heads"),
}
"""The dims that each table can place: those of its arrays. `attention` has no head_dim, since scores are a
sum over it."""
CONTRACTED = {"embed", "heads", "kv_heads", "head_dim", "latent", "mlp", "vocab"}
"""Dims of weights that are multiplied with activations: batch and sequence take the axes that both name."""
PADDED = ("vocab",)
"""The dims of UNEVEN_OK that are padded while they are multiplied."""
SPLIT_LIKE = {"blocks": "embed"}
"""A dim without an entry of its own in any table → the dim whose entry it has: the blocks of quantised
weights (`model.quantized`), which divide what no layout splits in use."""


@dataclass(frozen=True)
class Layout:
    """Which mesh axes split which dims, in each of five tables."""

    name: str = "single"
    """The layout's name in headers and errors."""
    mesh: dict[str, int] = field(default_factory=lambda: {"data": 1})
    """The mesh axes and their default sizes, slowest network first; -1: all devices that the other axes
    leave."""
    compute: Axes = field(default_factory=dict)
    """Placement of weights and activations while they are multiplied."""
    stored: Axes = field(default_factory=dict)
    """Placement of weights at rest, where it differs from `compute`."""
    optimizer: Axes = field(default_factory=dict)
    """Placement of moments and master parameters, where it differs from `stored`."""
    residual: Axes = field(default_factory=dict)
    """Placement of the residual stream between blocks, where it differs from `compute`."""
    attention: Axes = field(default_factory=dict)
    """Placement of queries, keys and values while they attend, where it differs from `compute`."""
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    """How the batch flows through the stages of a pipeline: the mesh axes over which `compute` splits
    `layers`."""

    def check(self) -> None:
        """Raises UserError for an unknown dim or axis, for a dim that a table can't place, and for an
        impossible pipeline."""
        for table in TABLES:
            for dim, axes in getattr(self, table).items():
                if dim not in DIMS:
                    raise UserError(
                        f"layout.{table}.{dim}={axes}: there is no dim {dim!r}; {nearest(dim, DIMS)}"
                    )
                for axis in split_axes(axes):
                    if axis not in self.mesh:
                        raise UserError(
                            f"layout.{table}.{dim}={axes}: the mesh has no axis {axis!r}; "
                            f"{nearest(axis, self.mesh)}"
                        )
                if dim not in PLACEABLE[table]:
                    raise UserError(
                        f"layout.{table}.{dim}={axes}: this table places {', '.join(PLACEABLE[table])} only"
                    )
        for dim in ("embed", "head_dim", "latent"):
            if axes := self.tables()["compute"].get(dim):
                raise UserError(
                    f"layout.compute.{dim}={axes}: products sum over {dim}, which must be whole; "
                    f"layout.stored.{dim} splits it at rest"
                )
        self.check_pipeline()

    def check_pipeline(self) -> None:
        """Raises UserError for a split of `layers`, or pipeline settings, that no pipeline can run."""
        microbatches, rounds = self.pipeline.microbatches, self.pipeline.rounds
        require(
            microbatches is None or microbatches >= 1,
            "layout.pipeline.microbatches",
            microbatches,
            "at least 1, or null for as many as fit",
        )
        require(rounds >= 1, "layout.pipeline.rounds", rounds, "at least 1")
        tables = self.tables()
        stages, at_rest = (split_axes(tables[table].get("layers", "")) for table in ("compute", "stored"))
        if not stages:
            require(
                not at_rest,
                "layout.stored.layers",
                ", ".join(at_rest),
                "split in layout.compute too (a pipeline), or not at all",
            )
            changed = [f.name for f in fields(PipelineConfig) if getattr(self.pipeline, f.name) != f.default]
            if changed:
                raise UserError(
                    f"layout.pipeline.{changed[0]}={getattr(self.pipeline, changed[0])}: layout "
                    f"{self.name} has no pipeline; "
                    "layout.compute.layers=AXIS makes one"
                )
            return
        for table in ("compute", "residual", "attention"):
            batch = split_axes(tables[table].get("batch", ""))
            right = ", ".join((*stages, *(a for a in batch if a not in stages)))
            require(
                batch[: len(stages)] == stages,
                f"layout.{table}.batch",
                ", ".join(batch),
                f"{right!r}: outside of the blocks the stages split the batch",
            )
        if rounds > 1:
            require(
                self.pipeline.remat,
                "layout.pipeline.remat",
                False,
                f"true with rounds={rounds}: every tick would keep its weights",
            )
            right = f'"" with layout.pipeline.rounds={rounds}, where a stage has layers from {rounds} places; split another dim, as layout.stored.embed'  # noqa: E501
            require(not at_rest, "layout.stored.layers", ", ".join(at_rest), right)

    def tables(self) -> dict[Table, Axes]:
        """The five tables, each with all its entries, its own and those that it is added to."""
        stored = with_latent({**self.compute, **self.stored})
        compute = dict(self.compute)
        taken = {axis for dim in ("batch", "sequence") for axis in split_axes(compute.get(dim, ""))}
        for dim in CONTRACTED & compute.keys():
            compute[dim] = ",".join(axis for axis in split_axes(compute[dim]) if axis not in taken)
        return {
            "compute": compute,
            "stored": stored,
            "optimizer": {**stored, **with_latent(self.optimizer)},
            "residual": {**compute, **self.residual},
            "attention": {**compute, **self.attention},
        }


def with_latent(table: Axes) -> Axes:
    """A table of weights at rest in which attention's latents, without an entry of their own, are split like
    `embed`: most of latent attention's weights have one of the two dims."""
    return {"latent": table["embed"], **table} if "embed" in table else table


def split_axes(axes: str) -> tuple[str, ...]:
    """The mesh axes of a table's entry: "data, tensor" → ("data", "tensor")."""
    return tuple(axis.strip() for axis in axes.split(",") if axis.strip())


def entry_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of an entry of a partition spec, which is None, an axis, or a tuple of axes."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def partition_spec(
    table: Axes, dims: Dims, shape: tuple[int, ...] | None = None, mesh: Mesh | None = None
) -> PartitionSpec:
    """The partition spec of an array with these dims. Each mesh axis splits the first dim that names it.

    With the array's shape and the mesh, the dims of `UNEVEN_OK` are split by as many of their axes as divide
    them.
    """
    used: set[str] = set()
    entries: list[Any] = []
    for i, dim in enumerate(dims):
        axes = tuple(
            axis
            for axis in split_axes(table.get(SPLIT_LIKE.get(dim, dim) if dim else "", ""))
            if axis not in used
        )
        while (
            shape is not None
            and mesh is not None
            and dim in UNEVEN_OK
            and shape[i] % math.prod(mesh.shape[a] for a in axes)
        ):
            axes = axes[:-1]
        used.update(axes)
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)


def without_axes(table: Axes, removed: Collection[str]) -> Axes:
    """A table with some mesh axes removed from its entries."""
    return {
        dim: ", ".join(axis for axis in split_axes(axes) if axis not in removed)
        for dim, axes in table.items()
    }


@dataclass(frozen=True)
class MeshPlacement(StagePlacement):
    """The placement that a layout's tables give on a mesh."""

    layout: Layout
    mesh: Mesh
    manual_axes: tuple[str, ...] = ()
    """Mesh axes over which the code runs on each device by itself (`in_stage`): they split nothing here."""

    def __hash__(self) -> int:
        return hash((self.layout.name, self.mesh, self.manual_axes))

    @property
    def pipeline(self) -> PipelineConfig:
        return self.layout.pipeline

    @cached_property
    def tables(self) -> dict[Table, Axes]:
        return {name: without_axes(table, self.manual_axes) for name, table in self.layout.tables().items()}

    @cached_property
    def traced_mesh(self) -> Mesh | AbstractMesh:
        """The mesh for code that uses this placement: with `manual_axes` as manual axes."""
        return (
            self.mesh.abstract_mesh.update_axis_types(dict.fromkeys(self.manual_axes, AxisType.Manual))
            if self.manual_axes
            else self.mesh
        )

    def weight(self, w: jax.Array, dims: Dims) -> jax.Array:
        missing = [
            -n % self.size(self.axes(dim)) if dim in PADDED else 0
            for dim, n in zip(dims, w.shape, strict=True)
        ]
        if any(missing):
            w = jnp.pad(w, [(0, n) for n in missing])
        return self.move(w, dims)

    def unpad(self, x: jax.Array, dims: Dims, shape: tuple[int, ...]) -> jax.Array:
        if x.shape == shape:
            return x
        x = self.move(
            x, tuple(None if n != m else dim for dim, n, m in zip(dims, x.shape, shape, strict=True))
        )
        return jax.lax.slice(x, (0,) * x.ndim, shape)

    def sum_gradient(self, dw: jax.Array, dims: Dims, master_spec: PartitionSpec) -> jax.Array:
        left = [axis for dim in ("batch", "sequence") for axis in self.axes(dim)]
        for i, axes in enumerate(self._scattered(dims, master_spec)):
            if axes:
                dw = jax.lax.psum_scatter(dw, axes, scatter_dimension=i, tiled=True)
                left = [axis for axis in left if axis not in axes]
        return jax.lax.psum(dw, tuple(left)) if left else dw

    def summed_gradient_spec(self, dims: Dims, master_spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(
            *(
                (*axes, *more) or None
                for axes, more in zip(self.split(dims), self._scattered(dims, master_spec), strict=True)
            )
        )

    def _scattered(self, dims: Dims, master_spec: PartitionSpec) -> list[tuple[str, ...]]:
        """For each dim of a weight: the axes of the batch that split the master parameter and not the weight
        in use."""
        batch, scattered = {*self.axes("batch"), *self.axes("sequence")}, []
        for in_use, at_rest in zip(self.split(dims), map(entry_axes, master_spec), strict=True):
            more = at_rest[len(in_use) :] if at_rest[: len(in_use)] == in_use else ()
            scattered.append(more if batch.issuperset(more) else ())
        return scattered

    def ids_for_lookup(self, table_spec: PartitionSpec, ids_BT: jax.Array) -> tuple[jax.Array, PartitionSpec]:
        row = entry_axes(table_spec[1])
        batch, sequence = (
            tuple(axis for axis in self.axes(dim) if axis not in row) for dim in ("batch", "sequence")
        )
        return jax.sharding.reshard(ids_BT, PartitionSpec(batch, sequence)), PartitionSpec(
            batch, sequence, row
        )

    def spec(self, dims: Dims, table: Table = "compute") -> PartitionSpec:
        return partition_spec(self.tables[table], dims)

    def move(self, x: jax.Array, dims: Dims, table: Table = "compute") -> jax.Array:
        return jax.sharding.reshard(x, self.sharding(dims, table, x.shape))

    def local(
        self, f: Callable, in_dims: tuple[Dims | None, ...], out_dims: Any, table: Table = "compute"
    ) -> Callable:
        def out_specs(dims: Any) -> Any:
            if isinstance(dims, PartitionSpec):
                return dims
            if dims and isinstance(dims[0], tuple | PartitionSpec):  # several results
                return tuple(out_specs(d) for d in dims)
            return self.spec(dims, table)

        def run(*arguments: jax.Array) -> Any:
            in_specs = tuple(
                PartitionSpec() if dims is None else self.sharding(dims, table, x.shape).spec
                for x, dims in zip(arguments, in_dims, strict=True)
            )
            return self.shard_map(f, in_specs, out_specs(out_dims))(*arguments)

        return run

    def axes(self, dim: str, table: Table = "compute") -> tuple[str, ...]:
        return split_axes(self.tables[table].get(dim, ""))

    def split(
        self, dims: Dims, table: Table = "compute", shape: tuple[int, ...] | None = None
    ) -> tuple[tuple[str, ...], ...]:
        return tuple(
            entry_axes(entry) for entry in partition_spec(self.tables[table], dims, shape, self.mesh)
        )

    def by_stage(self, f: Callable, out_dims: tuple[Dims, ...]) -> Callable:
        manual = self.in_stage().manual_axes

        def kept(spec: PartitionSpec) -> PartitionSpec:
            return PartitionSpec(
                *(tuple(a for a in entry_axes(entry) if a in manual) or None for entry in spec)
            )

        def run(*arguments: Any) -> Any:
            in_specs = jax.tree.map(lambda x: kept(jax.typeof(x).sharding.spec), arguments)
            out_specs = tuple(kept(self.spec(dims, "residual")) for dims in out_dims)
            return jax.shard_map(
                f,
                mesh=self.mesh,
                axis_names=set(manual),
                in_specs=in_specs,
                out_specs=out_specs,
                check_vma=False,
            )(*arguments)

        return run

    def in_stage(self) -> MeshPlacement:
        elsewhere = {
            axis
            for name in ("compute", "stored", "residual", "attention")
            for dim, axes in self.tables[name].items()
            if dim not in ("batch", "layers")
            for axis in split_axes(axes)
        }
        only_batch = (axis for axis in self.axes("batch") if axis not in elsewhere)
        return (
            replace(self, manual_axes=tuple(dict.fromkeys((*self.axes("layers"), *only_batch))))
            if self.axes("layers")
            else self
        )

    def reshard_to_stages(self, w_RL: jax.Array) -> jax.Array:
        stages = self.axes("layers")
        others = (
            tuple(a for a in entry_axes(entry) if a not in stages) or None
            for entry in jax.typeof(w_RL).sharding.spec[2:]
        )
        return jax.sharding.reshard(w_RL, NamedSharding(self.mesh, PartitionSpec(None, stages, *others)))

    def sum_master_gradient(self, dw_RL: jax.Array, dims: Dims) -> jax.Array:
        master_spec = partition_spec(self.layout.tables()["optimizer"], dims, dw_RL.shape[2:], self.mesh)

        def scattered(dw_RL: jax.Array) -> jax.Array:
            for i, entry in enumerate(master_spec):
                if axes := tuple(axis for axis in entry_axes(entry) if axis in self.manual_axes):
                    dw_RL = jax.lax.psum_scatter(dw_RL, axes, scatter_dimension=i + 2, tiled=True)
            return dw_RL

        return self.shard_map(scattered, (jax.typeof(dw_RL).sharding.spec,), jax.typeof(dw_RL).sharding.spec)(
            dw_RL
        )

    def shard_map(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`jax.shard_map` of f over all mesh axes that are not manual yet."""
        automatic = set(self.mesh.axis_names) - set(self.manual_axes)
        if not automatic:  # every device runs by itself already
            return f
        return jax.shard_map(
            f,
            mesh=self.traced_mesh,
            axis_names=automatic,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )

    def platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    def capability(self) -> float:
        return float(getattr(self.mesh.devices.flat[0], "compute_capability", math.inf))

    def sharding(self, dims: Dims, table: Table, shape: tuple[int, ...] | None = None) -> NamedSharding:
        """The sharding of an array with these dims (and this shape) in one of the tables."""
        return NamedSharding(self.traced_mesh, partition_spec(self.tables[table], dims, shape, self.mesh))

    def size(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def check_divides(self, sizes: dict[str, tuple[int, str]]) -> None:
        """Raises UserError for a dim whose size is no multiple of the devices that split it. sizes: dim →
        (size, key that sets it)."""
        for table_name, table in self.tables.items():
            for dim, (size, key) in sizes.items():
                if dim in PADDED:
                    continue
                axes = split_axes(table.get(dim, ""))
                parts = self.size(axes)
                if size % parts and dim not in ("kv_heads", "latent"):  # see `attention.check`, and UNEVEN_OK
                    raise UserError(
                        f"{key}={size}: layout {self.layout.name} ({table_name}) splits dim {dim!r} over "
                        f"{self.axes_with_sizes(axes)}, and {size} is not a multiple of {parts}"
                    )
        if self.axes("layers") and "layers" in sizes:
            self.check_stages(sizes)

    def check_stages(self, sizes: dict[str, tuple[int, str]]) -> None:
        """Raises UserError where layers, microbatches or the batch (if `sizes` has one) don't divide over the
        pipeline's stages."""
        stages, config, (layers, key) = self.size(self.axes("layers")), self.pipeline, sizes["layers"]
        layout = (
            f"layout {self.layout.name} has {stages} stages ({self.axes_with_sizes(self.axes('layers'))})"
        )
        groups = stages * config.rounds
        if layers % groups:
            raise UserError(
                f"{key}={layers}: {layout} and {config.rounds} rounds, and {layers} is not a multiple of "
                f"{groups}"
            )
        if config.microbatches is None or "batch" not in sizes:  # a model without a run
            return
        if config.microbatches % stages:
            raise UserError(
                f"layout.pipeline.microbatches={config.microbatches}: {layout}, and {config.microbatches} "
                f"is not a multiple of {stages}"
            )
        batch, key = sizes["batch"]
        rows = config.microbatches * self.size(self.axes("batch")) // stages
        if batch % rows:
            others = self.axes_with_sizes(
                tuple(a for a in self.axes("batch") if a not in self.axes("layers"))
            )
            over = f"layout.pipeline.microbatches={config.microbatches}" + (
                f", each over {others}" if others else ""
            )
            raise UserError(f"{key}={batch}: {layout} and {over}, and {batch} is not a multiple of {rows}")

    def axes_with_sizes(self, axes: tuple[str, ...]) -> str:
        """Mesh axes with their sizes, for an error: "data=4 x tensor=2"."""
        return " x ".join(f"{a}={self.mesh.shape[a]}" for a in axes)
