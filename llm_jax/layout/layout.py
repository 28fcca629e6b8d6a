"""A layout is data: four small tables from names of dims to mesh axes, and what follows from them.

| table       | what it places                                                                      |
| ----------- | ----------------------------------------------------------------------------------- |
| `compute`   | weights and activations while they are multiplied                                   |
| `stored`    | weights at rest: what is said here is added to `compute`                            |
| `optimizer` | moments at rest and the update: what is said here is added to `stored`              |
| `residual`  | the stream between blocks: what is said here is added to `compute`                  |

An entry is the mesh axis that splits the dim, or several joined by commas; "" takes an entry of the table
below back. In one array a mesh axis is used once, by the first dim that asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.errors import UserError, nearest
from llm_jax.model.dims import DIMS, Dims, Placement

Table = dict[str, str]


@dataclass(frozen=True)
class Layout:
    """Which mesh axis splits which dim, in each way that an array can live."""

    name: str = "single"
    """What the layout is called in headers and errors."""
    mesh: dict[str, int] = field(default_factory=lambda: {"data": 1})
    """Its mesh axes and their default sizes, slowest network first; -1: all devices that the others leave."""
    compute: Table = field(default_factory=dict)
    """Where weights and activations are while they are multiplied."""
    stored: Table = field(default_factory=dict)
    """Where weights are at rest, where it differs from `compute`."""
    optimizer: Table = field(default_factory=dict)
    """Where moments are at rest, where it differs from `stored`."""
    residual: Table = field(default_factory=dict)
    """Where the residual stream is between blocks, where it differs from `compute`."""

    def check(self) -> None:
        """Raises UserError where a table names a dim or an axis that there is none of."""
        for table in ("compute", "stored", "optimizer", "residual"):
            for dim, axes in getattr(self, table).items():
                if dim not in DIMS:
                    raise UserError(f"layout.{table}.{dim}={axes}: there is no dim {dim!r}; {nearest(dim, DIMS)}")
                for axis in split_axes(axes):
                    if axis not in self.mesh:
                        raise UserError(f"layout.{table}.{dim}={axes}: the mesh has no axis {axis!r}; {nearest(axis, self.mesh)}")

    def tables(self) -> dict[str, Table]:
        """The four tables, each complete."""
        stored = {**self.compute, **self.stored}
        return {
            "compute": self.compute,
            "stored": stored,
            "optimizer": {**stored, **self.optimizer},
            "residual": {**self.compute, **self.residual},
        }


def split_axes(axes: str) -> tuple[str, ...]:
    """The axes of a table's entry: "data, tensor" → ("data", "tensor")."""
    return tuple(axis.strip() for axis in axes.split(",") if axis.strip())


def partition_spec(table: Table, dims: Dims) -> PartitionSpec:
    """The partition spec of an array with these dims. Each mesh axis serves the first dim that asks for it."""
    used: set[str] = set()
    entries: list[Any] = []
    for dim in dims:
        axes = tuple(axis for axis in split_axes(table.get(dim or "", "")) if axis not in used)
        used.update(axes)
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)


@dataclass(frozen=True)
class MeshPlacement(Placement):
    """The placement that a layout's tables give on a mesh."""

    layout: Layout
    mesh: Mesh

    def __hash__(self) -> int:
        return hash((self.layout.name, self.mesh))

    @cached_property
    def tables(self) -> dict[str, Table]:
        return self.layout.tables()

    def weight(self, w: jax.Array, dims: Dims) -> jax.Array:
        return jax.sharding.reshard(w, self.sharding(dims, "compute"))

    def spec(self, dims: Dims, residual: bool = False) -> PartitionSpec:
        return partition_spec(self.tables["residual" if residual else "compute"], dims)

    def move(self, x: jax.Array, dims: Dims, residual: bool = False) -> jax.Array:
        return jax.sharding.reshard(x, NamedSharding(self.mesh, self.spec(dims, residual)))

    def local(self, f: Callable, in_dims: tuple[Dims | None, ...], out_dims: Any) -> Callable:
        def specs(dims: Any) -> Any:
            if dims is None:
                return PartitionSpec()
            if dims and isinstance(dims[0], tuple):  # several results
                return tuple(specs(d) for d in dims)
            return self.spec(dims)

        return jax.shard_map(f, mesh=self.mesh, in_specs=tuple(specs(d) for d in in_dims), out_specs=specs(out_dims), check_vma=False)

    def axes(self, dim: str) -> tuple[str, ...]:
        return split_axes(self.tables["compute"].get(dim, ""))

    def platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    def sharding(self, dims: Dims, table: str) -> NamedSharding:
        """Where an array with these dims lives according to one of the four tables."""
        return NamedSharding(self.mesh, partition_spec(self.tables[table], dims))

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
                        f"{' x '.join(f'{a}={self.mesh.shape[a]}' for a in axes)}, and {size} is not a multiple of {parts}"
                    )
