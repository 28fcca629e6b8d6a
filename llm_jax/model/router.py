"""The router of a mixture of experts: the experts that a token is sent to, their weights, and the losses that
keep loads even.

Padding (segment 0) is sent to experts like other tokens, but does not count in losses and loads. A layer's
statistics (`Routing`) are sums over rows of the batch, so losses made from them do not depend on how the
batch is spread over devices.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.model.config import ModelConfig, MoEConfig


class Routing(NamedTuple):
    """Sums over tokens, float32, for each of the P parts into which devices split the batch; layers are
    stacked in front.

    They add up over parts, and over microbatches of a pipeline, so one sum over devices serves all layers.
    """

    load_PE: jax.Array
    """The tokens that were sent to each expert."""
    dropped_PE: jax.Array
    """The tokens that were sent to each expert and dropped (dispatch=capacity)."""
    probability_PE: jax.Array
    """The sum of the tokens' scores for each expert, each token's scores divided by their sum."""
    tokens_P: jax.Array
    """The number of tokens, without padding."""
    balance_P: jax.Array
    """The rows' balance losses, each times the row's weight in the main loss (balance_over=sequence;
    otherwise zeros)."""
    z_P: jax.Array
    """The mean over each row's tokens of log(sum of exp(logits))^2, times the row's weight in the main
    loss."""
    weight_P: jax.Array
    """The sum of the rows' weights: what `balance_P` and `z_P` are divided by for their means."""


def choose(
    logits_BTE: jax.Array, bias_E: jax.Array | None, config: MoEConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(weights_BTk float32, experts_BTk int32, probabilities_BTE float32) from float32 logits.

    DeepSeek-V3 (DeepSeek-AI 2024, equations 12 to 16 and its published code): scores with their bias choose,
    scores without weigh.
    """
    scores_BTE = jax.nn.softmax(logits_BTE) if config.scores == "softmax" else jax.nn.sigmoid(logits_BTE)
    judged_BTE = scores_BTE if bias_E is None else scores_BTE + bias_E
    judged_BTE = jax.lax.stop_gradient(judged_BTE)
    if config.groups > 1:
        grouped = judged_BTE.reshape(*judged_BTE.shape[:-1], config.groups, -1)
        best = jnp.sum(jax.lax.top_k(grouped, 2)[0], -1)
        chosen = jnp.sum(
            jax.nn.one_hot(jax.lax.top_k(best, config.top_groups)[1], config.groups, dtype=bool),
            -2,
            dtype=bool,
        )
        judged_BTE = jnp.where(chosen[..., None], grouped, -jnp.inf).reshape(judged_BTE.shape)
    experts_BTk = jax.lax.top_k(judged_BTE, config.top_k)[1]
    weights_BTk = jnp.take_along_axis(scores_BTE, experts_BTk, -1)
    if config.normalise:
        weights_BTk /= jnp.sum(weights_BTk, -1, keepdims=True) + 1e-20
    probabilities_BTE = (
        scores_BTE / jnp.sum(scores_BTE, -1, keepdims=True) if config.scores == "sigmoid" else scores_BTE
    )
    return weights_BTk * config.scale, experts_BTk, probabilities_BTE


def routing_sums(
    config: MoEConfig,
    logits_BTE: jax.Array,
    probability_BTE: jax.Array,
    sent_BTE: jax.Array,
    counts_BT: jax.Array,
    weights_BT: jax.Array,
    over,
) -> tuple[jax.Array, ...]:
    """The fields of `Routing` for one part, without `dropped_PE`: (load, probability, tokens, balance, z,
    weight).

    sent_BTE: 1 where a token that is not padding was sent to an expert. counts_BT: 0 for padding, else 1.
    over(a): the sum over the devices that have other tokens of these rows.
    """
    counts_BT1 = counts_BT[..., None]
    load_BE, probability_BE = over(jnp.sum(sent_BTE, 1)), over(jnp.sum(probability_BTE * counts_BT1, 1))
    tokens_B, row_B = over(jnp.sum(counts_BT, 1)), over(jnp.sum(weights_BT, 1))
    z_B = over(jnp.sum(jnp.square(jax.nn.logsumexp(logits_BTE, -1)) * counts_BT, 1))
    n_B = jnp.maximum(tokens_B, 1.0)
    balance_B = jnp.zeros_like(z_B)
    if config.balance_over == "sequence":
        balance_B = config.experts / config.top_k * jnp.sum(load_BE * probability_BE, -1) / n_B**2
    return tuple(
        jnp.sum(a, 0, keepdims=True)
        for a in (load_BE, probability_BE, tokens_B, balance_B * row_B, z_B / n_B * row_B, row_B)
    )


def losses(
    config: ModelConfig, routing: Routing, weight: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(the router's term of the sum of losses, float32 []; metrics that are sums).

    routing: stacked over layers. weight: the weight of the main loss (`Loss.weight`), which a step divides
    by: the number of trained tokens, or of pairs. Means over the batch are multiplied by it, so that
    coefficients refer to the mean loss whatever its weights are. The metrics balance_loss and router_z_loss
    are without coefficients, means over layers.
    """
    moe = config.moe
    load_LE, dropped_LE, probability_LE, tokens_L, balance_L, z_L, weight_L = (jnp.sum(a, 1) for a in routing)
    of_rows_L = weight / jnp.where(weight_L > 0, weight_L, 1.0)
    balance_L, z_L = balance_L * of_rows_L, z_L * of_rows_L
    if moe.balance_over == "batch":
        n_L = jnp.maximum(tokens_L, 1.0)
        balance_L = moe.experts / moe.top_k * jnp.sum(load_LE * probability_LE, -1) / n_L**2 * weight
    loss = moe.balance_loss * jnp.sum(balance_L) + moe.z_loss * jnp.sum(z_L)
    return loss, {
        "balance_loss": jnp.mean(balance_L),
        "router_z_loss": jnp.mean(z_L),
        "expert_load": load_LE,
        "expert_dropped": dropped_LE,
    }


def load_metrics(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Metrics of a step from its sums: `expert_load_max`, the largest load in multiples of its layer's mean,
    and `expert_dropped`, the fraction of tokens sent to experts that was dropped."""
    load_LE, dropped_LE = sums["expert_load"], sums["expert_dropped"]
    mean_L = jnp.maximum(jnp.mean(load_LE, -1), 1e-9)
    return {
        "expert_load_max": jnp.max(jnp.max(load_LE, -1) / mean_L),
        "expert_dropped": jnp.sum(dropped_LE) / jnp.maximum(jnp.sum(load_LE), 1.0),
    }


def bias_change(config: MoEConfig, load_LE: jax.Array) -> jax.Array:
    """The change of the biases after a step with these loads (Wang et al. 2024, algorithm 1): up where a load
    is below its layer's mean."""
    return config.bias_rate * jnp.sign(jnp.mean(load_LE, -1, keepdims=True) - load_LE)
