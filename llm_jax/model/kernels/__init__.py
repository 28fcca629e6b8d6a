"""Attention kernels: one file each in this folder, found by its name. `model.attention=NAME` runs
`kernels/NAME.py`.

The file of a kernel defines three functions, whose signatures are those of `AttentionKernel`: `attend`,
`check` and `chunk_kernel`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from llm_jax.core.errors import check_choice

if TYPE_CHECKING:
    import jax

    from llm_jax.model.attention_mask import Mask
    from llm_jax.model.config import ModelConfig

KERNELS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The values that `model.attention` can have: the names of this folder's files."""

WHOLE_SEQUENCE = "leave the sequence whole while it attends (layout context_ulysses)"
"""The end of an error line of a kernel that can't attend over a split sequence."""


class ChunkKernel(NamedTuple):
    """Attention of a chunk of queries to a chunk of keys, and its gradients: the parts of
    `attention_context`."""

    forward: Callable[[jax.Array, jax.Array, jax.Array, Mask], tuple[jax.Array, jax.Array]]
    """(q_BTHK, k_BSGK, v_BSGK, mask) → (out_BTHK, lse_BHT), both float32: the output, and the logarithm of
    each query's sum of exp(scores)."""
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    """(q, k, v, mask, out and lse over all keys, dout) → the gradients of q, k and v that come from these
    keys."""


class AttentionKernel(Protocol):
    """The functions that a kernel's file defines."""

    def attend(
        self,
        q_BTHK: jax.Array,
        k_BSGK: jax.Array,
        v_BSGK: jax.Array,
        segments_BT: jax.Array | None,
        config: ModelConfig,
    ) -> jax.Array:
        """Causal attention of one device's rows and heads: out_BTHK in q's dtype. Scores are q k
        head_dim^-0.5.

        It runs inside `Placement.local`, so it gets plain local arrays whatever the layout is. segments_BT:
        int, the document of each token; None: each row is one document. `config` is the layer's: its `window`
        and `attention_softcap` are obeyed, or refused by `check`. The result, and whatever else the backward
        pass needs, passes through `checkpoint_name(x, "attention")`, which `model.remat` refers to.
        """

    def check(self, config: ModelConfig, parts: int, platform: str, capability: float) -> None:
        """Raises UserError for what the kernel can't do.

        parts: the devices that a row's queries are split over; a kernel without `chunk_kernel` refuses more
        than 1. platform: "cpu", "gpu" or "tpu". capability: the CUDA compute capability, infinite where
        devices have none.
        """

    def chunk_kernel(self, config: ModelConfig) -> ChunkKernel:
        """The parts of attention over a sequence that the layout splits (context parallelism,
        `attention_context`)."""


def find_kernel(name: str) -> AttentionKernel:
    """The kernel of this name; an unknown name raises UserError."""
    check_choice("model.attention", name, KERNELS)
    return cast(AttentionKernel, importlib.import_module(f"{__name__}.{name}"))
