"""Divergence of two linear heads' next-token distributions, in chunks of positions: the logits of the whole
batch exist of neither.

S is the student's distribution and T the teacher's, both softmaxes of (soft-capped) logits divided by a
temperature. With beta as GKD defines it (Agarwal et al. 2024, eq. 2; TRL's `generalized_jsd_loss`):

| beta      | divergence                                                       | named                  |
|-----------|------------------------------------------------------------------|------------------------|
| 0         | KL(T ‖ S) = Σ T (log T - log S)                                  | forward KL             |
| 1         | KL(S ‖ T) = Σ S (log S - log T)                                  | reverse KL             |
| otherwise | beta KL(T ‖ M) + (1 - beta) KL(S ‖ M), M = beta T + (1 - beta) S | generalised JSD        |

The ends are defined apart: the generalised form is 0 there. The temperature's square, by which Hinton et al.
(2015) multiply, is not applied (as in TRL). All is in float32, whatever the dtypes of the models are.

The gradient is made in the forward pass, as in `cross_entropy.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Dims, Placement
from llm_jax.model.weights import Weight
from llm_jax.objective import head_chunks
from llm_jax.objective.head_chunks import NEVER, TARGET_DIMS, W_DIMS, X_DIMS, Head, head_use, in_chunks

TOP_DIMS = ("batch", "sequence", None)


@dataclass(frozen=True)
class DivergenceKind:
    """What is minimised at each position:
    (1 - hard) * divergence + hard * cross-entropy + z_loss * log(Z)^2 (of the student's undivided logits).
    """

    beta: float = 0.0
    temperature: float = 1.0
    hard: float = 0.0
    z_loss: float = 0.0


class Teacher(NamedTuple):
    """A teacher's hidden states with its head: it may have another width than the student."""

    x_BTD: jax.Array
    """After the final norm, in its compute dtype. It gets no gradient."""
    head: Weight
    """[V, D]; the student's vocabulary."""
    config: ModelConfig


class TopTokens(NamedTuple):
    """A teacher's likeliest tokens, in its stead. The rest of its mass is one bucket.

    The divergence is that of the k + 1 outcomes "token i" and "any other token": the student's mass outside
    of the k tokens counts, and how it divides there is free.
    """

    ids_BTK: jax.Array
    """int32: k different tokens."""
    logp_BTJ: jax.Array
    """float32, J = k + 1: their log-probabilities at the temperature, and last that of all other tokens."""


class Divergences(NamedTuple):
    """Weighted sums over positions, float32 []. Only the total has a gradient."""

    total: jax.Array
    divergence: jax.Array
    cross_entropy: jax.Array
    """Of the targets, at temperature 1."""


def linear_divergence(
    x_BTD: jax.Array,
    head: Weight,
    config: ModelConfig,
    teacher: Teacher | TopTokens,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    kind: DivergenceKind,
    place: Placement | None = None,
    *,
    chunk: int = 1024,
) -> Divergences:
    """The divergence between a student and a teacher.

    x_BTD: the student's hidden states; head: its, [V, D]. Logits are soft-capped first, as each model's
    configuration has it. `chunk` is positions per chunk and device, rounded to divide them: twice its logits
    exist at once.
    """
    student, master, stored = head_use(head, config, place, "float32")
    if isinstance(teacher, TopTokens):
        return _divergence(_Pair(student, None, kind, chunk), master, stored, x_BTD, targets_BT, weights_BT, teacher)  # fmt: skip  # noqa: E501
    other, _, stored_of_teacher = head_use(teacher.head, teacher.config, place, "float32")
    arrays = jax.lax.stop_gradient((teacher.x_BTD, stored_of_teacher))
    return _divergence(_Pair(student, other, kind, chunk), master, stored, x_BTD, targets_BT, weights_BT, arrays)  # fmt: skip  # noqa: E501


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A student and a teacher: all that is no array."""

    student: Head
    teacher: Head | None
    """None: `TopTokens`."""
    kind: DivergenceKind
    chunk: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(static: _Pair, master, stored, x_BTD, targets_BT, weights_BT, teacher):
    """Without a gradient: only the sums."""
    return Divergences(*_run(static, False, stored, x_BTD, targets_BT, weights_BT, teacher))


def _forward(static: _Pair, master, stored, x_BTD, targets_BT, weights_BT, teacher):
    *sums, dx_BTD, dw_VD = _run(static, True, stored, x_BTD, targets_BT, weights_BT, teacher)
    return Divergences(*sums), (dx_BTD, head_chunks.placed_gradient(static.student, dw_VD))


def _backward(static: _Pair, gradients, cotangents: Divergences):
    dx_BTD, dw_VD = gradients
    g = cotangents.total
    return head_chunks.scaled(dw_VD, g), None, (dx_BTD * g).astype(dx_BTD.dtype), None, None, None


_divergence.defvjp(_forward, _backward)


def _run(static: _Pair, with_gradient: bool, stored, x_BTD, targets_BT, weights_BT, teacher):
    """The sums and, with_gradient, (dx_BTD, dw_VD): every device on its own part."""
    student = static.student
    gathered: tuple[jax.Array, ...] = tuple(teacher)
    dims: tuple[Dims, Dims] = (TOP_DIMS, TOP_DIMS)
    if static.teacher is not None:
        x, w = teacher
        gathered, dims = (x, static.teacher.how.gather(w)), (X_DIMS, W_DIMS)
    gradients = (X_DIMS, head_chunks.gradient_spec(student)) if with_gradient else ()
    run = student.place.local(
        functools.partial(_local, static, with_gradient),
        (X_DIMS, W_DIMS, TARGET_DIMS, TARGET_DIMS, *dims),
        ((), (), (), *gradients),
    )
    return run(x_BTD, student.how.gather(stored), targets_BT, weights_BT, *gathered)


def _local(static: _Pair, with_gradient: bool, x_BTD, w_VD, targets_BT, weights_BT, *teacher):
    """One device's positions and its part of the vocabulary; sums over devices at the end."""
    head, kind = static.student, static.kind
    by_position = teacher if static.teacher is None else teacher[:1]
    chunks = in_chunks(static.chunk, x_BTD, targets_BT, weights_BT, *by_position)

    def step(carry, chunk_of):
        sums, dw_DV = carry
        x_ND, targets_N, weights_N, *of_teacher = chunk_of
        of = head_chunks.logits(head, x_ND, w_VD)
        p = head_chunks.softmax(head, of.logits_NV)
        student_NV = of.logits_NV - p.log_z_N[:, None]
        if kind.temperature != 1:
            student_NV = log_softmax(head, of.logits_NV / kind.temperature)
        if static.teacher is None:
            teacher_NV = from_top_tokens(head, student_NV, TopTokens(*of_teacher))
        else:
            theirs = head_chunks.logits(static.teacher, of_teacher[0], teacher[1])
            teacher_NV = log_softmax(static.teacher, theirs.logits_NV / kind.temperature)
        divergence_N, d_NV = divergence(student_NV, teacher_NV, kind.beta, head)
        target = head_chunks.target(head, of.logits_NV, w_VD, targets_N)
        entropy_N = p.log_z_N - target.logit_N
        total_N = (1 - kind.hard) * divergence_N + kind.hard * entropy_N + kind.z_loss * jnp.square(p.log_z_N)
        sums = [
            s + jnp.sum(a * weights_N) for s, a in zip(sums, (total_N, divergence_N, entropy_N), strict=True)
        ]
        if not with_gradient:
            return (sums, dw_DV), None
        d_NV *= ((1 - kind.hard) / kind.temperature) * weights_N[:, None]
        if kind.hard or kind.z_loss:
            scale_N = weights_N * (kind.hard + 2 * kind.z_loss * p.log_z_N) / p.sum_N
            d_NV += p.exp_NV * scale_N[:, None]
            d_NV -= jnp.where(target.is_target_NV, kind.hard * weights_N[:, None], 0)
        dx_ND, dw = head_chunks.backward(head, d_NV, of.capped_NV, x_ND, w_VD)
        return (sums, dw_DV + dw), dx_ND

    zero = jnp.zeros((), jnp.float32)
    start = ([zero] * 3, head_chunks.no_gradient(head, w_VD, with_gradient))
    (sums, dw_DV), dx_CND = jax.lax.scan(step, start, chunks)
    sums = [head_chunks.over_positions(head, s) for s in sums]
    if not with_gradient:
        return tuple(sums)
    return *sums, dx_CND.reshape(x_BTD.shape), head_chunks.sum_head_gradient(head, dw_DV)


def divergence(
    student_NV: jax.Array, teacher_NV: jax.Array, beta: float, head: Head
) -> tuple[jax.Array, jax.Array]:
    """(the divergence of each position, its gradient with respect to the logits that student_NV is the
    log-softmax of), from log-probabilities, float32.

    With g = the derivative of the divergence by the student's probabilities, up to a constant, the gradient
    is S (g - Σ S g).
    """
    total = functools.partial(_sum, head)
    s_NV, t_NV = jnp.exp(student_NV), jnp.exp(teacher_NV)
    if beta == 0:
        return total(t_NV * (teacher_NV - student_NV)), s_NV - t_NV
    if beta == 1:
        g_NV = student_NV - teacher_NV
        kl_N = total(s_NV * g_NV)
        return kl_N, s_NV * (g_NV - kl_N[:, None])
    mixture_NV = jnp.logaddexp(student_NV + math.log1p(-beta), teacher_NV + math.log(beta))
    g_NV = student_NV - mixture_NV
    kl_student_N, kl_teacher_N = total(s_NV * g_NV), total(t_NV * (teacher_NV - mixture_NV))
    d_NV = (1 - beta) * s_NV * (g_NV - kl_student_N[:, None])
    return beta * kl_teacher_N + (1 - beta) * kl_student_N, d_NV


def _sum(head: Head, x_NV: jax.Array) -> jax.Array:
    """The sum over the whole vocabulary."""
    return head.over_vocabulary(jax.lax.psum, jnp.sum(x_NV, -1))


def log_softmax(head: Head, logits_NV: jax.Array) -> jax.Array:
    """Log-probabilities over the whole vocabulary, float32."""
    return logits_NV - head_chunks.softmax(head, logits_NV).log_z_N[:, None]


def log_sum_exp(head: Head, x_NV: jax.Array) -> jax.Array:
    """log Σ exp over the whole vocabulary."""
    return head_chunks.softmax(head, x_NV).log_z_N


def from_top_tokens(head: Head, student_NV: jax.Array, top: TopTokens) -> jax.Array:
    """The teacher's log-probabilities, where the rest of its mass is divided as the student divides its own.

    The divergence from it, and its gradient, is then that of the k + 1 outcomes: inside of the bucket the two
    differ by a factor.
    """
    ids_NK, logp_NJ = top.ids_BTK, top.logp_BTJ
    tail_N = log_sum_exp(head, put(head, student_NV, ids_NK, NEVER))
    rest_NV = student_NV + (logp_NJ[:, -1] - tail_N)[:, None]
    return put(head, rest_NV, ids_NK, logp_NJ[:, :-1])


def put(head: Head, x_NV: jax.Array, ids_NK: jax.Array, values: jax.Array | float) -> jax.Array:
    """x_NV with other values at some tokens of each position."""
    V = x_NV.shape[1]
    own_NK = ids_NK - head.first_token(x_NV.T)
    own_NK = jnp.where((own_NK >= 0) & (own_NK < V), own_NK, V)  # out of bounds: another device has it
    return x_NV.at[jnp.arange(x_NV.shape[0])[:, None], own_NK].set(values, mode="drop")


def linear_top_tokens(
    teacher: Teacher, k: int, temperature: float, place: Placement | None = None, *, chunk: int = 1024
) -> TopTokens:
    """The k likeliest tokens of each position with their log-probabilities, and that of all others.

    k: less than the vocabulary.
    """
    head, _, stored = head_use(teacher.head, teacher.config, place, "float32")
    local: Callable = functools.partial(_local_top_tokens, head, k, temperature, chunk)
    run = head.place.local(local, (X_DIMS, W_DIMS), (TOP_DIMS, TOP_DIMS))
    return TopTokens(*run(teacher.x_BTD, head.how.gather(stored)))


def _local_top_tokens(head: Head, k: int, temperature: float, chunk: int, x_BTD, w_VD):
    """The top tokens of one device's positions."""

    def step(_, chunk_of):
        (x_ND,) = chunk_of
        logp_NV = log_softmax(head, head_chunks.logits(head, x_ND, w_VD).logits_NV / temperature)
        values_NK, ids_NK = jax.lax.top_k(logp_NV, min(k, w_VD.shape[0]))
        ids_NK += head.first_token(w_VD)
        if head.vocab_axes:  # the best of each device's best
            both = (jax.lax.all_gather(a, head.vocab_axes, axis=1, tiled=True) for a in (values_NK, ids_NK))
            values_NK, ids_NK = both
            values_NK, at_NK = jax.lax.top_k(values_NK, k)
            ids_NK = jnp.take_along_axis(ids_NK, at_NK, axis=1)
        tail_N = log_sum_exp(head, put(head, logp_NV, ids_NK, NEVER))
        return None, (ids_NK, jnp.concatenate([values_NK, tail_N[:, None]], 1))

    _, (ids, logp) = jax.lax.scan(step, None, in_chunks(chunk, x_BTD))
    return tuple(a.reshape(*x_BTD.shape[:2], -1) for a in (ids, logp))
