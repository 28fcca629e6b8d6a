"""Cross-entropy and token log-probabilities of a linear head, in chunks: the logits of the whole batch never
exist at once.

The gradient is made in the forward pass, chunk by chunk, while the chunk's logits are there (as Liger-Kernel
does, Hsu et al. 2024), so that nothing is computed twice: the backward pass only scales it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.weights import Weight
from llm_jax.objective import head_chunks
from llm_jax.objective.head_chunks import TARGET_DIMS, W_DIMS, X_DIMS, Head, head_use, in_chunks

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
    use, master, stored = head_use(head, config, place)
    return _loss(_Static(use, z_loss, chunk), master, stored, x_BTD, targets_BT, weights_BT)


@dataclasses.dataclass(frozen=True)
class _Static:
    """All that is no array."""

    head: Head
    z_loss: float
    chunk: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(static: _Static, master, stored, x_BTD, targets_BT, weights_BT):
    """Without a gradient: only the sums."""
    how = static.head.how
    run = how.place.local(functools.partial(_local, static, False), IN_DIMS, ((), ()))
    return run(x_BTD, how.gather(stored), targets_BT, weights_BT)


def _forward(static: _Static, master, stored, x_BTD, targets_BT, weights_BT):
    how = static.head.how
    run = how.place.local(
        functools.partial(_local, static, True),
        IN_DIMS,
        ((), (), X_DIMS, head_chunks.gradient_spec(static.head)),
    )
    loss, entropy, dx_BTD, dw_VD = run(x_BTD, how.gather(stored), targets_BT, weights_BT)
    return (loss, entropy), (dx_BTD, head_chunks.placed_gradient(static.head, dw_VD))


def _backward(static: _Static, gradients, cotangents):
    dx_BTD, dw_VD = gradients
    g, _ = cotangents
    return head_chunks.scaled(dw_VD, g), None, (dx_BTD * g).astype(dx_BTD.dtype), None, None


_loss.defvjp(_forward, _backward)


def _local(static: _Static, with_gradient: bool, x_BTD, w_VD, targets_BT, weights_BT):
    """One device's positions and its part of the vocabulary; sums over devices at the end."""
    head, z_loss = static.head, static.z_loss
    chunks = in_chunks(static.chunk, x_BTD, targets_BT, weights_BT)

    def step(carry, chunk_of):
        loss, entropy, dw_DV = carry
        x_ND, targets_N, weights_N = chunk_of
        of = head_chunks.logits(head, x_ND, w_VD)
        p = head_chunks.softmax(head, of.logits_NV)
        target = head_chunks.target(head, of.logits_NV, w_VD, targets_N)
        log_z_N = p.log_z_N
        entropy_N = log_z_N - target.logit_N
        entropy += jnp.sum(entropy_N * weights_N)
        loss += jnp.sum((entropy_N + z_loss * jnp.square(log_z_N)) * weights_N)
        if not with_gradient:
            return (loss, entropy, dw_DV), None
        scale_N = weights_N * (1 + 2 * z_loss * log_z_N) / p.sum_N
        d_NV = p.exp_NV * scale_N[:, None] - jnp.where(target.is_target_NV, weights_N[:, None], 0)
        dx_ND, dw = head_chunks.backward(head, d_NV, of.capped_NV, x_ND, w_VD)
        return (loss, entropy, dw_DV + dw), dx_ND

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, head_chunks.no_gradient(head, w_VD, with_gradient))
    (loss, entropy, dw_DV), dx_CND = jax.lax.scan(step, start, chunks)
    loss, entropy = (head_chunks.over_positions(head, s) for s in (loss, entropy))
    if not with_gradient:
        return loss, entropy
    return loss, entropy, dx_CND.reshape(x_BTD.shape), head_chunks.sum_head_gradient(head, dw_DV)


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
    use, master, stored = head_use(head, config, place)
    return _logprobs(_Static(use, 0.0, chunk), master, stored, x_BTD, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(static: _Static, master, stored, x_BTD, targets_BT):
    how = static.head.how
    run = how.place.local(
        functools.partial(_local_logprobs, static), (X_DIMS, W_DIMS, TARGET_DIMS), TARGET_DIMS
    )
    return run(x_BTD, how.gather(stored), targets_BT)


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
    head = static.head

    def step(_, chunk_of):
        x_ND, targets_N = chunk_of
        logits_NV = head_chunks.logits(head, x_ND, w_VD).logits_NV
        logit_N = head_chunks.target(head, logits_NV, w_VD, targets_N).logit_N
        return None, logit_N - head_chunks.softmax(head, logits_NV).log_z_N

    chunks = in_chunks(static.chunk, x_BTD, targets_BT)
    return jax.lax.scan(step, None, chunks)[1].reshape(targets_BT.shape)
