"""Weights: how they are made, gathered for each use, and how their gradients are summed over devices.

A weight is stored in the parameter dtype. At each use it is cast to the compute dtype and then gathered, in
the forward pass and again in the backward pass, so nothing gathered is kept between them. Its gradient is
made in `config.gradient_dtype` and summed over devices. The sum is placed like the master parameter: like the
stored weight or, in a train step, like its moments (the layout's table `optimizer`), by a reduce-scatter
where that is split.

Every product of activations with a weight is a call of `project`, but for the experts of `moe` and the head.
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
from llm_jax.model.parametrization import initial_multiplier


class Weight(nnx.Param):
    """A parameter with the names of its dims (`dims`). `stacked`: its array has a leading dim `layers` (see
    `Block`).

    Its value is an array, or a `ShardedParam` where its gradient is placed otherwise than the stored weight.
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedParam:
    """A weight as two arrays: the master parameter, which gets the gradient, and the stored weight, which is
    multiplied.

    With ZeRO-1, for instance, every device stores the whole weight and updates a part of it.
    """

    master: jax.Array
    """float32, placed by the layout's table `optimizer`. It gets the gradient."""
    stored: jax.Array
    """In the parameter dtype, placed by the table `stored`. It is multiplied, and gets no gradient."""


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


def stored_dims(w: Weight) -> Dims:
    """The dims of a weight's array in the train state: `w.dims`, with `layers` in front where it is
    stacked."""
    return ("layers", *w.dims) if w.stacked else w.dims


def master_and_stored(w: Weight) -> tuple[jax.Array, jax.Array]:
    """(the array that gets the gradient, the array that is multiplied): one and the same without a
    `ShardedParam`."""
    value = w.get_value()
    return (value.master, value.stored) if isinstance(value, ShardedParam) else (value, value)


@dataclasses.dataclass(frozen=True)
class WeightUse:
    """How a weight is used in a product: everything that is known while tracing. Hashable, for
    `jax.custom_vjp`."""

    dims: Dims
    shape: tuple[int, ...]
    master_spec: PartitionSpec | None
    """How the gradient is placed; None without a mesh."""
    master_dtype: str
    """The gradient's dtype in the end."""
    compute_dtype: str
    """The weight's dtype in the product."""
    gradient_dtype: str
    """The dtype that the gradient is made in and summed over devices in."""
    keep: bool
    """Whether the gathered weight is a residual of the backward pass. With remat the backward pass runs the
    forward pass again, and gathers the weight there, so it need not gather it twice."""
    place: Placement

    def gather(self, stored: jax.Array) -> jax.Array:
        """The weight, ready for a product: cast first, so that devices exchange the compute dtype, then
        gathered."""
        return self.place.weight(stored.astype(self.compute_dtype), self.dims)

    def gradient(self, dw: jax.Array) -> jax.Array:
        """The gradient of the gathered weight, in the master parameter's dtype and placement."""
        dw = self.place.unpad(dw.astype(self.master_dtype), self.dims, self.shape)
        return dw if self.master_spec is None else jax.sharding.reshard(dw, self.master_spec)


def weight_use(
    w: Weight, config: ModelConfig, place: Placement, dtype: str | None = None
) -> tuple[WeightUse, jax.Array, jax.Array]:
    """(how the weight is used, master parameter, stored weight). dtype: of the weight in the product; None:
    the compute dtype."""
    master, stored = master_and_stored(w)
    dtype = dtype or config.compute_dtype
    return (
        WeightUse(
            w.dims,
            master.shape,
            sharding_spec(master),
            master.dtype.name,
            dtype,
            config.gradient_dtype,
            config.remat != "none",
            place,
        ),
        master,
        stored,
    )


def gathered(w: Weight, config: ModelConfig, place: Placement, dtype: str | None = None) -> jax.Array:
    """A weight, cast to `dtype` (None: the compute dtype) and gathered, for any use; padded as
    `Placement.weight` does.

    Its gradient is summed over devices in that dtype.
    """
    return _gather(*weight_use(w, config, place, dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(use: WeightUse, master: jax.Array, stored: jax.Array) -> jax.Array:
    return use.gather(stored)


_gather.defvjp(
    lambda use, master, stored: (use.gather(stored), None),
    lambda use, _, dw: (use.gradient(dw), None),
)


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
    return _project(equation, spec, *weight_use(w, config, place, dtype), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _project(
    equation: str, spec: Any, use: WeightUse, master: jax.Array, stored: jax.Array, x: jax.Array
) -> jax.Array:
    return jnp.einsum(equation, x, use.gather(stored), out_sharding=spec)


def _project_forward(
    equation: str, spec: Any, use: WeightUse, master: jax.Array, stored: jax.Array, x: jax.Array
):
    w = use.gather(stored)
    return jnp.einsum(equation, x, w, out_sharding=spec), (w if use.keep else stored, x)


def _project_backward(
    equation: str, spec: Any, use: WeightUse, saved: tuple[jax.Array, jax.Array], dy: jax.Array
):
    """The gradients of the stored weight's master and of x.

    The product of the weight's gradient chooses its order of operands: XLA's CPU backend copies the left one
    transposed, so the smaller one goes left (autodiff puts the incoming gradient there, with all that is
    fused into it: a tenth of a step). In float32 only: with bfloat16 operands the CPU backend folds the
    transpose into a product that it can't run.
    """
    w, x = saved
    w = w if use.keep else use.gather(w)
    inputs, y_dims = equation.split("->")
    x_dims, w_dims = inputs.split(",")
    x_spec, y_spec = sharding_spec(x), sharding_spec(dy)
    # one gather, where y was scattered over the sequence: XLA by itself finds slower collectives
    if x_spec is not None and y_spec is not None:
        x_axes = dict(zip(x_dims, x_spec, strict=True))
        dy = jax.sharding.reshard(
            dy, PartitionSpec(*(x_axes.get(d, axes) for d, axes in zip(y_dims, y_spec, strict=True)))
        )
    dx = jnp.einsum(f"{y_dims},{w_dims}->{x_dims}", dy, w, out_sharding=sharding_spec(x))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.dtype(use.gradient_dtype))
    if x.size <= dy.size or x.dtype != jnp.float32:
        dw = product(f"{x_dims},{y_dims}->{w_dims}", x, dy, out_sharding=use.master_spec)
    else:
        # the dims of y first, as the product returns them
        order = "".join(sorted(w_dims, key=x_dims.__contains__))
        spec = (
            None
            if use.master_spec is None
            else PartitionSpec(*(use.master_spec[w_dims.index(d)] for d in order))
        )
        dw = jnp.einsum(
            f"{order}->{w_dims}", product(f"{y_dims},{x_dims}->{order}", dy, x, out_sharding=spec)
        )
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
    """Rows of a table [V, D] in the compute dtype: [B, T, D], placed as `spec`.

    A table whose width is split at rest is not gathered: every device looks up its part of the rows that the
    others need, and sends it to them. The gradient is summed on the way back, in `config.gradient_dtype`.
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
    master, stored = master_and_stored(w)
    if master is stored:
        return w
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


def sharding_spec(x: jax.Array) -> PartitionSpec | None:
    """The partition spec of a traced array; None without a mesh."""
    return jax.typeof(x).sharding.spec if jax.typeof(x).sharding.mesh.shape else None
