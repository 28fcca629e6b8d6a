"""Cross-entropy and token log-probabilities of a linear head, in chunks: the logits of the whole batch never
exist at once.

The gradient is made in the forward pass, chunk by chunk, while the chunk's logits are there (as Liger-Kernel
does, Hsu et al. 2024), so that nothing is computed twice: the backward pass only scales it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.weights import Weight, WeightUse, weight_use

X_DIMS, W_DIMS, TARGET_DIMS = ("batch", "sequence", "embed"), ("vocab", "embed"), ("batch", "sequence")
IN_DIMS = (X_DIMS, W_DIMS, TARGET_DIMS, TARGET_DIMS)


def linear_cross_entropy(
    x_BTD: jax.Array,
    head: Weight,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    config: ModelConfig,
    place: Placement | None = None,
    *,
    z_loss: float = 0.0,
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """(sum of weighted losses, sum of weighted cross-entropies), both float32 []; `head` has dims [V, D].

    loss = cross-entropy + z_loss * log(Z)^2 (PaLM, Chowdhery et al. 2022) in nats; logits are soft-capped
    first. Only the first result has a gradient. `chunk` is positions per chunk and device, rounded to divide
    them.
    """
    how, master, stored = weight_use(head, config, place or Placement())
    return _loss(
        _Static(how, config.logit_softcap, z_loss, chunk, config.logits_dtype),
        master,
        stored,
        x_BTD,
        targets_BT,
        weights_BT,
    )


@dataclasses.dataclass(frozen=True)
class _Static:
    """All that is no array."""

    how: WeightUse
    softcap: float
    z_loss: float
    chunk: int
    logits_dtype: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(static: _Static, master, stored, x_BTD, targets_BT, weights_BT):
    """Without a gradient: only the sums."""
    run = static.how.place.local(functools.partial(_local, static, False), IN_DIMS, ((), ()))
    return run(x_BTD, static.how.gather(stored), targets_BT, weights_BT)


def _forward(static: _Static, master, stored, x_BTD, targets_BT, weights_BT):
    how = static.how
    run = how.place.local(
        functools.partial(_local, static, True),
        IN_DIMS,
        ((), (), X_DIMS, how.place.summed_gradient_spec(W_DIMS, how.master_spec)),
    )
    loss, entropy, dx_BTD, dw_VD = run(x_BTD, how.gather(stored), targets_BT, weights_BT)
    return (loss, entropy), (dx_BTD, how.gradient(dw_VD))


def _backward(static: _Static, gradients, cotangents):
    dx_BTD, dw_VD = gradients
    g, _ = cotangents
    return (dw_VD * g).astype(dw_VD.dtype), None, (dx_BTD * g).astype(dx_BTD.dtype), None, None


_loss.defvjp(_forward, _backward)


class _Logits(NamedTuple):
    """The logits of one chunk of positions, on a device's part of the vocabulary."""

    capped_NV: jax.Array
    """After soft-capping, in the logits dtype."""
    exp_NV: jax.Array
    """exp(logit - the largest of all devices)."""
    is_target_NV: jax.Array
    sum_N: jax.Array
    """Sum of the exponentials over the whole vocabulary, float32."""
    log_z_N: jax.Array
    target_N: jax.Array
    """The target's logit, float32."""


def _logits(static: _Static, x_ND: jax.Array, w_VD: jax.Array, targets_N: jax.Array) -> _Logits:
    """The logits of a chunk and their float32 log-softmax, with the vocabulary split over devices: inside
    `Placement.local`.
    """
    how, softcap, place = static.how, static.softcap, static.how.place
    vocab_axes = place.axes("vocab")
    V = w_VD.shape[0]
    first = jax.lax.axis_index(vocab_axes) * V if vocab_axes else 0  # the first token of this device's part
    padded = V * place.size(vocab_axes) > how.shape[0]
    raw_NV = jnp.einsum("ND,VD->NV", x_ND, w_VD, preferred_element_type=jnp.dtype(static.logits_dtype))
    capped_NV = softcap * jnp.tanh(raw_NV / softcap) if softcap else raw_NV
    logits_NV = jnp.where(first + jnp.arange(V) < how.shape[0], capped_NV, -jnp.inf) if padded else capped_NV
    top_N = _over(jax.lax.pmax, jnp.max(logits_NV, -1), vocab_axes)
    exp_NV = jnp.exp(logits_NV - top_N[:, None])
    sum_N = _over(jax.lax.psum, jnp.sum(exp_NV, -1, dtype=jnp.float32), vocab_axes)
    is_target_NV = jnp.arange(V) == (targets_N - first)[:, None]
    target_N = _over(
        jax.lax.psum, jnp.sum(jnp.where(is_target_NV, logits_NV, 0), -1, dtype=jnp.float32), vocab_axes
    )
    return _Logits(capped_NV, exp_NV, is_target_NV, sum_N, jnp.log(sum_N) + top_N, target_N)


