"""Frozen weights in 8 or 4 bits, and their dequantisation for a product (QLoRA, Dettmers et al. 2023).

int8: every output has a scale of its own, the largest magnitude among its inputs; a code is a multiple of
1/127 of it. nf4: blocks of up to 64 entries along one dim have a scale each; a code is the number of an entry
of NF4, whose 16 numbers split a normal distribution into parts of equal probability. Scales are float32: the
paper's second quantisation, of the scales, is not made.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from llm_jax.core.errors import UserError
from llm_jax.model.dims import Dims, Placement, matrix_sides
from llm_jax.model.weight_values import Quantized

Kind = Literal["int8", "nf4"]
BLOCK = 64
"""nf4: the most entries of a block."""
WHOLE_IN_USE = ("embed", "latent", "head_dim")
"""Dims that no layout splits while a weight is multiplied: one of them is divided into blocks."""
BLOCKS = "blocks"
"""The name of that dim, in codes and scales. At rest it is split like `embed`, as far as it divides."""
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""The numbers of NF4 (Dettmers et al. 2023, appendix E): quantiles of the standard normal distribution, 8
positive ones, 0 and 7 negative ones, divided by the largest."""


def block_axis(dims: Dims, shape: tuple[int, ...]) -> tuple[int, int]:
    """(the dim of a weight that nf4 divides into blocks, counted from the end; entries of a block).

    dims, shape: without stacked layers. It is the last of the dims of `WHOLE_IN_USE` with the largest blocks.
    Raises UserError where these have odd sizes: two entries are one byte.
    """
    sizes = {i - len(dims): math.gcd(n, BLOCK) for i, n in enumerate(shape) if dims[i] in WHOLE_IN_USE}
    axis = max(sizes, key=lambda i: (sizes[i], i), default=0)
    if sizes.get(axis, 1) < 2:
        raise UserError(
            f"adapter.base=nf4: a weight {list(shape)} has no even dim to divide into blocks. Use "
            "adapter.base=int8"
        )
    return axis, sizes[axis]


def parts_dims(dims: Dims, shape: tuple[int, ...], kind: Kind) -> tuple[Dims, Dims]:
    """The dims of a quantised weight's codes and of its scales, without stacked layers."""
    if kind == "int8":
        first, cut = matrix_sides(dims)
        return dims, (*dims[:first], *dims[cut:])
    axis, _ = block_axis(dims, shape)
    at = len(dims) + axis
    blocked = (*dims[:at], BLOCKS, *dims[at + 1 :])
    return blocked, blocked


def parts_shapes(dims: Dims, shape: tuple[int, ...], kind: Kind) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a quantised weight's codes and of its scales, without stacked layers."""
    if kind == "int8":
        first, cut = matrix_sides(dims)
        return shape, (*shape[:first], *shape[cut:])
    axis, block = block_axis(dims, shape)
    at = len(dims) + axis
    return tuple((*shape[:at], shape[at] // n, *shape[at + 1 :]) for n in (2, block))  # type: ignore[return-value]


def quantize(w: jax.Array, dims: Dims, kind: Kind) -> Quantized:
    """A weight (without stacked layers) in few bits. The dim of nf4's blocks must not be split."""
    w = w.astype(jnp.float32)
    if kind == "int8":
        inputs = input_axes(dims)
        absmax = jnp.max(jnp.abs(w), inputs)
        codes = jnp.round(w / safe(jnp.expand_dims(absmax, inputs)) * 127).astype(jnp.int8)
        return Quantized(codes, absmax, kind, 0)
    axis, block = block_axis(dims, w.shape)
    blocks = split_dim(w, axis, block)
    absmax = jnp.max(jnp.abs(blocks), axis)
    levels = blocks / safe(jnp.expand_dims(absmax, axis))
    middles = (NF4[1:] + NF4[:-1]) / 2
    index = merge_dim(sum((levels > middle).astype(jnp.uint8) for middle in middles), axis)
    pairs = split_dim(index, axis, 2)
    low, high = (jax.lax.index_in_dim(pairs, i, pairs.ndim + axis, keepdims=False) for i in (0, 1))
    return Quantized(low | (high << 4), absmax, kind, axis)


def dequantize(q: Quantized, dims: Dims, dtype: str) -> jax.Array:
    """The weight (without stacked layers) in `dtype`. The dim of nf4's blocks must not be split."""
    if q.kind == "int8":
        scale = jnp.expand_dims(q.absmax / 127, input_axes(dims))
        return (q.codes.astype(jnp.float32) * scale).astype(dtype)
    pairs = jnp.stack([q.codes & 15, q.codes >> 4], q.codes.ndim + q.axis + 1)
    index = merge_dim(pairs, q.axis)
    table = jnp.asarray(NF4)
    values = table.at[index].get(out_sharding=spec_of(index), mode="promise_in_bounds")
    block = index.shape[q.axis] // q.absmax.shape[q.axis]
    scaled = split_dim(values, q.axis, block) * jnp.expand_dims(q.absmax, q.absmax.ndim + q.axis + 1)
    return merge_dim(scaled, q.axis).astype(dtype)


def gather_dequantized(q: Quantized, dims: Dims, dtype: str, place: Placement) -> jax.Array:
    """A quantised weight, gathered for use as codes, and then dequantised."""
    at = len(dims) + q.axis
    blocked = (*dims[:at], BLOCKS, *dims[at + 1 :])
    code_dims, scale_dims = (blocked, blocked)
    if q.kind == "int8":
        first, cut = matrix_sides(dims)
        code_dims, scale_dims = dims, (*dims[:first], *dims[cut:])
    gathered = Quantized(place.weight(q.codes, code_dims), place.weight(q.absmax, scale_dims), q.kind, q.axis)
    return dequantize(gathered, dims, dtype)


def input_axes(dims: Dims) -> tuple[int, ...]:
    """The numbers of the dims that a product sums over."""
    first, cut = matrix_sides(dims)
    return tuple(range(first, cut))


def safe(absmax: jax.Array) -> jax.Array:
    """Divisors: 1 where all entries of a group are 0."""
    return jnp.where(absmax > 0, absmax, 1)


def split_dim(x: jax.Array, axis: int, block: int) -> jax.Array:
    """[..., n, ...] → [..., n / block, block, ...], of an unsplit dim counted from the end."""
    at = x.ndim + axis
    shape = (*x.shape[:at], x.shape[at] // block, block, *x.shape[at + 1 :])
    spec = spec_of(x)
    return x.reshape(
        shape,
        out_sharding=None if spec is None else PartitionSpec(*spec[: at + 1], None, *spec[at + 1 :]),
    )


def merge_dim(x: jax.Array, axis: int) -> jax.Array:
    """The reverse of `split_dim`: [..., n / block, block, ...] → [..., n, ...]."""
    at = x.ndim - 1 + axis
    shape = (*x.shape[:at], x.shape[at] * x.shape[at + 1], *x.shape[at + 2 :])
    spec = spec_of(x)
    return x.reshape(
        shape, out_sharding=None if spec is None else PartitionSpec(*spec[: at + 1], *spec[at + 2 :])
    )


def spec_of(x: jax.Array) -> PartitionSpec | None:
    """The partition spec of a traced array, one entry for each dim; None without a mesh."""
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.shape:
        return None
    return PartitionSpec(*sharding.spec, *[None] * (x.ndim - len(sharding.spec)))
