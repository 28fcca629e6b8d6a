"""The product with a frozen weight and the low-rank adapter beside it: LoRA (Hu et al. 2021) and DoRA (Liu et
al. 2024)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import RANK, Dims, Placement, matrix_sides
from llm_jax.model.quantized import gather_dequantized
from llm_jax.model.weight_use import (
    Weight,
    WeightUse,
    dense_product,
    frozen_gathered,
    frozen_product,
    gathered_array,
    input_gradient,
    master_and_stored,
    operands,
    sharding_spec,
    weight_gradient,
    weight_use,
    with_rows_of,
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
    to_h, from_h = f"{x_dims},{inputs}r->{kept}r", f"{kept}r,r{outputs}->{y_dims}"
    use_A, use_B = (weight_use(part, config, place, dtype) for part in (lora_A, lora_B))
    if (dtype or config.compute_dtype) == "float32" and is_cheaper_whole(x, x_dims, kept, w, value, place):
        use, _, base = weight_use(base_of(w, value), config, place, dtype)
        how = _Whole(equation, to_h, from_h, spec, h_spec, use, use_A[0], use_B[0])
        y = _whole_product(how, base, use_A[1:], use_B[1:], value.scaling, x)
    else:
        y = frozen_product(equation, x, base_of(w, value), config, place, spec, dtype)
        h = dense_product(to_h, h_spec, *use_A, x)
        y = y + dense_product(from_h, spec, *use_B, (h * value.scaling).astype(h.dtype))
    if magnitude is None:
        return y
    return (y * dora_factor(w, value, magnitude, config, place)).astype(y.dtype)


def is_cheaper_whole(
    x: jax.Array, x_dims: str, kept: str, w: Weight, value: Adapted, place: Placement
) -> bool:
    """Whether W + scaling A B is made for a product of rows with it, rather than the product of rows with
    each.

    Making it takes a pass over [inputs, outputs]; the other, passes over [rows, inputs] and [rows, outputs].
    """
    spec = sharding_spec(x)
    rows, share = math.prod(x.shape[x_dims.index(d)] for d in kept), 1
    if spec is not None:
        entries = (spec[x_dims.index(d)] for d in kept)
        share = math.prod(place.size((e,) if isinstance(e, str) else tuple(e or ())) for e in entries)
    A, B = (master_and_stored(part)[1].shape for part in adapter_parts(w, value)[:2])
    return rows / share >= min(math.prod(A[:-1]), math.prod(B[1:]))


@dataclass(frozen=True)
class _Whole:
    """A product of x with W + scaling A B: all that is no array. Hashable, for `jax.custom_vjp`."""

    equation: str
    to_h: str
    """The equation of x A."""
    from_h: str
    """The equation of (x A) B."""
    spec: Any
    h_spec: Any
    use: WeightUse
    use_A: WeightUse
    use_B: WeightUse


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole_product(how: _Whole, base, A, B, scaling, x: jax.Array) -> jax.Array:
    """x (W + scaling A B) in float32, where nothing of A B is rounded away. A, B: (master, stored) of each.

    The gradients are those of x W + scaling (x A) B: none is made of the whole weight.
    """
    whole, _, _ = _whole_parts(how, base, A, B, scaling)
    return jnp.einsum(how.equation, x, whole, out_sharding=how.spec)


def _whole_parts(how: _Whole, base, A, B, scaling) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(W + scaling A B, A, B), gathered."""
    A, B = how.use_A.gather(A[1]), how.use_B.gather(B[1])
    place = how.use.place
    return whole_weight(how.use.gather(base), A, B, scaling, how.use.dims, place), A, B


def _whole_forward(how: _Whole, base, A, B, scaling, x):
    return _whole_product(how, base, A, B, scaling, x), (base, A, B, scaling, x)


def _whole_backward(how: _Whole, saved, dy):
    base, A, B, scaling, x = saved
    whole, A, B = _whole_parts(how, base, A, B, scaling)
    x_spec = sharding_spec(x)
    dx, _ = input_gradient(how.equation, x_spec, whole, dy)
    h = jnp.einsum(how.to_h, x, A, out_sharding=how.h_spec) * scaling
    dh, dy = input_gradient(how.from_h, how.h_spec, B, dy)
    dA = weight_gradient(how.to_h, how.use_A, x, with_rows_of(how.to_h, x_spec, dh * scaling))
    dB = weight_gradient(how.from_h, how.use_B, h, dy)
    return None, (dA, None), (dB, None), None, dx


_whole_product.defvjp(_whole_forward, _whole_backward)


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
