"""Weights that multiply the same thing, as one weight: fewer, larger products (what that gave is in docs/log.md)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from llm_jax.model.mlp import FeedForward
from llm_jax.model.transformer import Block
from llm_jax.model.weights import Weight, project


class JoinedFeedForward(FeedForward):
    """A gated feed-forward block with gate and up as one weight [D, 2, F]."""

    def __init__(self, mlp: FeedForward):
        for name, value in vars(mlp).items():
            if not name.startswith("_") and name not in ("gate", "up"):
                setattr(self, name, value)
        self.gate_up = Weight(jnp.stack([mlp.gate.get_value(), mlp.up.get_value()], 1), dims=("embed", None, "mlp"), stacked=False)

    def projections(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        both_BTCF = project("BTD,DCF->BTCF", x_BTD, self.gate_up, self.config, self.place)
        return both_BTCF[:, :, 0], both_BTCF[:, :, 1]


def join(block: Block) -> None:
    """Joins the weights of one layer (not stacked), of shared experts too."""
    for _, module in list(nnx.iter_modules(block)):
        for name, part in list(nnx.iter_children(module)):
            if isinstance(part, FeedForward) and part.config.gated:
                setattr(module, str(name), JoinedFeedForward(part))
