"""Weights and how each is used: placed, cast, gathered and multiplied, and how its gradient is summed over
devices. `weights` has the functions that modules call."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Dims, Placement
from llm_jax.model.quantized import gather_dequantized
from llm_jax.model.weight_values import Quantized, ShardedParam, Untrained


class Weight(nnx.Param):
    """A parameter with the names of its dims (`dims`). `stacked`: its array has a leading dim `layers` (see
    `Block`).

    Its value is an array, or one of `weight_values`: a `ShardedParam` where its gradient is placed otherwise
    than the stored weight, `Untrained`, `Quantized` or `Adapted`.
    """


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
    trained: bool = True
    """False: the weight gets no gradient, and has no master parameter."""

    def gather(self, stored: Any) -> jax.Array:
        """The weight, ready for a product: cast first, so that devices exchange the compute dtype, then
        gathered. A quantised one is gathered as it is."""
        if isinstance(stored, Quantized):
            return gather_dequantized(stored, self.dims, self.compute_dtype, self.place)
        return self.place.weight(stored.astype(self.compute_dtype), self.dims)

    def gradient(self, dw: jax.Array) -> jax.Array:
        """The gradient of the gathered weight, in the master parameter's dtype and placement."""
        dw = self.place.unpad(dw.astype(self.master_dtype), self.dims, self.shape)
        return dw if self.master_spec is None else jax.sharding.reshard(dw, self.master_spec)


def weight_use(
    w: Weight, config: ModelConfig, place: Placement, dtype: str | None = None
) -> tuple[WeightUse, jax.Array | None, Any]:
    """(how the weight is used, master parameter, stored weight). dtype: of the weight in the product; None:
    the compute dtype. The master parameter of a weight that is not trained is None."""
    if (frozen := frozen_value(w)) is not None:
        return frozen_use(w, config, place, dtype), None, frozen
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gathered_array(use: WeightUse, master: jax.Array, stored: jax.Array) -> jax.Array:
    """A weight that is an array or a `ShardedParam`, gathered."""
    return use.gather(stored)


gathered_array.defvjp(
    lambda use, master, stored: (use.gather(stored), None),
    lambda use, _, dw: (use.gradient(dw), None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def dense_product(
    equation: str, spec: Any, use: WeightUse, master: jax.Array, stored: jax.Array, x: jax.Array
) -> jax.Array:
    """`einsum(equation, x, w)` with a weight that is an array or a `ShardedParam`; spec: the result's."""
    return jnp.einsum(equation, x, use.gather(stored), out_sharding=spec)


def _dense_forward(
    equation: str, spec: Any, use: WeightUse, master: jax.Array, stored: jax.Array, x: jax.Array
):
    w = use.gather(stored)
    return jnp.einsum(equation, x, w, out_sharding=spec), (w if use.keep else stored, x)


def _dense_backward(
    equation: str, spec: Any, use: WeightUse, saved: tuple[jax.Array, jax.Array], dy: jax.Array
):
    """The gradients of the stored weight's master and of x."""
    w, x = saved
    w = w if use.keep else use.gather(w)
    dx, dy = input_gradient(equation, sharding_spec(x), w, dy)
    return weight_gradient(equation, use, x, dy), None, dx


def weight_gradient(equation: str, use: WeightUse, x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of the weight in `einsum(equation, x, w)`, as its master parameter is placed; dy: as
    `input_gradient` returns it.

    The product chooses its order of operands: XLA's CPU backend copies the left one transposed, so the
    smaller one goes left (autodiff puts the incoming gradient there, with all that is fused into it: a tenth
    of a step). In float32 only: with bfloat16 operands the CPU backend folds the transpose into a product
    that it can't run.
    """
    x_dims, w_dims, y_dims = operands(equation)
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
    return use.gradient(dw)


def input_gradient(
    equation: str, x_spec: PartitionSpec | None, w: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(dx, dy placed for the weight's gradient) of `einsum(equation, x, w)`."""
    x_dims, w_dims, y_dims = operands(equation)
    dy = with_rows_of(equation, x_spec, dy)
    return jnp.einsum(f"{y_dims},{w_dims}->{x_dims}", dy, w, out_sharding=x_spec), dy


def with_rows_of(equation: str, x_spec: PartitionSpec | None, dy: jax.Array) -> jax.Array:
    """dy of `einsum(equation, x, w)`, where x has its rows: one gather, where y was scattered over the
    sequence. XLA by itself finds slower collectives."""
    x_dims, _, y_dims = operands(equation)
    y_spec = sharding_spec(dy)
    if x_spec is None or y_spec is None:
        return dy
    x_axes = dict(zip(x_dims, x_spec, strict=True))
    return jax.sharding.reshard(
        dy, PartitionSpec(*(x_axes.get(d, axes) for d, axes in zip(y_dims, y_spec, strict=True)))
    )


dense_product.defvjp(_dense_forward, _dense_backward)


def operands(equation: str) -> tuple[str, str, str]:
    """The dims of x, w and y in an equation "x,w->y"."""
    inputs, y_dims = equation.split("->")
    x_dims, w_dims = inputs.split(",")
    return x_dims, w_dims, y_dims


def frozen_value(w: Weight) -> jax.Array | Quantized | None:
    """What is multiplied of a weight that is not trained; None for one that is."""
    value = w.get_value()
    return value.stored if isinstance(value, Untrained) else value if isinstance(value, Quantized) else None


def frozen_use(w: Weight, config: ModelConfig, place: Placement, dtype: str | None = None) -> WeightUse:
    """How a weight is used that gets no gradient."""
    value = w.get_value()
    return WeightUse(
        w.dims,
        value.stored.shape if isinstance(value, Untrained) else (),
        None,
        "float32",
        dtype or config.compute_dtype,
        config.gradient_dtype,
        config.remat != "none",
        place,
        trained=False,
    )


def frozen_gathered(w: Weight, config: ModelConfig, place: Placement, dtype: str | None = None) -> jax.Array:
    """A weight that is not trained, gathered."""
    return jax.lax.stop_gradient(frozen_use(w, config, place, dtype).gather(frozen_value(w)))


def frozen_product(
    equation: str,
    x: jax.Array,
    w: Weight,
    config: ModelConfig,
    place: Placement,
    spec: Any = None,
    dtype: str | None = None,
) -> jax.Array:
    """`project` for a weight that is not trained: its backward pass is the product for dx alone, and keeps no
    activations."""
    use = frozen_use(w, config, place, dtype)
    return _frozen_product(equation, spec, sharding_spec(x), use, frozen_value(w), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _frozen_product(
    equation: str, spec: Any, x_spec: Any, use: WeightUse, stored: jax.Array | Quantized, x: jax.Array
) -> jax.Array:
    return jnp.einsum(equation, x, use.gather(stored), out_sharding=spec)


def _frozen_product_forward(equation, spec, x_spec, use, stored, x):
    w = use.gather(stored)
    return jnp.einsum(equation, x, w, out_sharding=spec), (w if use.keep else stored)


def _frozen_product_backward(equation, spec, x_spec, use, saved, dy):
    w = saved if use.keep else use.gather(saved)
    return None, input_gradient(equation, x_spec, w, dy)[0]


_frozen_product.defvjp(_frozen_product_forward, _frozen_product_backward)


def sharding_spec(x: jax.Array) -> PartitionSpec | None:
    """The partition spec of a traced array; None without a mesh."""
    return jax.typeof(x).sharding.spec if jax.typeof(x).sharding.mesh.shape else None
