"""Causal self-attention with grouped-query heads, packed documents and a choice of kernels.

A kernel is a function of one device's arrays: `kernel(q_BTHK, k_BSGK, v_BSGK, segments_BT, config) -> out_BTHK`.
It runs inside `Placement.local`, so the fused ones see plain local arrays whatever the layout. It names its output
"attention" for remat, and with it whatever its backward pass needs besides: named outside again, it would be kept twice.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from llm_jax.errors import UserError
from llm_jax.model import attention_blocked as blocked
from llm_jax.model.attention_blocked import may_attend
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.parts import Norm, rotate
from llm_jax.model.weights import add_bias, project, weight

Q_DIMS = ("batch", "sequence", "heads", "head_dim")
KV_DIMS = ("batch", "keys", "kv_heads", "head_dim")


class Attention(nnx.Module):
    """Projections to queries, keys and values, attention, and the projection back into the stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layers: int | None, place: Placement):
        self.config, self.place = config, place
        D, H, G, K = config.embed, config.heads, config.kv_heads, config.head_dim
        assert G is not None
        assert K is not None
        std = config.init_std
        self.query = weight(rngs, config, (D, H, K), ("embed", "heads", "head_dim"), std, layers)
        self.key = weight(rngs, config, (D, G, K), ("embed", "kv_heads", "head_dim"), std, layers)
        self.value = weight(rngs, config, (D, G, K), ("embed", "kv_heads", "head_dim"), std, layers)
        # GPT-2's scale: 2 layers projections add into the stream, so each gets 1 / sqrt(2 layers) of the variance
        self.out = weight(rngs, config, (H, K, D), ("heads", "head_dim", "embed"), std / (2 * config.layers) ** 0.5, layers)
        if config.bias_qkv:
            self.query_bias = weight(rngs, config, (H, K), ("heads", "head_dim"), 0, layers)
            self.key_bias = weight(rngs, config, (G, K), ("kv_heads", "head_dim"), 0, layers)
            self.value_bias = weight(rngs, config, (G, K), ("kv_heads", "head_dim"), 0, layers)
        if config.bias_out:
            self.out_bias = weight(rngs, config, (D,), ("embed",), 0, layers)
        if config.qk_norm != "none":
            by_head = config.qk_norm == "head"
            shapes = [((K,), ("head_dim",))] * 2 if by_head else [((H, K), ("heads", "head_dim")), ((G, K), ("kv_heads", "head_dim"))]
            self.query_norm, self.key_norm = (Norm(config, rngs, layers, place, shape=shape, dims=dims, kind="rms") for shape, dims in shapes)

    def __call__(self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array] | None, segments_BT: jax.Array | None) -> jax.Array:
        config, place = self.config, self.place
        q_BTHK = project("BTD,DHK->BTHK", x_BTD, self.query, config, place)
        k_BSGK = project("BTD,DGK->BTGK", x_BTD, self.key, config, place)
        v_BSGK = project("BTD,DGK->BTGK", x_BTD, self.value, config, place)
        if config.bias_qkv:
            q_BTHK = add_bias(q_BTHK, self.query_bias, config, place)
            k_BSGK = add_bias(k_BSGK, self.key_bias, config, place)
            v_BSGK = add_bias(v_BSGK, self.value_bias, config, place)
        if config.qk_norm != "none":
            q_BTHK, k_BSGK = self.query_norm(q_BTHK), self.key_norm(k_BSGK)
        if rope is not None:
            q_BTHK, k_BSGK = rotate(q_BTHK, rope), rotate(k_BSGK, rope)
        q_BTHK = checkpoint_name(q_BTHK, "query")
        k_BSGK = checkpoint_name(k_BSGK, "key")
        v_BSGK = checkpoint_name(v_BSGK, "value")
        out_BTHK = self.attend(q_BTHK, k_BSGK, v_BSGK, segments_BT)
        y_BTD = project("BTHK,HKD->BTD", out_BTHK, self.out, config, place, place.spec(("batch", "sequence", "embed"), "residual"))
        if config.bias_out:
            y_BTD = add_bias(y_BTD, self.out_bias, config, place)
        return checkpoint_name(y_BTD, "attention_out")

    def attend(self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        """Runs the chosen kernel on each device's own heads and rows."""
        kernel = KERNELS[self.config.attention]
        check_platform(self.config, self.place.platform())
        if segments_BT is None:
            run = self.place.local(lambda q, k, v: kernel(q, k, v, None, self.config), (Q_DIMS, KV_DIMS, KV_DIMS), Q_DIMS)
            return run(q_BTHK, k_BSGK, v_BSGK)
        run = self.place.local(lambda q, k, v, s: kernel(q, k, v, s, self.config), (Q_DIMS, KV_DIMS, KV_DIMS, ("batch", None)), Q_DIMS)
        return run(q_BTHK, k_BSGK, v_BSGK, segments_BT)


def check_platform(config: ModelConfig, platform: str) -> None:
    """Raises UserError where the chosen kernel can't run on devices of this platform."""
    if config.attention == "cudnn" and platform != "gpu":
        raise UserError(
            f"model.attention=cudnn: needs an NVIDIA GPU, the devices here are {platform}; use model.attention=blocked or model.attention=xla"
        )


def attention_xla(q_BTHK, k_BSGK, v_BSGK, segments_BT, config: ModelConfig) -> jax.Array:
    """`jax.nn.dot_product_attention`: any backend; the scores exist as a whole, [B, H, T, S]."""
    T = q_BTHK.shape[1]
    dtype = jnp.dtype(config.softmax_dtype)
    if dtype == jnp.float32 or q_BTHK.dtype == dtype:  # jax.nn computes scores and softmax in float32
        q, k, v = q_BTHK, k_BSGK, v_BSGK
    else:
        q, k, v = (x.astype(dtype) for x in (q_BTHK, k_BSGK, v_BSGK))
    mask_BTS = may_attend(segments_BT, slice(0, T), slice(0, T), config.window)
    out_BTHK = jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None], implementation="xla").astype(q_BTHK.dtype)
    return checkpoint_name(out_BTHK, "attention")


def attention_cudnn(q_BTHK, k_BSGK, v_BSGK, segments_BT, config: ModelConfig) -> jax.Array:
    """NVIDIA's fused kernel; see `attention_cudnn.py`."""
    from llm_jax.model import attention_cudnn as cudnn

    scale, window, most = q_BTHK.shape[-1] ** -0.5, config.window, config.max_segments
    return cudnn.attention_cudnn(q_BTHK, k_BSGK, v_BSGK, segments_BT=segments_BT, scale=scale, window=window, max_segments=most)


def attention_blocked(q_BTHK, k_BSGK, v_BSGK, segments_BT, config: ModelConfig) -> jax.Array:
    """In blocks of queries, in plain JAX: for CPUs; see `attention_blocked.py`."""
    return blocked.attention_blocked(q_BTHK, k_BSGK, v_BSGK, segments_BT, config.window)


KERNELS: dict[str, Callable] = {"xla": attention_xla, "cudnn": attention_cudnn, "blocked": attention_blocked}
