"""What the value of a `Weight` may be besides an array: registered pytrees, so that layers are stacked,
sliced and placed as arrays are."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedParam:
    """A weight as two arrays: the master parameter, which gets the gradient, and the stored weight, which is
    multiplied.

    With ZeRO-1, for instance, every device stores the whole weight and updates a part of it.
    """

    master: jax.Array
    """float32, placed by the layout's table `optimizer`. It gets the gradient."""
    stored: jax.Array
    """In the parameter dtype, placed by the table `stored`. It is multiplied, and gets no gradient."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Untrained:
    """A weight that gets no gradient: no product is made for one."""

    stored: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A frozen weight in few bits (`model.quantized`): numbers of table entries, and the largest magnitude of
    each group of them."""

    codes: jax.Array
    """int8: the weight's dims. nf4: uint8, two entries each, so that dim `axis` has half of its size."""
    absmax: jax.Array
    """float32. int8: the weight's output dims. nf4: the weight's dims, of which `axis` has one entry for each
    block."""
    kind: Literal["int8", "nf4"] = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    """nf4: the dim that is divided into blocks, counted from the end (-1 is the last): the same for stacked
    layers and for one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A frozen weight with a low-rank adapter beside it (`model.adapters`): W + scaling A B, or with a
    magnitude (DoRA) its rows scaled to that."""

    base: jax.Array | Quantized
    """W, [inputs..., outputs...]. It gets no gradient."""
    lora_A: jax.Array | ShardedParam
    """[inputs..., rank]"""
    lora_B: jax.Array | ShardedParam
    """[rank, outputs...]"""
    scaling: jax.Array
    """float32 []: alpha / rank, or alpha / sqrt(rank). 0 for a layer that has no adapter."""
    magnitude: jax.Array | ShardedParam | None = None
    """[outputs...], DoRA's length of each row; None for LoRA."""
