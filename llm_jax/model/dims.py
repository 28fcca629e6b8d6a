"""The names of array dimensions, and `Placement`: how a model says what an array is without naming a mesh axis.

One letter a dimension, used as suffixes of array names (`x_BTD`) and in einsums:

| letter | dim        | meaning                                              |
| ------ | ---------- | ---------------------------------------------------- |
| B      | `batch`    | sequences                                            |
| T      | `sequence` | positions of the queries                             |
| S      | `sequence` | positions of the keys                                |
| D      | `embed`    | the residual stream                                  |
| H      | `heads`    | query heads                                          |
| G      | `kv_heads` | key/value heads (H is a multiple of G)               |
| K      | `head_dim` | one head                                             |
| F      | `mlp`      | the hidden layer of a feed-forward block             |
| V      | `vocab`    | pieces of the tokenizer                              |
| L      | `layers`   | blocks, where their weights are stacked              |
| N      |            | batch and sequence flattened                         |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

Dims = tuple[str | None, ...]
"""The name of each dim of an array; None is a dim that is never split (a head's rotation table, say)."""

DIMS = ("batch", "sequence", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab", "layers")
"""Every name that a layout may place."""


class Placement:
    """Where arrays live. This one says nothing, which is right for a model on a single device;
    `layout.layout.MeshPlacement` answers from the tables of a layout.

    It is a static part of the model, so it is hashable and compares by value.
    """

    def weight(self, w: jax.Array, dims: Dims) -> jax.Array:
        """A weight, moved from where it is stored to where it is multiplied."""
        return w

    def spec(self, dims: Dims, residual: bool = False) -> Any:
        """The partition spec of an activation while it is computed, or (`residual`) in the stream between blocks.

        It goes into `out_sharding=`; None lets JAX decide.
        """
        return None

    def move(self, x: jax.Array, dims: Dims, residual: bool = False) -> jax.Array:
        """An activation, moved to where `spec` says."""
        return x

    def local(self, f: Callable, in_dims: tuple[Dims | None, ...], out_dims: Any) -> Callable:
        """`f`, run by each device on its own part of the arguments (`jax.shard_map`)."""
        return f

    def axes(self, dim: str) -> tuple[str, ...]:
        """The mesh axes that split `dim` while it is computed; for sums over them inside `local`."""
        return ()

    def platform(self) -> str:
        """What the arrays' devices are: "cpu", "gpu" or "tpu"."""
        return jax.default_backend()
