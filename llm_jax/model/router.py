"""The router of a mixture of experts: which experts a token is sent to, with what weights, and what keeps their loads even.

A token counts in losses and loads unless it is padding (segment 0). What a layer tells of its routing are sums for each row of the batch,
`Routing`: so losses made of them are the same however the batch is cut into microbatches and spread over devices.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.model.config import ModelConfig, MoEConfig


class Routing(NamedTuple):
    """Sums over the tokens of each row, float32; a scan over layers stacks them along a first dim."""

    load_BE: jax.Array
    """Tokens that were sent to each expert."""
    dropped_BE: jax.Array
    """Those of them that found no room (dispatch=capacity)."""
    probability_BE: jax.Array
    """Scores, each token's divided by their sum."""
    z_B: jax.Array
    """log(sum of exp(logits))^2."""
    tokens_B: jax.Array
    """Tokens that count."""


def choose(logits_BTE: jax.Array, bias_E: jax.Array | None, config: MoEConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(weights_BTk float32, experts_BTk int32, probabilities_BTE float32) from float32 logits.

    DeepSeek-V3 (DeepSeek-AI 2024, equations 12 to 16 and its published code): scores with their bias choose, scores without weigh.
    """
    scores_BTE = jax.nn.softmax(logits_BTE) if config.scores == "softmax" else jax.nn.sigmoid(logits_BTE)
    judged_BTE = scores_BTE if bias_E is None else scores_BTE + bias_E
    judged_BTE = jax.lax.stop_gradient(judged_BTE)
    if config.groups > 1:
        grouped = judged_BTE.reshape(*judged_BTE.shape[:-1], config.groups, -1)
        best = jnp.sum(jax.lax.top_k(grouped, 2)[0], -1)
        chosen = jnp.sum(jax.nn.one_hot(jax.lax.top_k(best, config.top_groups)[1], config.groups, dtype=bool), -2, dtype=bool)
        judged_BTE = jnp.where(chosen[..., None], grouped, -jnp.inf).reshape(judged_BTE.shape)
    experts_BTk = jax.lax.top_k(judged_BTE, config.top_k)[1]
    weights_BTk = jnp.take_along_axis(scores_BTE, experts_BTk, -1)
    if config.normalise:
        weights_BTk /= jnp.sum(weights_BTk, -1, keepdims=True) + 1e-20
    probabilities_BTE = scores_BTE / jnp.sum(scores_BTE, -1, keepdims=True) if config.scores == "sigmoid" else scores_BTE
    return weights_BTk * config.scale, experts_BTk, probabilities_BTE


def losses(config: ModelConfig, routing: Routing, weights_BT: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(what the router adds to the sum of losses, float32 []; metrics that are sums).

    routing: stacked over layers. weights_BT: the tokens' weights in the main loss. A mean over a row's tokens counts with the row's weight
    (balance_over=batch: that of the batch with the batch's), so that a coefficient is of the mean loss, whatever the weights are. The
    metrics balance_loss and router_z_loss are without coefficients, means over layers.
    """
    moe, (load_LBE, dropped_LBE, probability_LBE, z_LB, tokens_LB) = config.moe, routing
    row_B = jnp.sum(weights_BT, -1)
    n_LB = jnp.maximum(tokens_LB, 1.0)
    if moe.balance_over == "sequence":
        share, mean = load_LBE / (moe.top_k * n_LB[..., None]), probability_LBE / n_LB[..., None]
        balance_L = jnp.sum(jnp.sum(share * mean, -1) * row_B, -1)
    else:
        n_L = jnp.maximum(jnp.sum(tokens_LB, -1), 1.0)[:, None]
        share, mean = jnp.sum(load_LBE, 1) / (moe.top_k * n_L), jnp.sum(probability_LBE, 1) / n_L
        balance_L = jnp.sum(share * mean, -1) * jnp.sum(row_B)
    balance_L *= moe.experts
    z_L = jnp.sum(z_LB / n_LB * row_B, -1)
    loss = moe.balance_loss * jnp.sum(balance_L) + moe.z_loss * jnp.sum(z_L)
    sums = {"balance_loss": jnp.mean(balance_L), "router_z_loss": jnp.mean(z_L)}
    return loss, sums | {"expert_load": jnp.sum(load_LBE, 1), "expert_dropped": jnp.sum(dropped_LBE, 1)}


def load_metrics(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """From the sums over a step: `expert_load_max`, the largest load in multiples of its layer's mean; `expert_dropped`, the part of all
    that was sent which found no room."""
    load_LE, dropped_LE = sums["expert_load"], sums["expert_dropped"]
    mean_L = jnp.maximum(jnp.mean(load_LE, -1), 1e-9)
    return {"expert_load_max": jnp.max(jnp.max(load_LE, -1) / mean_L), "expert_dropped": jnp.sum(dropped_LE) / jnp.maximum(jnp.sum(load_LE), 1.0)}


def bias_change(config: MoEConfig, load_LE: jax.Array) -> jax.Array:
    """What is added to the biases after a step with these loads (Wang et al. 2024, algorithm 1): up where below the layer's mean."""
    return config.bias_rate * jnp.sign(jnp.mean(load_LE, -1, keepdims=True) - load_LE)
