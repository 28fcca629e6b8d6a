"""Norms and the rotary embedding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llm_jax.model.config import ModelConfig, RopeScaling
from llm_jax.model.dims import Placement
from llm_jax.model.weights import gathered, weight

Rope = tuple[jax.Array, jax.Array]
"""(cos, sin) of every rotation, float32 [B, T, pairs]."""


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last dims, in float32, with a scale (LayerNorm: and a bias).

    With `norm_centred` the scale is 1 + the weight, which starts at 0. shape, dims: of the scale; None: the
    stream's width. kind: "rms" or "layer"; None: `config.norm`. epsilon: None for `config.norm_epsilon`.
    """

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        layers: int | None,
        place: Placement,
        *,
        shape=None,
        dims=None,
        kind=None,
        epsilon=None,
    ):
        shape, dims = shape or (config.embed,), dims or ("embed",)
        self.config, self.place, self.kind, self.epsilon = (
            config,
            place,
            kind or config.norm,
            epsilon or config.norm_epsilon,
        )
        self.scale = weight(rngs, config, shape, dims, 0 if config.norm_centred else None, layers)
        self.bias = weight(rngs, config, shape, dims, 0, layers) if self.kind == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dims of x that `scale` has; returns x's shape and dtype."""
        scale = gathered(self.scale, self.config, self.place, "float32")
        axis = tuple(range(-scale.ndim, 0))
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis, keepdims=True) + self.epsilon)
        y = y * (1 + scale if self.config.norm_centred else scale)
        if self.bias is not None:
            y = y + gathered(self.bias, self.config, self.place, "float32")
        return y.astype(x.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Rotations per token in radians, float32 [head_dim / 2] (Su et al. 2021), scaled for longer contexts.

    Computed by NumPy in float32, in the order of operations that open models were trained with: XLA's power
    may be off by ten units in the last place, which shows in the logits at far positions.
    """
    pair = np.arange(head_dim // 2, dtype=np.float32)
    frequency = np.float32(1) / np.float32(theta) ** (2 * pair / np.float32(head_dim))
    if scaling.kind in ("none", "linear"):
        return frequency / np.float32(scaling.factor) if scaling.kind == "linear" else frequency
    if scaling.kind == "llama3":  # a ramp linear in the number of turns over the original context
        turns = scaling.original_positions * frequency / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    else:  # yarn: a ramp linear in the pair's index, from the pair that turns beta_fast times to beta_slow

        def pair_that_turns(times: float) -> float:
            return (
                head_dim
                * math.log(scaling.original_positions / (times * 2 * math.pi))
                / (2 * math.log(theta))
            )

        first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
        if scaling.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        keep = 1 - np.clip((pair - first) / (last - first or 0.001), 0.0, 1.0)
    return (frequency / scaling.factor * (1 - keep) + frequency * keep).astype(np.float32)


def rope_tables(config: ModelConfig, positions_BT: jax.Array) -> Rope:
    """(cos, sin) of every rotation, float32 [B, T, rotated_dim / 2], for layers with this configuration
    (`ModelConfig.of_layer`)."""
    assert config.window_layers is None, (
        "layers differ: pass the configuration of one layer (ModelConfig.of_layer)"
    )
    theta, scaling = config.rope_theta, config.rope_scaling
    if config.window is not None and config.rope_theta_window is not None:
        theta, scaling = config.rope_theta_window, RopeScaling()
    angles = positions_BT[..., None].astype(jnp.float32) * rope_frequencies(
        config.rotated_dim, theta, scaling
    )
    sharper = 1.0  # multiplies queries and keys each
    if scaling.kind == "yarn":
        sharper = (
            0.1 * math.log(scaling.factor) + 1
            if scaling.attention_factor is None
            else scaling.attention_factor
        )
    return jnp.cos(angles) * sharper, jnp.sin(angles) * sharper


def rotate(x_BTHK: jax.Array, tables: Rope) -> jax.Array:
    """Applies rotary embeddings: the first half of each head is rotated against the second (the Llama/NeoX
    pairing).

    If there are rotations for fewer pairs than a head has, only the first part of the head is rotated.
    """
    rotated = 2 * tables[0].shape[-1]
    if rotated < x_BTHK.shape[-1]:
        return jnp.concatenate([rotate(x_BTHK[..., :rotated], tables), x_BTHK[..., rotated:]], axis=-1)
    cos, sin = (t[:, :, None, :] for t in tables)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(
        x_BTHK.dtype
    )


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap), or x where cap is 0 (Gemma 2)."""
    return cap * jnp.tanh(x / cap) if cap else x
