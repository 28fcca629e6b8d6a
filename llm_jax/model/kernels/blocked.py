"""Causal attention in blocks of queries, in plain JAX: each block is multiplied only with the keys that its
mask can let through.

Causal attention needs half of the T² scores, and with a sliding window fewer. Here only the scores of one
block exist at a time. The backward pass computes them again from q, k and the softmax's statistics
(FlashAttention-2, Dao 2023), so no residual has size T².
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.model.attention_mask import Mask, causal
from llm_jax.model.config import ModelConfig
from llm_jax.model.kernels import ChunkKernel
from llm_jax.model.norm_and_rope import softcap

MOST_BLOCKS = 8
"""The most blocks, which are unrolled: with 8, 56 % of the T² scores are computed; more would make the
program longer for little."""
LEAST_BLOCK = 128
"""The least number of queries in a block: smaller products cost more time than they save."""

Block = tuple[slice, slice]
"""Positions of some queries, and of the keys that any of them may see."""


def attend(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BT: jax.Array | None,
    config: ModelConfig,
) -> jax.Array:
    """Blocked attention of one device's rows and heads: out_BTHK (`AttentionKernel.attend`)."""
    return blocked_attention(q_BTHK, k_BSGK, v_BSGK, segments_BT, config.window, config.attention_softcap)


def check(config: ModelConfig, parts: int, platform: str, capability: float) -> None:
    """Raises nothing: this kernel runs every model on every device (`AttentionKernel.check`)."""


def chunk_kernel(config: ModelConfig) -> ChunkKernel:
    """Products of chunks in blocks of queries (`AttentionKernel.chunk_kernel`)."""
    return plain_chunk_kernel(MOST_BLOCKS)


def plain_chunk_kernel(most: int) -> ChunkKernel:
    """The products of chunks in plain JAX, in at most `most` blocks of queries."""
    return ChunkKernel(functools.partial(forward, most=most), functools.partial(backward, most=most))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def blocked_attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BT: jax.Array | None,
    window: int | None,
    cap: float = 0.0,
) -> jax.Array:
    """Attention of one device's rows and heads (H a multiple of G) -> out_BTHK in q's dtype; softmax in
    float32.

    A query sees its own position and those before it, of its own segment (None: all are of one), less than
    `window` back. cap: scores become cap * tanh(scores / cap); 0: they stay.
    """
    return forward(q_BTHK, k_BSGK, v_BSGK, causal(segments_BT, window), cap=cap)[0].astype(q_BTHK.dtype)


