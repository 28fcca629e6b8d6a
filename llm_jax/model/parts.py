"""The small parts that every block is made of: norms and the rotary embedding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from llm_jax.model.config import ModelConfig, RopeScaling
from llm_jax.model.dims import Placement
from llm_jax.model.weights import compute, weight

Rope = tuple[jax.Array, jax.Array]
"""(cos, sin) of every rotation, float32 [B, T, pairs]."""


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last dim, in float32, with a scale (LayerNorm: and a bias)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layers: int | None, place: Placement, *, shape=None, dims=None, kind=None):
        shape, dims = shape or (config.embed,), dims or ("embed",)
        self.config, self.place, self.kind = config, place, kind or config.norm
        self.scale = weight(rngs, config, shape, dims, None, layers)
        self.bias = weight(rngs, config, shape, dims, 0, layers) if self.kind == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dims of x that `scale` has; returns x's shape and dtype."""
        scale = compute(self.scale, self.config, self.place, "float32")
        axis = tuple(range(-scale.ndim, 0))
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis, keepdims=True) + self.config.norm_epsilon)
        y = y * scale
        if self.bias is not None:
            y = y + compute(self.bias, self.config, self.place, "float32")
        return y.astype(x.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> jax.Array:
    """Rotations per token in radians, float32 [head_dim / 2] (Su et al. 2021), scaled for longer contexts."""
    pair = jnp.arange(head_dim // 2, dtype=jnp.float32)
    frequency = 1.0 / theta ** (2 * pair / head_dim)
    if scaling.kind == "none":
        return frequency
    if scaling.kind == "llama3":  # a ramp linear in the number of turns over the original context
        turns = scaling.original_positions * frequency / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    else:  # yarn: a ramp linear in the pair's index, between those that turn beta_fast and beta_slow times

        def pair_that_turns(times: float) -> float:
            return head_dim * math.log(scaling.original_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

        first = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
        last = min(math.ceil(pair_that_turns(scaling.beta_slow)), head_dim - 1)
        keep = 1 - jnp.clip((pair - first) / max(last - first, 0.001), 0.0, 1.0)
    return frequency * (keep + (1 - keep) / scaling.factor)


def rope_tables(config: ModelConfig, positions_BT: jax.Array) -> Rope:
    """(cos, sin) of every rotation, float32 [B, T, head_dim / 2]; made once and used by all layers."""
    assert config.head_dim is not None
    scaling = config.rope_scaling
    angles = positions_BT[..., None].astype(jnp.float32) * rope_frequencies(config.head_dim, config.rope_theta, scaling)
    sharper = 0.1 * math.log(scaling.factor) + 1 if scaling.kind == "yarn" else 1.0  # on queries and keys each
    return jnp.cos(angles) * sharper, jnp.sin(angles) * sharper


def rotate(x_BTHK: jax.Array, tables: Rope) -> jax.Array:
    """Applies rotary embeddings: the first half of each head is rotated against the second (the Llama/NeoX pairing)."""
    cos, sin = (t[:, :, None, :] for t in tables)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHK.dtype)
