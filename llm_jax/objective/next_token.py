"""Next-token prediction: the mean cross-entropy of each token given those before it in its document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llm_jax.errors import UserError, nearest
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


def next_token(config: ObjectiveConfig) -> Objective:
    """The objective over batches with tokens, targets, weights, segments and positions, each [B, T]."""

    def loss(model: Transformer, batch: Batch):
        x_BTD = model.hidden(batch["tokens"], batch["positions"], batch["segments"])
        total, entropy = linear_cross_entropy(
            x_BTD,
            model.head_weight(),
            batch["targets"],
            batch["weights"],
            softcap=model.config.logit_softcap,
            z_loss=config.z_loss,
            chunk=config.chunk,
            logits_dtype=model.config.logits_dtype,
            place=model.place,
        )
        return total, jnp.sum(batch["weights"]), {"cross_entropy": entropy}

    return loss


OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {"next_token": next_token}


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that the configuration names; UserError if there is none."""
    if config.name not in OBJECTIVES:
        raise UserError(f"objective.name={config.name}: no such objective; {nearest(config.name, OBJECTIVES)}")
    return OBJECTIVES[config.name](config)
