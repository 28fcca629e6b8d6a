"""The product with a frozen weight and the low-rank adapter beside it: LoRA (Hu et al. 2021) and DoRA (Liu et
al. 2024)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import RANK, Dims, Placement, matrix_sides
from llm_jax.model.quantized import gather_dequantized
from llm_jax.model.weight_use import (
    Weight,
    dense_product,
    frozen_gathered,
    frozen_product,
    gathered_array,
    master_and_stored,
    operands,
    sharding_spec,
    weight_use,
)
from llm_jax.model.weight_values import Adapted, Quantized, Untrained


def factor_dims(dims: Dims) -> tuple[Dims, Dims, Dims]:
    """The dims of an adapter's lora_A, lora_B and magnitude on a weight with these dims (without stacked
    layers).

    >>> factor_dims(("heads", "head_dim", "embed"))
    (('heads', 'head_dim', 'rank'), ('rank', 'embed'), ('embed',))
    """
    first, cut = matrix_sides(dims)
    return (*dims[:cut], RANK), (*dims[:first], RANK, *dims[cut:]), (*dims[:first], *dims[cut:])


def adapter_parts(w: Weight, value: Adapted) -> tuple[Weight, Weight, Weight | None]:
    """The trained arrays of an adapted weight as weights of their own: lora_A, lora_B, magnitude."""
    dims_A, dims_B, dims_m = factor_dims(w.dims)
    return (
        Weight(value.lora_A, dims=dims_A, stacked=w.stacked),
        Weight(value.lora_B, dims=dims_B, stacked=w.stacked),
        None if value.magnitude is None else Weight(value.magnitude, dims=dims_m, stacked=w.stacked),
    )


def base_of(w: Weight, value: Adapted) -> Weight:
    """The frozen part of an adapted weight as a weight of its own."""
    base = value.base if isinstance(value.base, Quantized) else Untrained(value.base)
    return Weight(base, dims=w.dims, stacked=w.stacked)


def adapted_product(
    equation: str,
    x: jax.Array,
    w: Weight,
    value: Adapted,
    config: ModelConfig,
    place: Placement,
    spec: Any,
    dtype: str | None,
) -> jax.Array:
    """x W + scaling (x A) B, and with a magnitude m (m / |W + scaling A B|) times that (Liu et al. 2024,
    DoRA)."""
    lora_A, lora_B, magnitude = adapter_parts(w, value)
    x_dims, w_dims, y_dims = operands(equation)
    inputs = "".join(d for d in w_dims if d in x_dims)
    kept, outputs = ("".join(d for d in dims if d not in inputs) for dims in (x_dims, w_dims))
    x_spec = sharding_spec(x)
    h_spec = None
    if x_spec is not None:  # rows where the result has its rows: the small product is what devices exchange
        axes = dict(zip(x_dims, x_spec, strict=True)) | dict(zip(y_dims, spec or (), strict=False))
        h_spec = PartitionSpec(*(axes[d] for d in kept), None)
    y = frozen_product(equation, x, base_of(w, value), config, place, spec, dtype)
    h = dense_product(f"{x_dims},{inputs}r->{kept}r", h_spec, *weight_use(lora_A, config, place, dtype), x)
    h = (h * value.scaling).astype(h.dtype)
    y = y + dense_product(f"{kept}r,r{outputs}->{y_dims}", spec, *weight_use(lora_B, config, place, dtype), h)
    if magnitude is None:
        return y
    return (y * dora_factor(w, value, magnitude, config, place)).astype(y.dtype)


def dora_factor(
    w: Weight, value: Adapted, magnitude: Weight, config: ModelConfig, place: Placement
) -> jax.Array:
    """m / |W + scaling A B| of each output, float32 [experts, outputs...], gathered; the length has no
    gradient."""
    A, B = (master_and_stored(part)[1] for part in adapter_parts(w, value)[:2])
    length = row_length(whole_weight(value.base, A, B, value.scaling, w.dims, place), w.dims)
    length = place.weight(jax.lax.stop_gradient(length), magnitude.dims)
    m = gathered_array(*weight_use(magnitude, config, place, "float32"))
    return jnp.where(value.scaling > 0, m / length, 1.0)


def whole_weight(
    base: jax.Array | Quantized,
    lora_A: jax.Array,
    lora_B: jax.Array,
    scaling: jax.Array | float,
    dims: Dims,
    place: Placement,
) -> jax.Array:
    """W + scaling A B in float32, placed as W is: every device makes its own part.

    dims: of W, without stacked layers.
    """
    W = gather_dequantized(base, dims, "float32", place) if isinstance(base, Quantized) else base
    first, cut = matrix_sides(dims)
    letters = "abcdefgh"[: len(dims)]
    product = jnp.einsum(
        f"{letters[:cut]}r,{letters[:first]}r{letters[cut:]}->{letters}",
        lora_A.astype(jnp.float32),
        lora_B.astype(jnp.float32),
        out_sharding=sharding_spec(W),
    )
    return W.astype(jnp.float32) + scaling * product


def row_length(w: jax.Array, dims: Dims) -> jax.Array:
    """The Euclidean length of the weights of each output: float32 [experts, outputs...]."""
    return jnp.sqrt(jnp.sum(jnp.square(w.astype(jnp.float32)), tuple(range(*matrix_sides(dims)))))


def adapted_whole(
    w: Weight, value: Adapted, config: ModelConfig, place: Placement, dtype: str | None = None
) -> jax.Array:
    """The weight that base and adapter make together, gathered, for a use that is no product of `project`.

    It has gradients, by way of a gradient of the whole weight: training goes through `project`.
    """
    lora_A, lora_B, magnitude = adapter_parts(w, value)
    base = frozen_gathered(base_of(w, value), config, place, "float32")
    A, B = (gathered_array(*weight_use(part, config, place, "float32")) for part in (lora_A, lora_B))
    whole = whole_weight(base, A, B, value.scaling, w.dims, place)
    if magnitude is not None:
        first, cut = matrix_sides(w.dims)
        whole *= jnp.expand_dims(dora_factor(w, value, magnitude, config, place), tuple(range(first, cut)))
    return whole.astype(dtype or config.compute_dtype)
