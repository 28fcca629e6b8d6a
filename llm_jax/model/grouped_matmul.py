"""Grouped matrix products: each row is multiplied with one of several matrices. Rows are sorted by matrix;
group sizes are data.

`jax.lax.ragged_dot` is made for this, but JAX 0.10 and 0.11 have kernels for it on TPUs only: elsewhere XLA
multiplies every row with every matrix and masks. The loop here multiplies each row with its matrix only, in
blocks of rows, by plain products of any backend.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def grouped_product(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, how: str) -> jax.Array:
    """y_RF: the first sizes_E[0] rows times w_EDF[0], the next sizes_E[1] times w_EDF[1], ...; zeros for rows
    after the last group.

    sizes_E: int32, rows of each group. how: "loop" or "ragged_dot" (`MoEConfig.product`). w_EDF is cast to
    x's dtype for the product; its gradient has w_EDF's dtype.
    """
    return (
        jax.lax.ragged_dot(x_RD, w_EDF.astype(x_RD.dtype), sizes_E)
        if how == "ragged_dot"
        else loop_product(x_RD, w_EDF, sizes_E)
    )


@jax.custom_vjp
def loop_product(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """`grouped_product` by a loop. Its gradients are loops too: JAX's own would add a whole w_EDF for each
    block."""
    return _rows("RD,DF->RF", x_RD, w_EDF.astype(x_RD.dtype), sizes_E)


def _forward(x_RD, w_EDF, sizes_E):
    return loop_product(x_RD, w_EDF, sizes_E), (x_RD, w_EDF, sizes_E)


def _backward(saved, dy_RF):
    x_RD, w_EDF, sizes_E = saved
    return (
        _rows("RF,DF->RD", dy_RF, w_EDF.astype(dy_RF.dtype), sizes_E),
        _weights(x_RD, dy_RF, w_EDF.dtype, sizes_E),
        None,
    )


loop_product.defvjp(_forward, _backward)


@jax.custom_vjp
def batched_product(x_BECD: jax.Array, w_EDF: jax.Array) -> jax.Array:
    """y_BECF, for groups of equal size. w_EDF is cast to x's dtype for the product; its gradient has w_EDF's
    dtype."""
    return jnp.einsum("BECD,EDF->BECF", x_BECD, w_EDF.astype(x_BECD.dtype))


def _batched_backward(saved, dy_BECF):
    x_BECD, w_EDF = saved
    dx_BECD = jnp.einsum("BECF,EDF->BECD", dy_BECF, w_EDF.astype(dy_BECF.dtype))
    return dx_BECD, jnp.einsum("BECD,BECF->EDF", x_BECD, dy_BECF, preferred_element_type=w_EDF.dtype)


batched_product.defvjp(
    lambda x_BECD, w_EDF: (batched_product(x_BECD, w_EDF), (x_BECD, w_EDF)), _batched_backward
)


def block_rows(rows: int, groups: int) -> int:
    """The rows of a block: a power of two from 64 to 2048, about a quarter of a group.

    On average half of a group's last block is wasted. Larger blocks use a device better, but waste more.
    """
    block = 64
    while block < 2048 and block * 2 * 4 <= rows / groups:
        block *= 2
    return block


def _rows(equation: str, x: jax.Array, w: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """einsum(equation, x, w[e]) for the rows of each group.

    A group's first block starts at the group's first row. The rows of its last block beyond the group are
    overwritten by the next group.
    """
    R, E = len(x), len(w)
    block = block_rows(R, E)
    first_E = jnp.cumsum(sizes_E) - sizes_E
    padded = jnp.pad(x, ((0, block), (0, 0)))
    width = w.shape[2] if equation.endswith("F") else w.shape[1]

    def group(e, y):
        one = jax.lax.dynamic_index_in_dim(w, e, 0, keepdims=False)

        def step(i, y):
            at = first_E[e] + i * block
            rows = jnp.einsum(equation, jax.lax.dynamic_slice_in_dim(padded, at, block), one)
            return jax.lax.dynamic_update_slice_in_dim(y, rows, at, 0)

        return jax.lax.fori_loop(0, _count(sizes_E[e], block), step, y)

    y = jax.lax.fori_loop(0, E, group, jnp.zeros((R + block, width), x.dtype))[:R]
    return jnp.where((jnp.arange(R) < jnp.sum(sizes_E))[:, None], y, 0)


def _weights(x_RD: jax.Array, dy_RF: jax.Array, dtype: jnp.dtype, sizes_E: jax.Array) -> jax.Array:
    """dw_EDF: each group's x_RD transposed times its dy_RF, added in float32."""
    (R, D), F, E = x_RD.shape, dy_RF.shape[1], len(sizes_E)
    block = block_rows(R, E)
    first_E = jnp.cumsum(sizes_E) - sizes_E
    x, dy = (jnp.pad(a, ((0, block), (0, 0))) for a in (x_RD, dy_RF))
    product = functools.partial(jnp.einsum, "RD,RF->DF", preferred_element_type=jnp.float32)

    def group(e, dw_EDF):
        def step(i, dw_DF):
            at = first_E[e] + i * block
            own_R = jnp.arange(block) < sizes_E[e] - i * block
            rows = jnp.where(own_R[:, None], jax.lax.dynamic_slice_in_dim(x, at, block), 0)
            return dw_DF + product(rows, jax.lax.dynamic_slice_in_dim(dy, at, block))

        dw_DF = jax.lax.fori_loop(0, _count(sizes_E[e], block), step, jnp.zeros((D, F), jnp.float32))
        return jax.lax.dynamic_update_index_in_dim(dw_EDF, dw_DF.astype(dtype), e, 0)

    return jax.lax.fori_loop(0, E, group, jnp.zeros((E, D, F), dtype))


def _count(rows: jax.Array, block: int) -> jax.Array:
    """The number of blocks that hold `rows` rows."""
    return (rows + block - 1) // block
