"""What heads look at: the weights of attention, as the model's kernels have them but never show, and scores that sum up a head.

The weights are made again in plain JAX from the queries and keys that go into the kernel, as a whole [B, H, T, S] array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.model.attention_mask import causal
from llm_jax.model.config import ModelConfig


def attention_weights(
    q_BTHK: jax.Array, k_BSGK: jax.Array, config: ModelConfig, window: int | None, segments_BT: jax.Array | None = None
) -> jax.Array:
    """softmax of the scaled, capped and masked scores, float32 [B, H, T, S]; every row sums to 1.

    Queries are as `Attention.heads` gives them: normalised, rotated, and scaled by whatever differs from head_dim^-0.5.
    """
    B, T, H, K = q_BTHK.shape
    q_BTGRK = q_BTHK.reshape(B, T, k_BSGK.shape[2], -1, K)
    s_BGRTS = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32) * K**-0.5
    if config.attention_softcap:
        s_BGRTS = config.attention_softcap * jnp.tanh(s_BGRTS / config.attention_softcap)
    mask_BTS = causal(segments_BT, window)(slice(0, T), slice(0, T))
    return jax.nn.softmax(jnp.where(mask_BTS[:, None, None], s_BGRTS, -jnp.inf)).reshape(B, H, T, T)


def weighted_values(weights_BHTS: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """What a kernel gives: out_BTHK, float32."""
    B, H, T, S = weights_BHTS.shape
    w_BGRTS = weights_BHTS.reshape(B, v_BSGK.shape[2], -1, T, S)
    return jnp.einsum("BGRTS,BSGK->BTGRK", w_BGRTS, v_BSGK.astype(jnp.float32)).reshape(B, T, H, -1)


class HeadScores(NamedTuple):
    """Of every head of a layer, arrays [H]; or of all layers, [L, H]. Means over positions."""

    entropy: Any
    """-sum of p ln p over the keys, in nats: exp of it is how many tokens a head looks at."""
    previous: Any
    """The weight on the token before."""
    first: Any
    """The weight on the first token of the text: where heads look that have nothing to look for (an attention sink, Xiao et al. 2023)."""


FROM = 2
"""Scores are means over positions from this on: before it the token before is the first one, or there is none."""


def head_scores(weights_HTS: jax.Array, length: int) -> HeadScores:
    """The scores of a text of `length` tokens, which further ones may follow as padding. A text of fewer than 3 tokens has none: NaN."""
    T = weights_HTS.shape[1]
    i_T = jnp.arange(T)
    counts_T = (i_T >= FROM) & (i_T < length)
    mean = lambda x_HT: jnp.sum(jnp.where(counts_T, x_HT, 0.0), -1) / jnp.sum(counts_T)  # noqa: E731
    entropy_HT = -jnp.sum(jax.scipy.special.xlogy(weights_HTS, weights_HTS), -1)
    before_HT = jnp.take_along_axis(weights_HTS, jnp.maximum(i_T - 1, 0)[None, :, None], -1)[..., 0]
    return HeadScores(mean(entropy_HT), mean(before_HT), mean(weights_HTS[..., 0]))


def even_scores(length: int) -> HeadScores:
    """What a head would score that looks at all before it alike, whatever it is: what the others are to be compared with."""
    seen = np.arange(FROM, length) + 1.0
    if not len(seen):
        return HeadScores(*[np.float64("nan")] * 3)
    return HeadScores(np.mean(np.log(seen)), np.mean(1 / seen), np.mean(1 / seen))


def induction_score(weights_BHTS: jax.Array, start: int, repeated: int) -> jax.Array:
    """[H]: in rows where `repeated` random tokens from position `start` on come a second time right after: the mean weight, over the second
    time, on the token that followed the same token the first time. That is what came next, and a head that finds it can foretell it
    ("prefix matching", Olsson et al. 2022)."""
    i_R = start + repeated + jnp.arange(repeated)
    weights_BHRS = weights_BHTS[:, :, i_R]
    return jnp.mean(jnp.take_along_axis(weights_BHRS, (i_R - repeated + 1)[None, None, :, None], -1), (0, 2, 3))


def quantised(weights_HTS: jax.Array) -> jax.Array:
    """Weights as whole numbers of 1/255, uint8: what the page shows, exact to 0.002."""
    return jnp.round(255 * weights_HTS).astype(jnp.uint8)
