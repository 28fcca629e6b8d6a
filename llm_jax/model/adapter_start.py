"""The first values of a model's arrays where it has an adapter, from the weights that it starts with.

Definitions as in PEFT 0.21 (peft/tuners/lora/layer.py), whose matrices are [outputs, inputs]; ours are
[inputs, outputs]."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.model.adapted_weight import row_length, whole_weight
from llm_jax.model.adapters import (
    ABSMAX,
    CODES,
    LORA_A,
    LORA_B,
    MAGNITUDE,
    REDUCING,
    SCALING,
    AdaptedLayers,
    AdaptedWeights,
    Start,
)
from llm_jax.model.dims import Dims, Placement, matrix_sides
from llm_jax.model.quantized import BLOCKS, parts_dims, quantize
from llm_jax.model.weight_values import Quantized


def first_arrays(
    adapted: AdaptedWeights,
    weights: Mapping[str, jax.Array],
    dims: Mapping[str, Dims],
    seed: jax.Array,
    place: Placement,
) -> dict[str, jax.Array]:
    """All arrays of a model, by name, from its whole weights. To be jitted.

    dims: of each weight, with stacked layers. seed: uint32 []; an adapter's first values are a function of
    it, its weight's name and its shape."""
    found: dict[str, jax.Array] = {}
    config = adapted.config
    for name, w in weights.items():
        if target := adapted.targets.get(name):
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
            A, B = first_factors(config.start, w, dims[name], target, key, place)
            scaling = jnp.asarray(np.array(target.scalings, np.float32))
            factors, whole = {LORA_A: A, LORA_B: B}, w
            if config.start in REDUCING:  # W - scaling A B
                w = whole_weight(w, A, B, along_layers(-scaling, w.ndim), dims[name], place).astype(w.dtype)
            if config.dora:  # of the whole: B is zero, or its product was taken off
                factors[MAGNITUDE] = row_length(whole, dims[name])
            for suffix, value in factors.items():
                kind = adapted.arrays[f"{name}.{suffix}"].get_value().dtype
                found[f"{name}.{suffix}"] = value.astype(kind)
            found[f"{name}.{SCALING}"] = scaling
        if name in adapted.quantized:
            q = quantize_stacked(w, dims[name], adapted.quantized[name], place)
            found |= {f"{name}.{CODES}": q.codes, f"{name}.{ABSMAX}": q.absmax}
        else:
            found[name] = w.astype(adapted.arrays[name].get_value().dtype)
    return found


def along_layers(x_L: jax.Array, ndim: int) -> jax.Array:
    """[layers] → [layers, 1, 1, ...]."""
    return jnp.expand_dims(x_L, tuple(range(1, ndim)))


def first_factors(
    start: Start, w: jax.Array, dims: Dims, target: AdaptedLayers, key: jax.Array, place: Placement
) -> tuple[jax.Array, jax.Array]:
    """(A, B), float32, of a weight's adapter, with zeros where a layer has a smaller rank, or none."""
    first, cut = matrix_sides(dims)
    rank = target.rank
    lead, inputs, outputs = w.shape[:first], w.shape[first:cut], w.shape[cut:]
    if start in REDUCING:
        A, B = parts_of(start, w, dims, target, place)
    else:
        shape = (*lead, *inputs, rank)
        if start == "gaussian":
            A = jax.random.normal(key, shape) / rank
        else:  # Kaiming's with a = sqrt(5)
            bound = 1 / math.sqrt(math.prod(inputs))
            A = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        B = jnp.zeros((*lead, rank, *outputs), jnp.float32)
    has_LR = np.arange(rank) < np.array(target.ranks)[:, None]
    return A * has_LR.reshape(len(has_LR), *[1] * (cut - 1), rank), B * has_LR.reshape(
        len(has_LR), *[1] * (first - 1), rank, *[1] * len(outputs)
    )


def parts_of(
    start: Start, w: jax.Array, dims: Dims, target: AdaptedLayers, place: Placement
) -> tuple[jax.Array, jax.Array]:
    """(A, B) whose product, times the scaling, is a part of each matrix of w: its largest singular values
    ("pissa"), or the first directions of the QR decomposition of its transpose ("olora").

    Every device computes all of them, one after the other.
    """
    first, cut = matrix_sides(dims)
    rank = target.rank
    lead, inputs, outputs = w.shape[:first], w.shape[first:cut], w.shape[cut:]
    whole = place.move(w.astype(jnp.float32), (None,) * w.ndim)
    scalings = np.repeat([s or 1.0 for s in target.scalings], math.prod(lead[1:])).astype(np.float32)

    def parts(one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w_IO, scaling = one
        if start == "pissa":
            U_IR, S_R, V_RO = jnp.linalg.svd(w_IO, full_matrices=False)
            root_R = jnp.sqrt(S_R[:rank] / scaling)
            return U_IR[:, :rank] * root_R, root_R[:, None] * V_RO[:rank]
        Q_OR, R_RI = jnp.linalg.qr(w_IO.T)
        return R_RI[:rank].T, Q_OR[:, :rank].T

    matrices = whole.reshape(-1, math.prod(inputs), math.prod(outputs))
    A, B = jax.lax.map(parts, (matrices, jnp.asarray(scalings)))
    return A.reshape(*lead, *inputs, rank), B.reshape(*lead, rank, *outputs)


def quantize_stacked(w: jax.Array, dims: Dims, kind, place: Placement) -> Quantized:
    """A stacked weight in few bits, layer by layer."""
    blocked = parts_dims(dims[1:], w.shape[1:], kind)[0]
    unsplit = tuple(None if dim == BLOCKS else dim for dim in blocked)
    w = place.move(w, (None, *dims[1:]), "stored")

    def one(w: jax.Array) -> Quantized:
        return quantize(place.move(w, unsplit, "stored"), dims[1:], kind)

    return jax.lax.map(one, w)
