"""A linear head on chunks of positions, with the vocabulary split over devices: what all losses of logits
share.

Everything here runs inside `Placement.local`: on one device's positions and its part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.weights import Weight, WeightUse, weight_use

X_DIMS, W_DIMS, TARGET_DIMS = ("batch", "sequence", "embed"), ("vocab", "embed"), ("batch", "sequence")
NEVER = -1e30
"""The logit of the rows that pad a vocabulary: its probability is 0, and unlike -inf it can be subtracted."""


@dataclass(frozen=True)
class Head:
    """How a head's logits are made: all that is no array. Hashable, for `jax.custom_vjp`."""

    how: WeightUse
    softcap: float
    logits_dtype: str

    @property
    def place(self) -> Placement:
        """Where arrays are, and which devices split them."""
        return self.how.place

    @property
    def vocab_axes(self) -> tuple[str, ...]:
        """The mesh axes that split the vocabulary."""
        return self.place.axes("vocab")

    def first_token(self, w_VD: jax.Array) -> Any:
        """The first token of this device's part of the vocabulary, int32 []."""
        return jax.lax.axis_index(self.vocab_axes) * w_VD.shape[0] if self.vocab_axes else 0

    def over_vocabulary(self, collective: Callable, x: jax.Array) -> jax.Array:
        """A sum or maximum over the devices that split the vocabulary."""
        return over(collective, x, self.vocab_axes)


def head_use(
    head: Weight, config: ModelConfig, place: Placement | None, logits_dtype: str | None = None
) -> tuple[Head, jax.Array | None, jax.Array]:
    """(how a head [V, D] is used, master parameter, stored weight). logits_dtype: None for the model's. A
    head that is not trained has no master parameter."""
    how, master, stored = weight_use(head, config, place or Placement())
    return Head(how, config.logit_softcap, logits_dtype or config.logits_dtype), master, stored


class Logits(NamedTuple):
    """The logits of a chunk of positions."""

    capped_NV: jax.Array
    """After soft-capping, in the logits dtype: what `through_softcap` needs."""
    logits_NV: jax.Array
    """The same with `NEVER` for the rows that pad the vocabulary."""


def logits(head: Head, x_ND: jax.Array, w_VD: jax.Array) -> Logits:
    """The soft-capped logits of a chunk."""
    V = w_VD.shape[0]
    raw_NV = jnp.einsum("ND,VD->NV", x_ND, w_VD, preferred_element_type=jnp.dtype(head.logits_dtype))
    capped_NV = head.softcap * jnp.tanh(raw_NV / head.softcap) if head.softcap else raw_NV
    if V * head.place.size(head.vocab_axes) == head.how.shape[0]:
        return Logits(capped_NV, capped_NV)
    real_V = head.first_token(w_VD) + jnp.arange(V) < head.how.shape[0]
    return Logits(capped_NV, jnp.where(real_V, capped_NV, NEVER))


class Softmax(NamedTuple):
    """The softmax of a chunk's logits over the whole vocabulary."""

    exp_NV: jax.Array
    """exp(logit - the largest of all devices), in the logits dtype."""
    sum_N: jax.Array
    """Sum of the exponentials, float32."""
    log_z_N: jax.Array
    """Log of the sum of exp(logit), float32 or the logits dtype."""


def softmax(head: Head, logits_NV: jax.Array) -> Softmax:
    """The softmax over the vocabulary, with sums in float32."""
    top_N = head.over_vocabulary(jax.lax.pmax, jnp.max(logits_NV, -1))
    exp_NV = jnp.exp(logits_NV - top_N[:, None])
    sum_N = head.over_vocabulary(jax.lax.psum, jnp.sum(exp_NV, -1, dtype=jnp.float32))
    return Softmax(exp_NV, sum_N, jnp.log(sum_N) + top_N)


class TargetLogits(NamedTuple):
    """The target of each position of a chunk."""

    is_target_NV: jax.Array
    logit_N: jax.Array
    """float32."""


