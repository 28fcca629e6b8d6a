"""Gated feed-forward blocks with gate and up as one weight: one product instead of two (docs/log.md has what
that gave)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from llm_jax.model.mlp import FeedForward
from llm_jax.model.transformer import Block
from llm_jax.model.weights import Weight, project


class FusedFeedForward(FeedForward):
    """A gated feed-forward block with gate and up as one weight [D, 2, F]."""

    def __init__(self, mlp: FeedForward):
        for name, value in vars(mlp).items():
            if not name.startswith("_") and name not in ("gate", "up"):
                setattr(self, name, value)
        gate_up_D2F = jnp.stack([mlp.gate.get_value(), mlp.up.get_value()], 1)
        self.gate_up = Weight(gate_up_D2F, dims=("embed", None, "mlp"), stacked=False)

    def projections(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(gate, up) of x_BTD, [B, T, F] each."""
        both_BTCF = project("BTD,DCF->BTCF", x_BTD, self.gate_up, self.config, self.place)
        return both_BTCF[:, :, 0], both_BTCF[:, :, 1]


def is_plain(mlp: FeedForward) -> bool:
    """Whether both weights are arrays, which can be stacked."""
    return all(isinstance(w.get_value(), jax.Array) for w in (mlp.gate, mlp.up))


def fuse_gate_and_up(block: Block) -> None:
    """Replaces the gated feed-forward modules of one unstacked block, shared experts included, by fused ones;
    not those with an adapter beside their weights. Changes the block."""
    for _, module in list(nnx.iter_modules(block)):
        for name, part in list(nnx.iter_children(module)):
            if isinstance(part, FeedForward) and part.config.gated and is_plain(part):
                setattr(module, str(name), FusedFeedForward(part))
