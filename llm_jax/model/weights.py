"""Weights: what they are called, how they travel to where they are multiplied, and where their gradients are summed.

A weight lies at rest in the parameter dtype. At each use it is cast to the compute dtype and then gathered, for the forward pass and
again for the backward one, so nothing gathered is kept between them. Its gradient is made in `config.gradient_dtype`, and the sum over
devices leaves it at the weight's home, where it is stored or, in a train step, where its moments are: a reduce-scatter where that is split.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Dims, Placement, StagePlacement
from llm_jax.model.parametrization import initial


class Weight(nnx.Param):
    """A parameter that knows the names of its dims. `stacked` adds a leading `layers` dim (see `Block`).

    Its value is an array, or `ShardedParam` while gradients are wanted elsewhere than where it is stored.
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedParam:
    """One weight in two places: ZeRO-1 stores it whole on every device, and divides its update."""

    master: jax.Array
    """Where the gradient goes: float32, placed as the table `optimizer` says."""
    stored: jax.Array
    """What is multiplied, as it is stored. It gets no gradient."""


def weight(
    rngs: nnx.Rngs, config: ModelConfig, shape: tuple[int, ...], dims: Dims, std: float | None, layers: int | None, dtype: str | None = None
) -> Weight:
    """A weight with normal entries of standard deviation `std` (of the base shape, see `parametrization`); None: ones; 0: zeros.

    `dtype`: None for the parameters'.

    With `layers`, one for every layer, stacked along a first dim.
    """
    full = shape if layers is None else (layers, *shape)
    kind = jnp.dtype(dtype or config.parameter_dtype)
    if std is None:
        value = jnp.ones(full, kind)
    elif std == 0:
        value = jnp.zeros(full, kind)
    else:
        value = std * initial(config, dims) * jax.random.normal(rngs.params(), full, jnp.float32).astype(kind)
    return Weight(value, dims=dims, stacked=layers is not None)


def stored_dims(w: Weight) -> Dims:
    """The dims of a weight as it lies in the state: with `layers` in front where it is stacked."""
    return ("layers", *w.dims) if w.stacked else w.dims


def master_and_stored(w: Weight) -> tuple[jax.Array, jax.Array]:
    """(where the gradient goes, what is multiplied)."""
    value = w.get_value()
    return (value.master, value.stored) if isinstance(value, ShardedParam) else (value, value)


@dataclasses.dataclass(frozen=True)
class WeightUse:
    """All that is static about the use of a weight."""

    dims: Dims
    shape: tuple[int, ...]
    master_spec: PartitionSpec | None
    """Where the gradient goes; None without a mesh."""
    master_dtype: str
    compute_dtype: str
    gradient_dtype: str
    keep: bool
    """Whether a gathered weight is kept for the backward pass: with remat that is where it is gathered, and once will do."""
    place: Placement

    def gather(self, stored: jax.Array) -> jax.Array:
        """The weight where it is multiplied: cast first, so that what moves between devices is in the compute dtype."""
        return self.place.weight(stored.astype(self.compute_dtype), self.dims)

    def gradient(self, dw: jax.Array) -> jax.Array:
        """The gradient of `gather`'s result, in the dtype and place of the weight's home."""
        dw = self.place.unpad(dw.astype(self.master_dtype), self.dims, self.shape)
        return dw if self.master_spec is None else jax.sharding.reshard(dw, self.master_spec)


def weight_use(w: Weight, config: ModelConfig, place: Placement, dtype: str | None = None) -> tuple[WeightUse, jax.Array, jax.Array]:
    """How a weight is used in a dtype (default: the compute dtype), its home and what is multiplied."""
    master, stored = master_and_stored(w)
    dtype = dtype or config.compute_dtype
    return (
        WeightUse(w.dims, master.shape, sharding_spec(master), master.dtype.name, dtype, config.gradient_dtype, config.remat != "none", place),
        master,
        stored,
    )