def _in_chunks(static: _Static, x_BTD: jax.Array, *arrays_BT: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays [B, T, ...] of a device as [C, N, ...], for a scan over chunks of positions."""
    N = x_BTD.shape[0] * x_BTD.shape[1]
    chunks = _chunks(N, static.chunk)
    return x_BTD.reshape(chunks, N // chunks, -1), *(a.reshape(chunks, N // chunks) for a in arrays_BT)


def _local(static: _Static, with_gradient: bool, x_BTD, w_VD, targets_BT, weights_BT):
    """One device's positions and its part of the vocabulary; sums over devices at the end."""
    how, softcap, z_loss, place = static.how, static.softcap, static.z_loss, static.how.place
    vocab_axes, batch_axes = place.axes("vocab"), (*place.axes("batch"), *place.axes("sequence"))
    V, D = w_VD.shape
    x_CND, targets_CN, weights_CN = _in_chunks(static, x_BTD, targets_BT, weights_BT)

    def step(carry, chunk_of):
        loss, entropy, dw_DV = carry
        x_ND, targets_N, weights_N = chunk_of
        of = _logits(static, x_ND, w_VD, targets_N)
        log_z_N = of.log_z_N
        entropy_N = log_z_N - of.target_N
        entropy += jnp.sum(entropy_N * weights_N)
        loss += jnp.sum((entropy_N + z_loss * jnp.square(log_z_N)) * weights_N)
        if not with_gradient:
            return (loss, entropy, dw_DV), None
        scale_N = weights_N * (1 + 2 * z_loss * log_z_N) / of.sum_N
        d_NV = of.exp_NV * scale_N[:, None] - jnp.where(of.is_target_NV, weights_N[:, None], 0)
        if softcap:
            d_NV *= 1 - jnp.square(of.capped_NV / softcap)
        d_NV = d_NV.astype(x_ND.dtype)
        dx_ND = jnp.einsum("NV,VD->ND", d_NV, w_VD, preferred_element_type=jnp.float32)
        dx_ND = _over(jax.lax.psum, dx_ND, vocab_axes).astype(x_ND.dtype)
        dw_DV += jnp.einsum(
            "ND,NV->DV", x_ND, d_NV, preferred_element_type=jnp.float32
        )  # see `weights.project` on the order
        return (loss, entropy, dw_DV), dx_ND

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jnp.zeros((D, V) if with_gradient else (), jnp.float32))
    (loss, entropy, dw_DV), dx_CND = jax.lax.scan(step, start, (x_CND, targets_CN, weights_CN))
    loss, entropy = (_over(jax.lax.psum, s, batch_axes) for s in (loss, entropy))
    if not with_gradient:
        return loss, entropy
    dw_VD = place.sum_gradient(dw_DV.T.astype(how.gradient_dtype), W_DIMS, how.master_spec)
    return loss, entropy, dx_CND.reshape(x_BTD.shape), dw_VD


def linear_logprobs(
    x_BTD: jax.Array,
    head: Weight,
    targets_BT: jax.Array,
    config: ModelConfig,
    place: Placement | None = None,
    *,
    chunk: int = 1024,
) -> jax.Array:
    """log p(target) in nats of every position, float32 [B, T]; `head` has dims [V, D].

    Differentiable in x_BTD and the head.

    The log-softmax is in float32, over the whole vocabulary, of soft-capped logits. The backward pass
    computes a chunk's logits again: it is that of `linear_cross_entropy`, with the incoming gradient in place
    of the weights. `chunk`: as there.
    """
    how, master, stored = weight_use(head, config, place or Placement())
    return _logprobs(
        _Static(how, config.logit_softcap, 0.0, chunk, config.logits_dtype), master, stored, x_BTD, targets_BT
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(static: _Static, master, stored, x_BTD, targets_BT):
    run = static.how.place.local(
        functools.partial(_local_logprobs, static), (X_DIMS, W_DIMS, TARGET_DIMS), TARGET_DIMS
    )
    return run(x_BTD, static.how.gather(stored), targets_BT)


def _logprobs_backward(static: _Static, saved, g_BT):
    stored, x_BTD, targets_BT = saved
    (_, _), (dx_BTD, dw_VD) = _forward(static, None, stored, x_BTD, targets_BT, -g_BT)
    return dw_VD, None, dx_BTD, None


_logprobs.defvjp(
    lambda static, master, stored, x_BTD, targets_BT: (
        _logprobs(static, master, stored, x_BTD, targets_BT),
        (stored, x_BTD, targets_BT),
    ),
    _logprobs_backward,
)


def _local_logprobs(static: _Static, x_BTD, w_VD, targets_BT):
    """The log-probabilities of one device's positions."""

    def step(_, chunk_of):
        of = _logits(static, chunk_of[0], w_VD, chunk_of[1])
        return None, of.target_N - of.log_z_N

    return jax.lax.scan(step, None, _in_chunks(static, x_BTD, targets_BT))[1].reshape(targets_BT.shape)


def _over(collective, x, axes):
    """A sum or maximum over mesh axes; x where there are none."""
    return collective(x, axes) if axes else x


def _chunks(positions: int, chunk: int) -> int:
    """The least number of equal chunks of at most `chunk` positions."""
    count = -(-positions // chunk)
    while positions % count:
        count += 1
    return count
