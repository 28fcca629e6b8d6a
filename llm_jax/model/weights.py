"""Weights: how they are made, gathered for each use, and how their gradients are summed over devices.

A weight is stored in the parameter dtype. At each use it is cast to the compute dtype and then gathered, in
the forward pass and again in the backward pass, so nothing gathered is kept between them. Its gradient is
made in `config.gradient_dtype` and summed over devices. The sum is placed like the master parameter: like the
stored weight or, in a train step, like its moments (the layout's table `optimizer`), by a reduce-scatter
where that is split.

Every product of activations with a weight is a call of `project`, but for the experts of `moe` and the head.
A weight whose value is `Adapted` is multiplied as base and adapter, one that is `Quantized` is dequantised
for the product; both are frozen: their products have no gradient but that of the activations."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from llm_jax.model.adapted_weight import adapted_product, adapted_whole, adapter_parts
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Dims, Placement, StagePlacement
from llm_jax.model.parametrization import initial_multiplier
from llm_jax.model.weight_use import Weight as Weight
from llm_jax.model.weight_use import WeightUse as WeightUse
from llm_jax.model.weight_use import (
    dense_product,
    frozen_gathered,
    frozen_product,
    frozen_value,
    gathered_array,
)
from llm_jax.model.weight_use import sharding_spec as sharding_spec
from llm_jax.model.weight_use import stored_dims as stored_dims
from llm_jax.model.weight_use import weight_use as weight_use
from llm_jax.model.weight_values import Adapted
from llm_jax.model.weight_values import ShardedParam as ShardedParam


def weight(
    rngs: nnx.Rngs,
    config: ModelConfig,
    shape: tuple[int, ...],
    dims: Dims,
    std: float | None,
    layers: int | None,
    dtype: str | None = None,
) -> Weight:
    """A new weight with normal entries of standard deviation `std` (of the base shape, see
    `parametrization`).

    std: None makes ones, 0 zeros. layers: the number of layers that are stacked along a first dim; None: a
    single weight. dtype: None for the parameter dtype.
    """
    full = shape if layers is None else (layers, *shape)
    kind = jnp.dtype(dtype or config.parameter_dtype)
    if std is None:
        value = jnp.ones(full, kind)
    elif std == 0:
        value = jnp.zeros(full, kind)
    else:
        value = (
            std
            * initial_multiplier(config, dims)
            * jax.random.normal(rngs.params(), full, jnp.float32).astype(kind)
        )
    return Weight(value, dims=dims, stacked=layers is not None)


def gathered(w: Weight, config: ModelConfig, place: Placement, dtype: str | None = None) -> jax.Array:
    """A weight, cast to `dtype` (None: the compute dtype) and gathered, for any use; padded as
    `Placement.weight` does.

    Its gradient is summed over devices in that dtype.
    """
    value = w.get_value()
    if isinstance(value, Adapted):
        return adapted_whole(w, value, config, place, dtype)
    if frozen_value(w) is not None:
        return frozen_gathered(w, config, place, dtype)
    return gathered_array(*weight_use(w, config, place, dtype))


def project(
    equation: str,
    x: jax.Array,
    w: Weight,
    config: ModelConfig,
    place: Placement,
    spec: Any = None,
    dtype: str | None = None,
) -> jax.Array:
    """`einsum(equation, x, w)` of activations with a weight, of two operands: "BTD,DF->BTF".

    spec: the result's partition spec; None lets JAX decide. dtype: of the weight in the product; None: the
    compute dtype.
    """
    value = w.get_value()
    if isinstance(value, Adapted):
        return adapted_product(equation, x, w, value, config, place, spec, dtype)
    if frozen_value(w) is not None:
        return frozen_product(equation, x, w, config, place, spec, dtype)
    return dense_product(equation, spec, *weight_use(w, config, place, dtype), x)


def add_bias(y: jax.Array, w: Weight, config: ModelConfig, place: Placement) -> jax.Array:
    """y plus a bias over its last dims; the bias's gradient is summed in `config.gradient_dtype`."""
    if frozen_value(w) is not None:
        return y + frozen_gathered(w, config, place)
    return _add_bias(*weight_use(w, config, place), y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _add_bias(use: WeightUse, master: jax.Array, stored: jax.Array, y: jax.Array) -> jax.Array:
    return y + use.gather(stored)


def _add_bias_backward(use: WeightUse, _: None, dy: jax.Array):
    return use.gradient(jnp.sum(dy, range(dy.ndim - len(use.shape)), use.gradient_dtype)), None, dy


_add_bias.defvjp(lambda use, master, stored, y: (_add_bias(use, master, stored, y), None), _add_bias_backward)


def lookup(w: Weight, ids_BT: jax.Array, config: ModelConfig, place: Placement, spec: Any) -> jax.Array:
    """Rows of a table [V, D] in the compute dtype: [B, T, D], placed as `spec`.

    A table whose width is split at rest is not gathered: every device looks up its part of the rows that the
    others need, and sends it to them. The gradient is summed on the way back, in `config.gradient_dtype`.
    """
    use, master, stored = weight_use(w, config, place)
    if not use.trained:
        return jax.lax.stop_gradient(_lookup(spec, use, None, stored, ids_BT))
    return _lookup(spec, use, master, stored, ids_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lookup(spec: Any, use: WeightUse, master: jax.Array, stored: jax.Array, ids_BT: jax.Array) -> jax.Array:
    table_VD = stored.astype(use.compute_dtype)
    ids_BT, part = use.place.ids_for_lookup(sharding_spec(table_VD), ids_BT)
    x_BTD = table_VD.at[ids_BT].get(out_sharding=part)
    for step in reshard_path(part, spec):
        x_BTD = jax.sharding.reshard(x_BTD, step)
    return x_BTD


def _lookup_forward(spec: Any, use: WeightUse, master: jax.Array, stored: jax.Array, ids_BT: jax.Array):
    return _lookup(spec, use, master, stored, ids_BT), ids_BT


def _lookup_backward(spec: Any, use: WeightUse, ids_BT: jax.Array, dx_BTD: jax.Array):
    ids_BT, part = use.place.ids_for_lookup(use.master_spec, ids_BT)
    for step in reversed([part, *reshard_path(part, sharding_spec(dx_BTD))[:-1]] if part is not None else []):
        dx_BTD = jax.sharding.reshard(dx_BTD, step)
    zeros = jnp.zeros(use.shape, use.gradient_dtype, out_sharding=use.master_spec)
    return (
        use.gradient(zeros.at[ids_BT].add(dx_BTD.astype(use.gradient_dtype), out_sharding=use.master_spec)),
        None,
        None,
    )


_lookup.defvjp(_lookup_forward, _lookup_backward)


def reshard_path(rows: PartitionSpec | None, stream: PartitionSpec | None) -> list[PartitionSpec]:
    """The partition specs on the way of [B, T, D] from `rows`, split by `embed`, to `stream`, split by batch
    and positions.

    Each step moves one mesh axis, the last first, and is an all-to-all. In one step over several axes XLA
    gathers everything.

    >>> reshard_path(PartitionSpec(None, None, ("data", "context")), PartitionSpec("data", "context", None))
    [P(None, 'context', 'data'), P('data', 'context', None), P('data', 'context', None)]
    """
    if rows is None or stream is None:
        return []
    at, goal = (
        [(axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in spec] for spec in (rows, stream)
    )
    steps = []
    while at[2] != goal[2][: len(at[2])]:
        *rest, axis = at[2]
        at[2] = tuple(rest)
        for dim in (0, 1):
            if goal[dim][: len(at[dim]) + 1] == (*at[dim], axis):
                at[dim] = (*at[dim], axis)
                break
        steps.append(PartitionSpec(*at))
    return [*steps, stream]


def sum_uses_first(w: Weight, place: StagePlacement) -> Weight:
    """For a stage of a pipeline: weights [rounds, layers, *dims] whose gradient is first summed over all
    microbatches.

    Only then it is summed over devices, once, and placed like the master parameter.
    """
    value = w.get_value()
    if isinstance(value, Adapted):
        A, B, *more = (
            sum_uses_first(part, place).get_value() for part in adapter_parts(w, value) if part is not None
        )
        magnitude = more[0] if more else None
        return w.replace(dataclasses.replace(value, lora_A=A, lora_B=B, magnitude=magnitude))  # type: ignore[return-value]
    if not isinstance(value, ShardedParam):
        return w
    master, stored = value.master, value.stored
    summed = _sum_uses_first(place, w.dims, sharding_spec(master), master, stored)
    return w.replace(summed)  # type: ignore[return-value]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sum_uses_first(
    place: StagePlacement, dims: Dims, spec: PartitionSpec, master: jax.Array, stored: jax.Array
) -> jax.Array:
    return stored.astype(master.dtype)


_sum_uses_first.defvjp(
    lambda place, dims, spec, master, stored: (stored.astype(master.dtype), None),
    lambda place, dims, spec, _, dw_RL: (
        jax.sharding.reshard(place.sum_master_gradient(dw_RL, dims), spec),
        None,
    ),
)
