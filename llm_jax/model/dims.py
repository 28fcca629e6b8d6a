"""The names of array dimensions, and `Placement`: how a model places an array without naming a mesh axis.

One letter a dimension, used as suffixes of array names (`x_BTD`) and in einsums:

| letter | dim        | meaning                                              |
| ------ | ---------- | ---------------------------------------------------- |
| B      | `batch`    | sequences                                            |
| T      | `sequence` | positions of the queries                             |
| S      | `keys`     | positions of the keys                                |
| D      | `embed`    | the residual stream                                  |
| H      | `heads`    | query heads                                          |
| G      | `kv_heads` | key/value heads (H is a multiple of G)               |
| K      | `head_dim` | one head                                             |
| F      | `mlp`      | the hidden layer of a feed-forward block             |
| R      | `latent`   | the small vector that keys and values are made from  |
| E      | `experts`  | feed-forward blocks that a token may be sent to      |
| V      | `vocab`    | tokens of the vocabulary                             |
| L      | `layers`   | blocks, where their weights are stacked              |
| N      |            | batch and sequence flattened                         |
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

Dims = tuple[str | None, ...]
"""The name of each dim of an array; None for a dim that is never split, as the rows of a position table."""

Table = Literal["compute", "stored", "optimizer", "residual", "attention"]
"""The tables of a layout, one for each way in which an array can be placed (`layout.layout`)."""

DIMS = (
    "batch",
    "sequence",
    "keys",
    "embed",
    "heads",
    "kv_heads",
    "head_dim",
    "latent",
    "mlp",
    "experts",
    "vocab",
    "layers",
)
"""Every name that a layout may place."""

RANK = "rank"
"""The small dim of an adapter's two factors (`model.adapters`); no layout splits it."""

MATRIX_SIDES: dict[Dims, tuple[int, int]] = {
    # the dims before a matrix's inputs (one matrix for each expert), and those before its outputs
    ("embed", "heads", "head_dim"): (0, 1),
    ("embed", "kv_heads", "head_dim"): (0, 1),
    ("heads", "head_dim", "embed"): (0, 2),
    ("embed", "latent"): (0, 1),
    ("latent", "heads", "head_dim"): (0, 1),
    ("embed", "mlp"): (0, 1),
    ("mlp", "embed"): (0, 1),
    ("embed", None): (0, 1),  # a router
    ("experts", "embed", "mlp"): (1, 2),
    ("experts", "mlp", "embed"): (1, 2),
}
"""The linear maps in blocks, by the dims of their weights without stacked layers: [experts, inputs...,
outputs...]."""


def matrix_sides(dims: Dims) -> tuple[int, int]:
    """(number of the first input dim, number of the first output dim) of the weight of a linear map in a
    block, or of a factor of an adapter on one; with or without stacked layers.

    Raises KeyError for any other weight.

    >>> matrix_sides(("heads", "head_dim", "embed")), matrix_sides(("layers", "experts", "rank", "mlp"))
    ((0, 2), (2, 3))
    """
    stacked = int(dims[0] == "layers")
    if RANK not in dims:
        first, cut = MATRIX_SIDES[dims[stacked:]]
        return stacked + first, stacked + cut
    first = stacked + (dims[stacked] == "experts")
    return first, len(dims) - 1 if dims[-1] == RANK else first + 1


@dataclass(frozen=True)
class PipelineConfig:
    """How the batch flows through the stages, where a layout splits `layers` over devices
    (`model.pipeline`)."""

    microbatches: int | None = None
    """Parts of the batch that flow through the stages one after the other; a multiple of the stages. None:
    four times the stages, or as many as the rows of the batch allow."""
    rounds: int = 1
    """How often each microbatch passes through all stages, each time through the next layers (interleaved
    schedule): less idle time, more traffic, more memory for the backward pass. More than 1 needs weights at
    rest that are not split by `layers`."""
    remat: bool = True
    """True: for the backward pass a stage keeps only the input of each tick and computes its layers again,
    inside these as `model.remat` says, so that memory does not grow with the layers of a stage. False: only
    `model.remat` decides."""

    def per_stage(self, rows: int, stages: int) -> int:
        """Microbatches for each stage, where each device has `rows` rows of the batch: `microbatches` /
        stages, or fewer if the rows do not divide (as in sampling)."""
        most = self.microbatches // stages if self.microbatches else 4
        return max(n for n in range(1, most + 1) if rows % n == 0)

    def idle(self, microbatches: int, stages: int) -> float:
        """The fraction of ticks in which a stage is idle, (S - 1) / (M rounds + S - 1)."""
        return (stages - 1) / (microbatches * self.rounds + stages - 1)


