"""The transformer once more, layer by layer and straight from the papers' formulas, to compare with: no scan,
no kernels, no layouts.

Run under `jax.enable_x64` it is the float64 truth. Dense feed-forward, RMSNorm and rotary positions only.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.model.config import ModelConfig


def plain_logits(c: ModelConfig, weights: dict, tokens: Any, segments: Any = None) -> jax.Array:
    """Logits [B, T, V] of a resolved configuration; `weights`: the model's own, as nested dicts."""
    x = weights["embedding"][tokens] * c.embedding_scale
    positions = jnp.arange(tokens.shape[1])
    for layer in range(c.layers):
        w = jax.tree.map(lambda a, i=layer: a[i], weights["blocks"])
        before, after = c.norm_placement in ("before", "both"), c.norm_placement in ("after", "both")
        out = "_out" if c.norm_placement == "both" else ""

        def half(x, name, f, w=w, before=before, after=after, out=out):
            y = f(norm(c, x, w[f"{name}_norm"]) if before else x)
            return norm(c, y, w[f"{name}{out}_norm"]) if after else y

        windowed = c.window is not None and (c.window_layers is None or layer in c.window_layers)
        a = half(
            x,
            "attention",
            lambda y, w=w, windowed=windowed: attention(c, y, w["attention"], windowed, positions, segments),
        )
        m = half(x if c.parallel_blocks else x + a, "mlp", lambda y, w=w: feed_forward(y, w["mlp"]))
        x = x + a + m
    x = norm(c, x, weights["final_norm"])
    return x @ (weights["embedding"] if c.tied_embeddings else weights["head"]).T


def norm(
    c: ModelConfig, x: jax.Array, w: dict, axes: tuple[int, ...] = (-1,), epsilon: float | None = None
) -> jax.Array:
    y = x / jnp.sqrt(jnp.mean(x**2, axes, keepdims=True) + (epsilon or c.norm_epsilon))
    return y * (1 + w["scale"] if c.norm_centred else w["scale"])


def feed_forward(x: jax.Array, w: dict) -> jax.Array:
    return (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"]


def attention(
    c: ModelConfig, x: jax.Array, w: dict, windowed: bool, positions: jax.Array, segments: Any
) -> jax.Array:
    q, k, v = (
        latent_heads(c, x, w, positions) if c.latent.kv_rank else plain_heads(c, x, w, windowed, positions)
    )
    k, v = (jnp.repeat(a, c.heads // a.shape[2], 2) for a in (k, v))
    scores = jnp.einsum("BTHK,BSHK->BHTS", q, k) * (c.attention_scale or c.head_dim**-0.5)
    if c.attention_softcap:
        scores = c.attention_softcap * jnp.tanh(scores / c.attention_softcap)
    i, j = positions[:, None], positions[None]
    allowed = (j <= i) & (i - j < (c.window if windowed else len(positions)))
    allowed = allowed[None] if segments is None else allowed & (segments[:, :, None] == segments[:, None])
    probabilities = jax.nn.softmax(jnp.where(allowed[:, None], scores, -jnp.inf))
    return jnp.einsum("BHTS,BSHV,HVD->BTD", probabilities, v, w["out"])


def plain_heads(
    c: ModelConfig, x: jax.Array, w: dict, windowed: bool, positions: jax.Array
) -> tuple[jax.Array, ...]:
    q, k, v = (jnp.einsum("BTD,DHK->BTHK", x, w[name]) for name in ("query", "key", "value"))
    if c.qk_norm == "head":
        q, k = norm(c, q, w["query_norm"]), norm(c, k, w["key_norm"])
    local = windowed and c.rope_theta_window is not None
    part = int(c.head_dim * c.rope_fraction)
    q, k = (jnp.concatenate([rotated(c, a[..., :part], positions, local), a[..., part:]], -1) for a in (q, k))
    return q, k, v


def latent_heads(c: ModelConfig, x: jax.Array, w: dict, positions: jax.Array) -> tuple[jax.Array, ...]:
    """DeepSeek-V2, equations 9 to 19."""
    n, R = c.latent.nope_dim, c.latent.kv_rank
    if c.latent.query_rank:
        q_latent = x @ w["query_down"] + (w["query_down_bias"] if c.bias_qkv else 0)
        q = jnp.einsum("BTR,RHK->BTHK", norm(c, q_latent, w["query_norm"], epsilon=1e-6), w["query_up"])
    else:
        q = jnp.einsum("BTD,DHK->BTHK", x, w["query"])
    down = x @ w["kv_down"] + (w["kv_down_bias"] if c.bias_qkv else 0)
    kv = jnp.einsum("BTR,RHK->BTHK", norm(c, down[..., :R], w["kv_norm"], epsilon=1e-6), w["kv_up"])
    key_rope = rotated(c, down[:, :, None, R:], positions, False)
    k = [jnp.concatenate([kv[:, :, h, :n], key_rope[:, :, 0]], -1) for h in range(c.heads)]
    return (
        jnp.concatenate([q[..., :n], rotated(c, q[..., n:], positions, False)], -1),
        jnp.stack(k, 2),
        kv[..., n:],
    )


def rotated(c: ModelConfig, x: jax.Array, positions: jax.Array, local: bool) -> jax.Array:
    """Each pair (i, i + K/2) as a complex number, turned."""
    K = x.shape[-1]
    s = c.rope_scaling
    theta = c.rope_theta_window if local else c.rope_theta
    frequency = jnp.asarray([theta ** (-2 * i / K) for i in range(K // 2)])
    size = 1.0
    if s.kind == "linear" and not local:
        frequency = frequency / s.factor
    if s.kind == "yarn" and not local:  # Peng et al. 2023, equations 22 to 25
        dims = [
            K * math.log(s.original_positions / (b * 2 * math.pi)) / (2 * math.log(theta))
            for b in (s.beta_fast, s.beta_slow)
        ]
        low, high = (math.floor(dims[0]), math.ceil(dims[1])) if s.truncate else dims
        low, high = max(low, 0), min(high, K - 1)
        ramp = jnp.asarray([min(max((i - low) / max(high - low, 0.001), 0), 1) for i in range(K // 2)])
        frequency = frequency * (1 - ramp) + frequency / s.factor * ramp
        size = s.attention_factor or 0.1 * math.log(s.factor) + 1
    turn = size * jnp.exp(1j * positions[:, None] * frequency)[None, :, None]
    turned = (x[..., : K // 2] + 1j * x[..., K // 2 :]) * turn
    return jnp.concatenate([turned.real, turned.imag], -1)
