"""The small parts that every block is made of: weights with named dims, norms, and the rotary embedding."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from llm_jax.model.config import ModelConfig, RopeScaling
from llm_jax.model.dims import Dims, Placement


class Weight(nnx.Param):
    """A parameter that knows the names of its dims. `stacked` adds a leading `layers` dim (see `Block`)."""


def weight(
    rngs: nnx.Rngs, config: ModelConfig, shape: tuple[int, ...], dims: Dims, std: float | None, layers: int | None, dtype: str | None = None
) -> Weight:
    """A weight with normal entries of standard deviation `std`; None: ones; 0: zeros. `dtype`: None for the parameters'.

    With `layers`, one for every layer, stacked along a first dim.
    """
    full = shape if layers is None else (layers, *shape)
    kind = jnp.dtype(dtype or config.parameter_dtype)
    if std is None:
        value = jnp.ones(full, kind)
    elif std == 0:
        value = jnp.zeros(full, kind)
    else:
        value = std * jax.random.normal(rngs.params(), full, jnp.float32).astype(kind)
    return Weight(value, dims=dims, stacked=layers is not None)


def stored_dims(w: Weight) -> Dims:
    """The dims of a weight as it lies in the state: with `layers` in front where it is stacked."""
    return ("layers", *w.dims) if w.stacked else w.dims


def compute(w: Weight, config: ModelConfig, place: Placement) -> jax.Array:
    """A weight ready to multiply: cast first, so that what moves between devices is in the compute dtype."""
    return place.weight(w[...].astype(config.compute_dtype), w.dims)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def project(equation: str, x: jax.Array, w: jax.Array, spec: Any = None) -> jax.Array:
    """`einsum(equation, x, w)` of activations with a weight; `spec` is the result's partition spec (None: JAX decides).

    Its own only for the order of the weight gradient's product: XLA's CPU backend copies the left operand transposed, so
    the smaller one goes left (by autodiff it is the incoming gradient, with all that is fused into it: a tenth of a step).
    """
    return jnp.einsum(equation, x, w, out_sharding=spec)


def _project_forward(equation: str, x: jax.Array, w: jax.Array, spec: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return project(equation, x, w, spec), (x, w)


def _project_backward(equation: str, spec: Any, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    inputs, y_dims = equation.split("->")
    x_dims, w_dims = inputs.split(",")
    dx = jnp.einsum(f"{y_dims},{w_dims}->{x_dims}", dy, w, out_sharding=placed(x))
    if x.size <= dy.size:
        return dx, jnp.einsum(f"{x_dims},{y_dims}->{w_dims}", x, dy, out_sharding=placed(w))
    turned = "".join(sorted(w_dims, key=x_dims.__contains__))  # the dims of y first, as the product gives them
    spec_of = dict(zip(w_dims, placed(w) or [None] * w.ndim, strict=True))
    dw = jnp.einsum(f"{y_dims},{x_dims}->{turned}", dy, x, out_sharding=PartitionSpec(*(spec_of[d] for d in turned)) if placed(w) else None)
    return dx, jnp.einsum(f"{turned}->{w_dims}", dw)


project.defvjp(_project_forward, _project_backward)


def placed(x: jax.Array) -> PartitionSpec | None:
    """Where a traced array lives; None without a mesh."""
    return jax.typeof(x).sharding.spec if jax.typeof(x).sharding.mesh.shape else None


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last dim, in float32, with a scale (LayerNorm: and a bias)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layers: int | None, place: Placement, *, shape=None, dims=None, kind=None):
        shape, dims = shape or (config.embed,), dims or ("embed",)
        self.config, self.place, self.kind = config, place, kind or config.norm
        self.scale = weight(rngs, config, shape, dims, None, layers)
        self.bias = weight(rngs, config, shape, dims, 0, layers) if self.kind == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dims of x that `scale` has; returns x's shape and dtype."""
        scale = self.place.weight(self.scale[...], self.scale.dims).astype(jnp.float32)
        axis = tuple(range(-scale.ndim, 0))
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis, keepdims=True) + self.config.norm_epsilon)
        y = y * scale
        if self.bias is not None:
            y = y + self.place.weight(self.bias[...], self.bias.dims).astype(jnp.float32)
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


def rope_tables(config: ModelConfig, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of every rotation, float32 [B, T, head_dim / 2]; made once and used by all layers."""
    assert config.head_dim is not None
    scaling = config.rope_scaling
    angles = positions_BT[..., None].astype(jnp.float32) * rope_frequencies(config.head_dim, config.rope_theta, scaling)
    sharper = 0.1 * math.log(scaling.factor) + 1 if scaling.kind == "yarn" else 1.0  # on queries and keys each
    return jnp.cos(angles) * sharper, jnp.sin(angles) * sharper


def rotate(x_BTHK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies rotary embeddings: the first half of each head is rotated against the second (the Llama/NeoX pairing)."""
    cos, sin = (t[:, :, None, :] for t in tables)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHK.dtype)
