"""Next-token prediction: the mean cross-entropy of each token given those before it in its document."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llm_jax.core.errors import UserError, nearest, require
from llm_jax.model import router
from llm_jax.model.attention_context import arrange
from llm_jax.model.transformer import Transformer
from llm_jax.objective.cross_entropy import linear_cross_entropy

Batch = dict[str, jax.Array]
Objective = Callable[[Transformer, Batch], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
"""loss(model, batch) -> (sum of losses, sum of weights, metrics that are sums too). The train loop knows no more."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    name: str = "next_token"
    """Which objective."""
    z_loss: float = 0.0
    """Coefficient of log(Z)^2, which keeps logits from drifting (1e-4 in PaLM); 0: off."""
    chunk: int = 1024
    """Positions whose logits exist at once on a device."""

    def check(self) -> None:
        """Raises UserError for a value out of range, or an objective that there is none of."""
        if self.name not in OBJECTIVES:
            raise UserError(f"objective.name={self.name}: no such objective; {nearest(self.name, OBJECTIVES)} (an experiment file can register one)")
        require(0 <= self.z_loss < math.inf, "objective.z_loss", self.z_loss, "0 (off) or more, e.g. 1e-4")
        require(self.chunk >= 1, "objective.chunk", self.chunk, "at least 1 position")


Builder = Callable[[ObjectiveConfig], Objective]
OBJECTIVES: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Adds an objective: a function of its configuration."""

    def add(builder: Builder) -> Builder:
        OBJECTIVES[name] = builder
        return builder

    return add


@register("next_token")
def next_token(config: ObjectiveConfig) -> Objective:
    """The objective over batches with tokens, targets, weights, segments and positions, each [B, T]."""

    def loss(model: Transformer, batch: Batch):
        tokens, positions, targets, weights = (arrange(batch[name], model.place) for name in ("tokens", "positions", "targets", "weights"))
        x_BTD, routing = model.stream(tokens, positions, batch["segments"], weights)
        total, entropy = linear_cross_entropy(
            x_BTD,
            model.output,
            targets,
            weights,
            model.config,
            model.place,
            z_loss=config.z_loss,
            chunk=config.chunk,
        )
        weight, metrics = jnp.sum(batch["weights"]), {"cross_entropy": entropy}
        if routing is not None:
            loss, sums = router.losses(model.config, routing, weight)
            total, metrics = total + loss, metrics | sums
        return total, weight, metrics

    return loss


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that the configuration names."""
    return OBJECTIVES[config.name](config)
