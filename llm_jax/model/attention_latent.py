"""Multi-head latent attention (DeepSeek-V2, DeepSeek-AI 2024, section 2.1): keys and values of all heads from
one small vector a token.

    latent_BSR, key_rope_BSP = the two parts of x_BSD kv_down; the first normalised, the second rotated
    key of a head   = [nope part of kv_up(latent), key_rope]     (all heads share the rotated part)
    value of a head = value part of kv_up(latent)
    query of a head = [nope, rotated], from the stream, or from a latent of its own

A decoder stores a token's latent and the rotated part of its key. With kv_up absorbed into queries and
results (`absorb_into_queries`, `values`), these two are the key of one head that all queries attend to, and
the latent is its value. The rotated part comes last in a head, and is rotated by halves
(`norm_and_rope.rotate`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from llm_jax.model.attention import Attention
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.norm_and_rope import Norm, Rope, rotate
from llm_jax.model.parametrization import attention_multiplier, residual_std, times
from llm_jax.model.weights import add_bias, gathered, project, sharding_spec, weight

NORM_EPSILON = 1e-6
"""Epsilon of the norms on latents, whatever `model.norm_epsilon` is, as in DeepSeek's code."""


class LatentAttention(Attention):
    """`Attention` whose keys and values are made from latents."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layers: int | None, place: Placement):
        self.config, self.place = config, place
        D, H, K, latent = config.embed, config.heads, config.head_dim, config.latent
        assert K is not None
        R, Q, V, std = latent.kv_rank, latent.query_rank, latent.value_dim, config.init_std
        if Q:
            self.query_down = weight(rngs, config, (D, Q), ("embed", "latent"), std, layers)
            self.query_norm = self.norm(rngs, layers, Q)
            self.query_up = weight(rngs, config, (Q, H, K), ("latent", "heads", "head_dim"), std, layers)
        else:
            self.query = weight(rngs, config, (D, H, K), ("embed", "heads", "head_dim"), std, layers)
        self.kv_down = weight(rngs, config, (D, R + latent.rope_dim), ("embed", "latent"), std, layers)
        self.kv_norm = self.norm(rngs, layers, R)
        self.kv_up = weight(
            rngs, config, (R, H, latent.nope_dim + V), ("latent", "heads", "head_dim"), std, layers
        )
        self.out = weight(
            rngs, config, (H, V, D), ("heads", "head_dim", "embed"), residual_std(config), layers
        )
        if config.bias_qkv:  # on the projections to latents, as in DeepSeek's code
            if Q:
                self.query_down_bias = weight(rngs, config, (Q,), ("latent",), 0, layers)
            self.kv_down_bias = weight(rngs, config, (R + latent.rope_dim,), ("latent",), 0, layers)
        if config.bias_out:
            self.out_bias = weight(rngs, config, (D,), ("embed",), 0, layers)

    def norm(self, rngs: nnx.Rngs, layers: int | None, rank: int) -> Norm:
        """The RMSNorm of a latent of this rank."""
        return Norm(
            self.config,
            rngs,
            layers,
            self.place,
            shape=(rank,),
            dims=("latent",),
            kind="rms",
            epsilon=NORM_EPSILON,
        )

    def heads(self, x_BTD: jax.Array, rope: Rope | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(q_BTHK, k_BSHK, v_BSHV) of some positions, as `Attention.heads` returns them; values may be
        narrower than keys."""
        return self.queries(x_BTD, rope), *self.keys_and_values(*self.latents(x_BTD, rope))

    def queries(self, x_BTD: jax.Array, rope: Rope | None) -> jax.Array:
        """q_BTHK in the compute dtype, the last `rope_dim` of each head rotated."""
        config, place, nope = self.config, self.place, self.config.latent.nope_dim
        if config.latent.query_rank:
            c_BTR = project("BTD,DR->BTR", x_BTD, self.query_down, config, place)
            if config.bias_qkv:
                c_BTR = add_bias(c_BTR, self.query_down_bias, config, place)
            q_BTHK = project("BTR,RHK->BTHK", self.query_norm(c_BTR), self.query_up, config, place)
        else:
            q_BTHK = project("BTD,DHK->BTHK", x_BTD, self.query, config, place)
        assert rope is not None
        q_BTHK = jnp.concatenate([q_BTHK[..., :nope], rotate(q_BTHK[..., nope:], rope)], -1)
        return times(q_BTHK, attention_multiplier(config))

    def latents(self, x_BTD: jax.Array, rope: Rope | None) -> tuple[jax.Array, jax.Array]:
        """(latent_BSR, normalised; key_rope_BSP, rotated), from which keys and values are made."""
        config, R = self.config, self.config.latent.kv_rank
        c_BSR = project("BTD,DR->BTR", x_BTD, self.kv_down, config, self.place)
        if config.bias_qkv:
            c_BSR = add_bias(c_BSR, self.kv_down_bias, config, self.place)
        assert rope is not None
        return self.kv_norm(c_BSR[..., :R]), rotate(c_BSR[..., None, R:], rope)[..., 0, :]

    def keys_and_values(self, latent_BSR: jax.Array, key_rope_BSP: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(k_BSHK, v_BSHV) of all heads, made from `latents`."""
        nope = self.config.latent.nope_dim
        kv_BSHK = project("BSR,RHK->BSHK", latent_BSR, self.kv_up, self.config, self.place)
        shape = (*kv_BSHK.shape[:3], key_rope_BSP.shape[-1])
        every_head = jnp.broadcast_to(key_rope_BSP[:, :, None], shape, out_sharding=sharding_spec(kv_BSHK))
        return jnp.concatenate([kv_BSHK[..., :nope], every_head], -1), kv_BSHK[..., nope:]

    def absorb_into_queries(self, q_BTHK: jax.Array) -> jax.Array:
        """q_BTHC: queries for [latent, key_rope] itself. Scores are unchanged, since q (kv_up latent) = (q
        kv_up) latent."""
        nope = self.config.latent.nope_dim
        up_RHN = gathered(self.kv_up, self.config, self.place)[..., :nope]
        return jnp.concatenate(
            [jnp.einsum("BTHN,RHN->BTHR", q_BTHK[..., :nope], up_RHN), q_BTHK[..., nope:]], -1
        )

    def values(self, found_BTHR: jax.Array) -> jax.Array:
        """out_BTHV from found_BTHR, the weighted sum of latents: the sum of values is the value of the
        sum."""
        up_RHV = gathered(self.kv_up, self.config, self.place)[..., self.config.latent.nope_dim :]
        return jnp.einsum("BTHR,RHV->BTHV", found_BTHR, up_RHV)
