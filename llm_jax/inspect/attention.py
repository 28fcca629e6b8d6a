"""Attention weights, which the model's kernels compute but don't return, and scores that summarise a head.

The weights are recomputed in plain JAX from the queries and keys that go into the kernel, as a full [B, H, T,
S] array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.model.attention_mask import causal
from llm_jax.model.config import ModelConfig


def attention_weights(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    config: ModelConfig,
    window: int | None,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """Softmax of the scaled, capped and masked scores, float32 [B, H, T, S]. Every row sums to 1.

    q_BTHK, k_BSGK: as `Attention.heads` returns them: normalised, rotated, queries scaled by the ratio of the
    model's scale to head_dim^-0.5. window: keys that a query sees, itself included; None: all. segments_BT:
    documents of packed rows.
    """
    B, T, H, K = q_BTHK.shape
    q_BTGRK = q_BTHK.reshape(B, T, k_BSGK.shape[2], -1, K)
    s_BGRTS = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32) * K**-0.5
    if config.attention_softcap:
        s_BGRTS = config.attention_softcap * jnp.tanh(s_BGRTS / config.attention_softcap)
    mask_BTS = causal(segments_BT, window)(slice(0, T), slice(0, T))
    return jax.nn.softmax(jnp.where(mask_BTS[:, None, None], s_BGRTS, -jnp.inf)).reshape(B, H, T, T)


def apply_weights(weights_BHTS: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """The output out_BTHK, float32, that an attention kernel returns for these weights."""
    B, H, T, S = weights_BHTS.shape
    w_BGRTS = weights_BHTS.reshape(B, v_BSGK.shape[2], -1, T, S)
    return jnp.einsum("BGRTS,BSGK->BTGRK", w_BGRTS, v_BSGK.astype(jnp.float32)).reshape(B, T, H, -1)


class HeadScores(NamedTuple):
    """Scores of every head of a layer, arrays [H], or of all layers, [L, H]. Means over positions."""

    entropy: Any
    """Entropy of the weights over the keys, in nats: its exponential is the effective number of tokens that a
    head attends to."""
    previous: Any
    """The weight on the previous token."""
    first: Any
    """The weight on the first token of the text, where heads put weight that they have no use for (an
    attention sink, Xiao et al. 2023)."""


FIRST_SCORED = 2
"""The first position that scores are means over. At earlier ones the previous token is the first one, or
missing."""


def head_scores(weights_HTS: jax.Array, length: int) -> HeadScores:
    """Scores of the heads of one layer, from weights [H, T, T] whose first `length` positions count; the rest
    is padding. NaN below 3 tokens."""
    T = weights_HTS.shape[1]
    i_T = jnp.arange(T)
    counts_T = (i_T >= FIRST_SCORED) & (i_T < length)
    mean = lambda x_HT: jnp.sum(jnp.where(counts_T, x_HT, 0.0), -1) / jnp.sum(counts_T)  # noqa: E731
    entropy_HT = -jnp.sum(jax.scipy.special.xlogy(weights_HTS, weights_HTS), -1)
    before_HT = jnp.take_along_axis(weights_HTS, jnp.maximum(i_T - 1, 0)[None, :, None], -1)[..., 0]
    return HeadScores(mean(entropy_HT), mean(before_HT), mean(weights_HTS[..., 0]))


def uniform_scores(length: int) -> HeadScores:
    """Scores of a head with uniform attention over a text of `length` tokens, for comparison. NaN below 3
    tokens."""
    seen = np.arange(FIRST_SCORED, length) + 1.0
    if not len(seen):
        return HeadScores(*[np.float64("nan")] * 3)
    return HeadScores(np.mean(np.log(seen)), np.mean(1 / seen), np.mean(1 / seen))


def induction_score(weights_BHTS: jax.Array, start: int, repeated: int) -> jax.Array:
    """Induction scores [H] ("prefix matching", Olsson et al. 2022).

    Each row has `repeated` random tokens from position `start`, then the same tokens again. The score is the
    mean weight, over the second half, on the token that followed the query's token in the first half: a head
    that attends there can predict the next token.
    """
    i_R = start + repeated + jnp.arange(repeated)
    weights_BHRS = weights_BHTS[:, :, i_R]
    return jnp.mean(
        jnp.take_along_axis(weights_BHRS, (i_R - repeated + 1)[None, None, :, None], -1), (0, 2, 3)
    )


def quantise(weights_HTS: jax.Array) -> jax.Array:
    """Weights rounded to multiples of 1/255, as uint8: exact to 0.002."""
    return jnp.round(255 * weights_HTS).astype(jnp.uint8)
