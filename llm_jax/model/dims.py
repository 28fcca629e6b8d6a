"""The names of array dimensions, and `Placement`: how a model says what an array is without naming a mesh axis.

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
| R      | `latent`   | the small vector that latent attention is made from  |
| E      | `experts`  | feed-forward blocks that a token may be sent to      |
| V      | `vocab`    | pieces of the tokenizer                              |
| L      | `layers`   | blocks, where their weights are stacked              |
| N      |            | batch and sequence flattened                         |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

Dims = tuple[str | None, ...]
"""The name of each dim of an array; None is a dim that is never split (a head's rotation table, say)."""

Table = Literal["compute", "stored", "optimizer", "residual", "attention"]
"""The tables of a layout (`layout.layout`): the ways in which an array can live."""

DIMS = ("batch", "sequence", "keys", "embed", "heads", "kv_heads", "head_dim", "latent", "mlp", "experts", "vocab", "layers")
"""Every name that a layout may place."""


@dataclass(frozen=True)
class PipelineConfig:
    """How the batch flows through the stages, where a layout splits `layers` over devices (`model.pipeline`)."""

    microbatches: int | None = None
    """Parts that flow through the stages one after the other; a multiple of the stages. None: four times the stages, or as many
    as the rows of the batch allow."""
    rounds: int = 1
    """How often each microbatch goes round the stages, each time through the next layers (interleaved schedule): less idling,
    more traffic, more kept for the backward pass. More than 1 wants weights at rest that are not split by `layers`."""
    remat: bool = True
    """Whether a stage keeps only what enters it in each tick, and computes its layers again in the backward pass, there as
    `model.remat` says: the memory does not grow with the layers of a stage. False: only as `model.remat` says."""

    def per_stage(self, rows: int, stages: int) -> int:
        """Microbatches for each stage, where each device has `rows` of the batch: as many as asked for, or as the rows allow (sampling)."""
        most = self.microbatches // stages if self.microbatches else 4
        return max(n for n in range(1, most + 1) if rows % n == 0)

    def idle(self, microbatches: int, stages: int) -> float:
        """The part of the ticks in which a stage has nothing to do, (S - 1) / (M rounds + S - 1)."""
        return (stages - 1) / (microbatches * self.rounds + stages - 1)


class Placement:
    """Where arrays live. This one says nothing, which is right for a model on a single device;
    `layout.layout.MeshPlacement` answers from the tables of a layout.

    It is a static part of the model, so it is hashable and compares by value.
    """

    pipeline = PipelineConfig()
    """How the batch flows through the stages, where `layers` is split."""

    def weight(self, w: jax.Array, dims: Dims) -> jax.Array:
        """A weight, moved from where it is stored to where it is multiplied; a vocabulary that does not divide is padded with zeros."""
        return w

    def unpad(self, x: jax.Array, dims: Dims, shape: tuple[int, ...]) -> jax.Array:
        """What was made with a padded weight, cut to its true shape: dims that `weight` padded are no longer split."""
        return x

    def sum_gradient(self, dw: jax.Array, dims: Dims, master_spec: Any) -> jax.Array:
        """Inside `local`: the gradient of a weight, summed over the devices that split the batch; each is left with its part of `master_spec`."""
        return dw

    def summed_gradient_spec(self, dims: Dims, master_spec: Any) -> Any:
        """Outside: how `sum_gradient` leaves the gradient, for `local`'s `out_dims`."""
        return dims

    def ids_for_lookup(self, table_spec: Any, ids_BT: jax.Array) -> tuple[jax.Array, Any]:
        """For a table [V, D] placed as this: (ids, there for every device that holds a part of the rows; the spec of the rows found)."""
        return ids_BT, None

    def size(self, axes: tuple[str, ...]) -> int:
        """Into how many parts these mesh axes split a dim."""
        return 1

    def spec(self, dims: Dims, table: Table = "compute") -> Any:
        """The partition spec of an activation according to a table of the layout.

        It goes into `out_sharding=`; None lets JAX decide.
        """
        return None

    def move(self, x: jax.Array, dims: Dims, table: Table = "compute") -> jax.Array:
        """An activation, moved to where a table of the layout says."""
        return x

    def local(self, f: Callable, in_dims: tuple[Dims | None, ...], out_dims: Any, table: Table = "compute") -> Callable:
        """`f`, run by each device on its own part of the arguments (`jax.shard_map`), as a table of the layout splits them."""
        return f

    def by_stage(self, f: Callable, out_dims: tuple[Dims, ...]) -> Callable:
        """`f`, run by each stage (the devices that have the same layers) on its own part of the arguments, which are trees.

        Axes that split the batch and no weight are used up too: each of their devices runs `f` on its own rows. So gradients of
        weights are local sums in `f`, and are summed over devices once, where weights enter. Everything else is placed by `in_stage`.
        """
        return f

    def in_stage(self) -> Placement:
        """The placement for code inside `by_stage`: the axes that are used up split nothing there."""
        return self

    def reshard_to_stages(self, w_RL: jax.Array) -> jax.Array:
        """Weights [rounds, layers, ...], each layer moved to its stage; other dims stay where they are."""
        return w_RL

    def sum_master_gradient(self, dw_RL: jax.Array, dims: Dims) -> jax.Array:
        """In a stage: the gradient of weights [rounds, layers, *dims], summed over the axes that split the moments, each device left with
        its part. (`by_stage` sums over the other axes that are used up.)"""
        return dw_RL

    def axes(self, dim: str, table: Table = "compute") -> tuple[str, ...]:
        """The mesh axes that split `dim`; for sums over them inside `local`."""
        return ()

    def split(self, dims: Dims, table: Table = "compute", shape: tuple[int, ...] | None = None) -> tuple[tuple[str, ...], ...]:
        """The mesh axes that split each dim of an array, which serve one dim each; with its shape, as `move` has it."""
        return ((),) * len(dims)

    def platform(self) -> str:
        """What the arrays' devices are: "cpu", "gpu" or "tpu"."""
        return jax.default_backend()

    def capability(self) -> float:
        """The CUDA compute capability of the arrays' devices, 9.0 for Hopper; infinite where they have none."""
        return math.inf
