"""`jax.nn.dot_product_attention` in plain XLA: runs on any backend; all scores [B, H, T, S] exist at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.errors import UserError
from llm_jax.model.attention_mask import causal
from llm_jax.model.config import ModelConfig
from llm_jax.model.kernels import WHOLE_SEQUENCE, ChunkKernel, blocked
from llm_jax.model.norm_and_rope import softcap


def attend(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BT: jax.Array | None,
    config: ModelConfig,
) -> jax.Array:
    """`jax.nn.dot_product_attention` of one device's rows and heads: out_BTHK (`AttentionKernel.attend`).
    Scores and softmax are in `config.softmax_dtype`."""
    T = q_BTHK.shape[1]
    dtype = jnp.dtype(config.softmax_dtype)
    if dtype == jnp.float32 or q_BTHK.dtype == dtype:  # jax.nn computes scores and softmax in float32
        q, k, v = q_BTHK, k_BSGK, v_BSGK
    else:
        q, k, v = (x.astype(dtype) for x in (q_BTHK, k_BSGK, v_BSGK))
    mask_BTS = causal(segments_BT, config.window)(slice(0, T), slice(0, T))
    if config.attention_softcap:
        out_BTHK = soft_capped_attention(q, k, v, mask_BTS, config.attention_softcap)
    else:
        out_BTHK = jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None], implementation="xla")
    return checkpoint_name(out_BTHK.astype(q_BTHK.dtype), "attention")


def soft_capped_attention(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask_BTS: jax.Array, cap: float
) -> jax.Array:
    """out_BTHK with scores cap * tanh(scores / cap), for which `jax.nn.dot_product_attention` has no
    argument."""
    K = q_BTHK.shape[-1]
    q_BTGRK = q_BTHK.reshape(*q_BTHK.shape[:2], k_BSGK.shape[2], -1, K)
    s_BGRTS = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32) * K**-0.5
    p_BGRTS = jax.nn.softmax(
        jnp.where(mask_BTS[:, None, None], softcap(s_BGRTS, cap), jnp.finfo(jnp.float32).min)
    )
    return jnp.einsum("BGRTS,BSGK->BTGRK", p_BGRTS.astype(v_BSGK.dtype), v_BSGK).reshape(q_BTHK.shape)


def check(config: ModelConfig, parts: int, platform: str, capability: float) -> None:
    """Raises UserError for a softmax dtype over a split sequence (`AttentionKernel.check`)."""
    if parts > 1 and config.softmax_dtype != "float32":
        raise UserError(
            f"model.softmax_dtype={config.softmax_dtype}: attention over a sequence that the layout "
            "splits has its softmax in float32; "
            f"use that, or {WHOLE_SEQUENCE}"
        )


def chunk_kernel(config: ModelConfig) -> ChunkKernel:
    """Products of chunks with all scores of a chunk of queries at once (`AttentionKernel.chunk_kernel`)."""
    return blocked.plain_chunk_kernel(1)