def blocks(length: int, window: int | None, keys: int | None = None, most: int = MOST_BLOCKS) -> list[Block]:
    """(queries, keys) of each block: at most `most` blocks of equal size (the last may be smaller), with the
    keys that each needs.

    keys: the number of keys, all before the queries; None: queries and keys are the same positions.

    >>> [(queries.start, queries.stop, keys.start, keys.stop) for queries, keys in blocks(300, 200)]
    [(0, 128, 0, 128), (128, 256, 0, 256), (256, 300, 57, 300)]
    """
    size = max(LEAST_BLOCK, -(-length // most)) if most > 1 else length
    edges = [*range(0, length, size), length]
    if keys is not None:
        return [(slice(start, stop), slice(0, keys)) for start, stop in itertools.pairwise(edges)]
    return [
        (slice(start, stop), slice(0 if window is None else max(0, start - window + 1), stop))
        for start, stop in itertools.pairwise(edges)
    ]


def forward(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    most: int = MOST_BLOCKS,
    cap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Attention and its statistics, both float32: out_BTHK, and lse_BHT, the logarithm of each query's sum of
    exp(scores).

    A query that sees no key has a finite output, and statistics near the least float, so that its weight
    beside others is 0. most: blocks of queries; 1 computes all scores at once. cap: see `blocked_attention`.
    """
    B, T, H, _ = q_BTHK.shape
    q_BGRTK, k_BGSK, v_BGSK = _by_head(q_BTHK, k_BSGK, v_BSGK)
    outs, logs = [], []
    for block in _blocks(q_BTHK, k_BSGK, mask, most):
        s_BGRTS = _scores(q_BGRTK, k_BGSK, mask, block, cap)
        top_BGRT = jnp.max(s_BGRTS, -1)
        exp_BGRTS = jnp.exp(s_BGRTS - top_BGRT[..., None])
        sum_BGRT = jnp.sum(exp_BGRTS, -1)
        out_BGRTK = jnp.einsum(
            "BGRTS,BGSK->BGRTK",
            exp_BGRTS.astype(v_BGSK.dtype),
            v_BGSK[..., block[1], :],
            preferred_element_type=jnp.float32,
        )
        outs.append(out_BGRTK / sum_BGRT[..., None])
        logs.append(top_BGRT + jnp.log(sum_BGRT))
    out_BTHK = jnp.einsum("BGRTK->BTGRK", jnp.concatenate(outs, 3)).reshape(q_BTHK.shape)
    return out_BTHK, jnp.concatenate(logs, 3).reshape(B, H, T)


def backward(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    out_BTHK: jax.Array,
    lse_BHT: jax.Array,
    dout_BTHK: jax.Array,
    most: int = MOST_BLOCKS,
    cap: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v in float32. If `out` and `lse` are over more keys than these, the terms that
    come from these keys."""
    dtype = q_BTHK.dtype
    q_BGRTK, k_BGSK, v_BGSK = _by_head(q_BTHK, k_BSGK, v_BSGK)
    B, G, R, T, K = q_BGRTK.shape
    S = k_BSGK.shape[1]
    log_BGRT = lse_BHT.reshape(B, G, R, T)
    dout_BGRTK = jnp.einsum("BTGRK->BGRTK", dout_BTHK.reshape(B, T, G, R, K))
    # the term of each query's score gradients that is due to the softmax's normalisation
    lost_BTH = jnp.sum(dout_BTHK.astype(jnp.float32) * out_BTHK.astype(jnp.float32), -1)
    lost_BGRT = jnp.einsum("BTGR->BGRT", lost_BTH.reshape(B, T, G, R))
    dq, dk, dv = [], jnp.zeros((B, G, K, S), jnp.float32), jnp.zeros((B, G, K, S), jnp.float32)
    for block in _blocks(q_BTHK, k_BSGK, mask, most):
        queries, keys = block
        s_BGRTS = _scores(q_BGRTK, k_BGSK, mask, block, cap)
        p_BGRTS = jnp.exp(s_BGRTS - log_BGRT[..., queries, None])
        dp_BGRTS = jnp.einsum(
            "BGRTK,BGSK->BGRTS",
            dout_BGRTK[..., queries, :],
            v_BGSK[..., keys, :],
            preferred_element_type=jnp.float32,
        )
        ds_BGRTS = p_BGRTS * (dp_BGRTS - lost_BGRT[..., queries, None])
        if cap:  # tanh's slope from its output; a finite one for masked scores
            ds_BGRTS *= 1 - jnp.square(jnp.maximum(s_BGRTS / cap, -1.0))
        ds_BGRTS = ds_BGRTS.astype(dtype)
        dq.append(
            jnp.einsum(
                "BGRTS,BGSK->BGRTK", ds_BGRTS, k_BGSK[..., keys, :], preferred_element_type=jnp.float32
            )
        )
        # the small operand goes left, where it is copied transposed: see `weights.project`
        dk_BGKS = jnp.einsum(
            "BGRTK,BGRTS->BGKS", q_BGRTK[..., queries, :], ds_BGRTS, preferred_element_type=jnp.float32
        )
        dv_BGKS = jnp.einsum(
            "BGRTK,BGRTS->BGKS",
            dout_BGRTK[..., queries, :],
            p_BGRTS.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        # padded, as .at[].add() inside shard_map crashes the compiler of JAX 0.11
        around = [(0, 0)] * 3 + [(keys.start, S - keys.stop)]
        dk, dv = dk + jnp.pad(dk_BGKS, around), dv + jnp.pad(dv_BGKS, around)
    dq_BTHK = jnp.einsum("BGRTK->BTGRK", jnp.concatenate(dq, 3)).reshape(q_BTHK.shape) * K**-0.5
    dk_BSGK, dv_BSGK = (jnp.einsum("BGKS->BSGK", x) for x in (dk, dv))
    return dq_BTHK, dk_BSGK, dv_BSGK


def _blocks(q_BTHK: jax.Array, k_BSGK: jax.Array, mask: Mask, most: int) -> list[Block]:
    return blocks(q_BTHK.shape[1], mask.window, None if mask.ahead_B is None else k_BSGK.shape[1], most)


def _scores(q_BGRTK: jax.Array, k_BGSK: jax.Array, mask: Mask, block: Block, cap: float) -> jax.Array:
    """Scaled and capped scores of one block, float32 [B, G, R, T, S]; the least number where a query doesn't
    see a key."""
    queries, keys = block
    s_BGRTS = jnp.einsum(
        "BGRTK,BGSK->BGRTS",
        q_BGRTK[..., queries, :],
        k_BGSK[..., keys, :],
        preferred_element_type=jnp.float32,
    )
    return jnp.where(mask(queries, keys)[:, None, None], softcap(s_BGRTS, cap), jnp.finfo(jnp.float32).min)


def _by_head(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Heads before positions, queries scaled and in groups of R that share their keys: BGRTK, BGSK, BGSK."""
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BGRTK = jnp.einsum("BTGRK->BGRTK", (q_BTHK * K**-0.5).reshape(B, T, G, H // G, K))
    return q_BGRTK, jnp.einsum("BSGK->BGSK", k_BSGK), jnp.einsum("BSGK->BGSK", v_BSGK)


def _forward(q_BTHK, k_BSGK, v_BSGK, segments_BT, window, cap):
    out_BTHK, lse_BHT = forward(q_BTHK, k_BSGK, v_BSGK, causal(segments_BT, window), cap=cap)
    out_BTHK, lse_BHT = (checkpoint_name(x, "attention") for x in (out_BTHK.astype(q_BTHK.dtype), lse_BHT))
    return out_BTHK, (q_BTHK, k_BSGK, v_BSGK, segments_BT, out_BTHK, lse_BHT)


def _backward(window, cap, saved, dout_BTHK):
    q_BTHK, k_BSGK, v_BSGK, segments_BT, out_BTHK, lse_BHT = saved
    gradients = backward(
        q_BTHK, k_BSGK, v_BSGK, causal(segments_BT, window), out_BTHK, lse_BHT, dout_BTHK, cap=cap
    )
    return (*(g.astype(q_BTHK.dtype) for g in gradients), None)


blocked_attention.defvjp(_forward, _backward)
