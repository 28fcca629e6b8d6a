"""Building blocks of losses: hidden states, token log-probabilities, cross-entropies and divergences, all in
one order of positions.

A layout may keep positions in another order (`attention_context.arrange`); the functions here take and return
arrays [B, T] in the natural one. Logits of a whole batch never exist: all go through `cross_entropy.py` and
`divergence.py`, in chunks of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax

from llm_jax.model.attention_context import arrange, restore
from llm_jax.model.router import Routing
from llm_jax.model.transformer import Transformer
from llm_jax.objective.cross_entropy import linear_cross_entropy, linear_logprobs
from llm_jax.objective.divergence import (
    DivergenceKind,
    Divergences,
    Teacher,
    TopTokens,
    linear_divergence,
    linear_top_tokens,
)

CHUNK = 1024
"""Default number of positions whose logits exist at once on a device."""


class Hidden(NamedTuple):
    """The last hidden states of a model.

    To be given to the functions below, which know its order of positions.
    """

    x_BTD: jax.Array
    """After the final norm, in the compute dtype and in the layout's order of positions."""
    routing: Routing | None
    """Statistics of the routers, stacked over the layers that have experts; None without experts."""


def join_parts(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Arrays [B, P, T], such as the pairs of a preference, as [B x P, T]: one batch for `hidden_states`.

    Others are left out.
    """
    return {name: value.reshape(-1, value.shape[-1]) for name, value in batch.items() if value.ndim == 3}


def split_parts(x_NT: jax.Array, parts: int) -> jax.Array:
    """The reverse of `join_parts` for one array: [B x P, ...] as [B, P, ...]."""
    return x_NT.reshape(-1, parts, *x_NT.shape[1:])


def hidden_states(model: Transformer, batch: Mapping[str, jax.Array]) -> Hidden:
    """Runs the model's body once on tokens, positions and segments, each int32 [B, T].

    Routers count a row's tokens by `weights` [B, T], the tokens' weights in the loss.
    """
    tokens, positions, weights = (
        arrange(batch[name], model.place) for name in ("tokens", "positions", "weights")
    )
    return Hidden(*model.stream(tokens, positions, batch["segments"], weights))


def token_logprobs(
    model: Transformer, hidden: Hidden, targets_BT: jax.Array, *, chunk: int = CHUNK
) -> jax.Array:
    """log p(target | tokens before it) in nats, float32 [B, T], differentiable with respect to the model and
    hidden states.

    The logits are soft-capped first where the model does that. The log-softmax is in float32. The backward
    pass computes each chunk's logits again, so neither pass holds more than a chunk of them.
    """
    arranged = arrange(targets_BT, model.place)
    logprobs_BT = linear_logprobs(
        hidden.x_BTD, model.output, arranged, model.config, model.place, chunk=chunk
    )
    return restore(logprobs_BT, model.place)


def cross_entropy(
    model: Transformer,
    hidden: Hidden,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """(weighted sum of cross-entropies plus z-losses, weighted sum of cross-entropies), float32 []; only the
    first has a gradient.

    The weights are constants, so gradients are computed in the forward pass while a chunk's logits are there:
    this costs less than differentiating `token_logprobs`, which is for losses that aren't linear in the
    log-probabilities.
    """
    targets_BT, weights_BT = (arrange(x, model.place) for x in (targets_BT, weights_BT))
    return linear_cross_entropy(
        hidden.x_BTD,
        model.output,
        targets_BT,
        weights_BT,
        model.config,
        model.place,
        z_loss=z_loss,
        chunk=chunk,
    )


def divergence(
    model: Transformer,
    hidden: Hidden,
    teacher: tuple[Transformer, Hidden] | TopTokens,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    kind: DivergenceKind,
    *,
    chunk: int = CHUNK,
) -> Divergences:
    """Weighted sums of the divergence from a teacher's next-token distribution, mixed as `kind` has it.

    teacher: another model with its hidden states of the same batch, or its likeliest tokens.
    """
    place = model.place
    if isinstance(teacher, TopTokens):
        theirs: Teacher | TopTokens = TopTokens(*(arrange(x, place) for x in teacher))
    else:
        other, of_other = teacher
        theirs = Teacher(of_other.x_BTD, other.output, other.config)
    targets_BT, weights_BT = (arrange(x, place) for x in (targets_BT, weights_BT))
    return linear_divergence(
        hidden.x_BTD, model.output, model.config, theirs, targets_BT, weights_BT, kind, place, chunk=chunk
    )


def top_tokens(
    model: Transformer, hidden: Hidden, k: int, temperature: float = 1.0, *, chunk: int = CHUNK
) -> TopTokens:
    """The k likeliest next tokens of every position with their log-probabilities, and that of all others."""
    found = linear_top_tokens(
        Teacher(hidden.x_BTD, model.output, model.config), k, temperature, model.place, chunk=chunk
    )
    return TopTokens(*(restore(x, model.place) for x in found))