class Placement:
    """Where the arrays of a model are, and which devices split them. This class is for one device: nothing is
    split or moved. `layout.layout.MeshPlacement` reads the tables of a layout.

    It is a static part of the model, so it is hashable and compares by value.
    """

    # --- activations ---

    def spec(self, dims: Dims, table: Table = "compute") -> Any:
        """The partition spec of an activation in a table of the layout, for `out_sharding=`; None lets JAX
        decide."""
        return None

    def move(self, x: jax.Array, dims: Dims, table: Table = "compute") -> jax.Array:
        """An activation with these dims, resharded to a table of the layout."""
        return x

    def local(
        self, f: Callable, in_dims: tuple[Dims | None, ...], out_dims: Any, table: Table = "compute"
    ) -> Callable:
        """`f`, run by each device on its own part of the arguments (`jax.shard_map`), as a table of the
        layout splits them.

        in_dims: the dims of each argument; None for one that every device has whole. out_dims: the dims of
        the result, or a partition spec; a tuple of these for several results.
        """
        return f

    def axes(self, dim: str, table: Table = "compute") -> tuple[str, ...]:
        """The mesh axes that split `dim`; for sums over them inside `local`."""
        return ()

    def split(
        self, dims: Dims, table: Table = "compute", shape: tuple[int, ...] | None = None
    ) -> tuple[tuple[str, ...], ...]:
        """For each dim of an array the mesh axes that split it. An axis splits one dim at most; with the
        array's shape, an uneven dim may be split less (see `layout.layout`), as in `move`."""
        return ((),) * len(dims)

    def size(self, axes: tuple[str, ...]) -> int:
        """The number of parts into which these mesh axes split a dim."""
        return 1

    # --- weights and their gradients ---

    def weight(self, w: jax.Array, dims: Dims) -> jax.Array:
        """A weight, resharded from where it is stored to where it is multiplied; an uneven vocabulary is
        padded with zeros."""
        return w

    def unpad(self, x: jax.Array, dims: Dims, shape: tuple[int, ...]) -> jax.Array:
        """The result of a product with a padded weight, cut to `shape`; the dims that `weight` padded are no
        longer split."""
        return x

    def sum_gradient(self, dw: jax.Array, dims: Dims, master_spec: Any) -> jax.Array:
        """Inside `local`: the gradient of a weight, summed over the devices that split the batch. Each device
        keeps its part of it as the partition spec `master_spec` splits it."""
        return dw

    def summed_gradient_spec(self, dims: Dims, master_spec: Any) -> Any:
        """How `sum_gradient` leaves the gradient: `local`'s `out_dims` for it."""
        return dims

    def ids_for_lookup(self, table_spec: Any, ids_BT: jax.Array) -> tuple[jax.Array, Any]:
        """Token ids for a table [V, D] that is split as `table_spec`: (the ids, on every device that has a
        part of their rows; the partition spec of the rows [B, T, D] that are found)."""
        return ids_BT, None

    # --- devices ---

    def platform(self) -> str:
        """The platform of the devices: "cpu", "gpu" or "tpu"."""
        return jax.default_backend()

    def capability(self) -> float:
        """The CUDA compute capability of the devices, 9.0 for Hopper; infinite where devices have none."""
        return math.inf


class StagePlacement(Placement, abc.ABC):
    """A placement that can split `layers` over the stages of a pipeline (`model.pipeline`)."""

    @property
    @abc.abstractmethod
    def pipeline(self) -> PipelineConfig:
        """How the batch flows through the stages."""

    @abc.abstractmethod
    def by_stage(self, f: Callable, out_dims: tuple[Dims, ...]) -> Callable:
        """`f`, run by each stage (the devices that have the same layers) on its own part of the arguments,
        which are trees.

        Axes that split the batch and no weight become manual too: each of their devices runs `f` on its own
        rows. So gradients of weights are local sums inside `f`, and are summed over devices once, where
        weights enter. `in_stage` places the rest.
        """

    @abc.abstractmethod
    def in_stage(self) -> StagePlacement:
        """The placement for code inside `by_stage`, where the axes that it has made manual split nothing;
        without stages, this one."""

    @abc.abstractmethod
    def reshard_to_stages(self, w_RL: jax.Array) -> jax.Array:
        """Weights [rounds, layers, ...], each layer moved to its stage; other dims stay where they are."""

    @abc.abstractmethod
    def sum_master_gradient(self, dw_RL: jax.Array, dims: Dims) -> jax.Array:
        """Inside a stage: the gradient of weights [rounds, layers, *dims], summed over the manual axes that
        split the moments; each device keeps its part. (`by_stage` sums over the other manual axes.)"""


def pipeline_of(place: Placement) -> StagePlacement | None:
    """The placement, if it splits `layers` over stages; None if every device has all layers."""
    return place if isinstance(place, StagePlacement) and place.axes("layers") else None