def gathered(w: Weight, config: ModelConfig, place: Placement, dtype: str | None = None) -> jax.Array:
    """A weight ready for any use, padded as `Placement.weight` says. Its gradient is summed in `dtype` (default: compute)."""
    return _gather(*weight_use(w, config, place, dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(use: WeightUse, master: jax.Array, stored: jax.Array) -> jax.Array:
    return use.gather(stored)


_gather.defvjp(
    lambda use, master, stored: (use.gather(stored), None),
    lambda use, _, dw: (use.gradient(dw), None),
)


def project(equation: str, x: jax.Array, w: Weight, config: ModelConfig, place: Placement, spec: Any = None, dtype: str | None = None) -> jax.Array:
    """`einsum(equation, x, w)` of activations with a weight; `spec` is the result's partition spec (None: JAX decides).

    `dtype`: of the weight, where it is not the compute dtype.
    """
    return _project(equation, spec, *weight_use(w, config, place, dtype), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _project(equation: str, spec: Any, use: WeightUse, master: jax.Array, stored: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, use.gather(stored), out_sharding=spec)


def _project_forward(equation: str, spec: Any, use: WeightUse, master: jax.Array, stored: jax.Array, x: jax.Array):
    w = use.gather(stored)
    return jnp.einsum(equation, x, w, out_sharding=spec), (w if use.keep else stored, x)


def _project_backward(equation: str, spec: Any, use: WeightUse, saved: tuple[jax.Array, jax.Array], dy: jax.Array):
    """The weight gradient's product has its own order: XLA's CPU backend copies the left operand transposed, so the smaller
    one goes left (by autodiff it is the incoming gradient, with all that is fused into it: a tenth of a step). In float32 only:
    with bfloat16 operands the CPU backend folds the turn into a product that it then can't run."""
    w, x = saved
    w = w if use.keep else use.gather(w)
    inputs, y_dims = equation.split("->")
    x_dims, w_dims = inputs.split(",")
    x_spec, y_spec = sharding_spec(x), sharding_spec(dy)
    if x_spec is not None and y_spec is not None:  # gathered once, where y was scattered over the sequence: XLA finds worse ways by itself
        of_x = dict(zip(x_dims, x_spec, strict=True))
        dy = jax.sharding.reshard(dy, PartitionSpec(*(of_x.get(d, axes) for d, axes in zip(y_dims, y_spec, strict=True))))
    dx = jnp.einsum(f"{y_dims},{w_dims}->{x_dims}", dy, w, out_sharding=sharding_spec(x))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.dtype(use.gradient_dtype))
    if x.size <= dy.size or x.dtype != jnp.float32:
        dw = product(f"{x_dims},{y_dims}->{w_dims}", x, dy, out_sharding=use.master_spec)
    else:
        turned = "".join(sorted(w_dims, key=x_dims.__contains__))  # the dims of y first, as the product gives them
        master = None if use.master_spec is None else PartitionSpec(*(use.master_spec[w_dims.index(d)] for d in turned))
        dw = jnp.einsum(f"{turned}->{w_dims}", product(f"{y_dims},{x_dims}->{turned}", dy, x, out_sharding=master))
    return use.gradient(dw), None, dx


_project.defvjp(_project_forward, _project_backward)


def add_bias(y: jax.Array, w: Weight, config: ModelConfig, place: Placement) -> jax.Array:
    """y plus a bias over its last dims; the bias's gradient is summed in `config.gradient_dtype`."""
    return _add_bias(*weight_use(w, config, place), y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _add_bias(use: WeightUse, master: jax.Array, stored: jax.Array, y: jax.Array) -> jax.Array:
    return y + use.gather(stored)


def _add_bias_backward(use: WeightUse, _: None, dy: jax.Array):
    return use.gradient(jnp.sum(dy, range(dy.ndim - len(use.shape)), use.gradient_dtype)), None, dy


_add_bias.defvjp(lambda use, master, stored, y: (_add_bias(use, master, stored, y), None), _add_bias_backward)


def lookup(w: Weight, ids_BT: jax.Array, config: ModelConfig, place: Placement, spec: Any) -> jax.Array:
    """Rows of a table [V, D] in the compute dtype, [B, T, D] placed as `spec`.

    A table whose rows are split at rest is not gathered: every device looks up its part of all rows that the others need.
    The gradient is summed the same way, in `config.gradient_dtype`.
    """
    return _lookup(spec, *weight_use(w, config, place), ids_BT)


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
    return use.gradient(zeros.at[ids_BT].add(dx_BTD.astype(use.gradient_dtype), out_sharding=use.master_spec)), None, None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def reshard_path(rows: PartitionSpec | None, stream: PartitionSpec | None) -> list[PartitionSpec]:
    """The way of [B, T, D] from having its `embed` split to having its positions split: one mesh axis at a time, the last first.

    Each step is an all-to-all. In one step over several axes XLA gathers everything first.

    >>> between(PartitionSpec(None, None, ("data", "context")), PartitionSpec("data", "context", None))
    [P(None, 'context', 'data'), P('data', 'context', None), P('data', 'context', None)]
    """
    if rows is None or stream is None:
        return []
    at, goal = ([(axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in spec] for spec in (rows, stream))
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
    """In a stage of a pipeline: weights [rounds, layers, *dims] that are used for one microbatch after the other.

    Their gradient is the sum of all uses first, and is then summed over devices and left where the moments are.
    """
    master, stored = master_and_stored(w)
    return w if master is stored else w.replace(_sum_uses_first(place, w.dims, sharding_spec(master), master, stored))  # type: ignore[return-value]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sum_uses_first(place: StagePlacement, dims: Dims, spec: PartitionSpec, master: jax.Array, stored: jax.Array) -> jax.Array:
    return stored.astype(master.dtype)


_sum_uses_first.defvjp(
    lambda place, dims, spec, master, stored: (stored.astype(master.dtype), None),
    lambda place, dims, spec, _, dw_RL: (jax.sharding.reshard(place.sum_master_gradient(dw_RL, dims), spec), None),
)


def sharding_spec(x: jax.Array) -> PartitionSpec | None:
    """Where a traced array lives; None without a mesh."""
    return jax.typeof(x).sharding.spec if jax.typeof(x).sharding.mesh.shape else None