def target(head: Head, logits_NV: jax.Array, w_VD: jax.Array, targets_N: jax.Array) -> TargetLogits:
    """The targets' logits."""
    is_target_NV = jnp.arange(w_VD.shape[0]) == (targets_N - head.first_token(w_VD))[:, None]
    own_N = jnp.sum(jnp.where(is_target_NV, logits_NV, 0), -1, dtype=jnp.float32)
    return TargetLogits(is_target_NV, head.over_vocabulary(jax.lax.psum, own_N))


def backward(
    head: Head, d_NV: jax.Array, capped_NV: jax.Array, x_ND: jax.Array, w_VD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(dx_ND in x's dtype, this device's part of dw_DV in float32, as `no_gradient` has it) from the gradient
    of capped logits."""
    if head.softcap:
        d_NV *= 1 - jnp.square(capped_NV / head.softcap)
    d_NV = d_NV.astype(x_ND.dtype)
    dx_ND = jnp.einsum("NV,VD->ND", d_NV, w_VD, preferred_element_type=jnp.float32)
    dx_ND = head.over_vocabulary(jax.lax.psum, dx_ND).astype(x_ND.dtype)
    if not head.how.trained:
        return dx_ND, jnp.zeros((), jnp.float32)
    # see `weight_use.dense_product` on the order
    return dx_ND, jnp.einsum("ND,NV->DV", x_ND, d_NV, preferred_element_type=jnp.float32)


def no_gradient(head: Head, w_VD: jax.Array, with_gradient: bool = True) -> jax.Array:
    """The gradient of the head, dw_DV, before the first chunk: zeros, float32; [] where none is made."""
    return jnp.zeros(w_VD.shape[::-1] if with_gradient and head.how.trained else (), jnp.float32)


def sum_head_gradient(head: Head, dw_DV: jax.Array) -> jax.Array:
    """The head's gradient [V, D] from all chunks, summed over devices and placed as `gradient_spec`
    states; [] for a head that is not trained."""
    how = head.how
    if not how.trained:
        return dw_DV
    return head.place.sum_gradient(dw_DV.T.astype(how.gradient_dtype), W_DIMS, how.master_spec)


def gradient_spec(head: Head) -> Any:
    """`Placement.local`'s out_dims for `sum_head_gradient`."""
    return head.place.summed_gradient_spec(W_DIMS, head.how.master_spec) if head.how.trained else ()


def placed_gradient(head: Head, dw_VD: jax.Array) -> jax.Array | None:
    """The result of `sum_head_gradient` as the master parameter is placed; None where there is none."""
    return head.how.gradient(dw_VD) if head.how.trained else None


def scaled(dw_VD: jax.Array | None, g: jax.Array) -> jax.Array | None:
    """The head's gradient, made for a loss with a gradient of 1, for one of g."""
    return None if dw_VD is None else (dw_VD * g).astype(dw_VD.dtype)


def over_positions(head: Head, x: jax.Array) -> jax.Array:
    """A device's sum over its positions, summed over the devices that split them."""
    return over(jax.lax.psum, x, (*head.place.axes("batch"), *head.place.axes("sequence")))


def in_chunks(chunk: int, *arrays_BT: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays [B, T, ...] of a device as [C, N, ...], for a scan over chunks of at most `chunk` positions."""
    positions = arrays_BT[0].shape[0] * arrays_BT[0].shape[1]
    count = _chunks(positions, chunk)
    return tuple(a.reshape(count, positions // count, *a.shape[2:]) for a in arrays_BT)


def over(collective: Callable, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """A sum or maximum over mesh axes; x where there are none."""
    return collective(x, axes) if axes else x


def _chunks(positions: int, chunk: int) -> int:
    """The least number of equal chunks of at most `chunk` positions."""
    count = -(-positions // chunk)
    while positions % count:
        count += 1
    return count
