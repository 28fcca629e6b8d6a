"""The next token from logits: what is cut off, and what is drawn of the rest.

In this order, which is that of transformers' `generate` (its `_get_logits_processor`): repetition penalty, temperature, top-k, top-p, min-p.
Each row is on its own: what it gives depends on its logits, its settings, its seed and its position, on nothing else in the batch.

A cut keeps all that are as likely as the least likely token that it keeps (ties are not broken by their ids).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Settings(NamedTuple):
    """How each row is drawn, arrays [B]."""

    temperature: jax.Array
    """float32: logits are divided by it; 0: always the most likely token."""
    top_k: jax.Array
    """int32: only the k most likely tokens; 0: all."""
    top_p: jax.Array
    """float32: only the most likely tokens that together have this probability, at least one (Holtzman et al. 2019); 1: all."""
    min_p: jax.Array
    """float32: only tokens at least this times as likely as the most likely one (Nguyen et al. 2024); 0: all."""
    repetition_penalty: jax.Array
    """float32: logits of tokens seen before are divided by it where above 0, multiplied where below (Keskar et al. 2019); 1: none."""
    seed: jax.Array
    """uint32."""


def draw(
    logits_BV: jax.Array, seen_BV: jax.Array, position_B: jax.Array, settings: Settings, vocab: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """(token_B int32, logprob_B float32), from float32 logits.

    seen_BV: whether a token is in the row's prompt or continuation. position_B: where the token will be: with the seed it gives the noise.
    vocab: tokens beyond it, which the tokenizer doesn't have, are never drawn; None: it has all.
    The log-probability is the model's: of the logits as they are, before any of the settings.
    """
    x_BV = penalised(logits_BV, seen_BV, settings.repetition_penalty)
    if vocab is not None and vocab < x_BV.shape[-1]:
        x_BV = jnp.where(jnp.arange(x_BV.shape[-1]) < vocab, x_BV, -jnp.inf)
    greedy_B = jnp.argmax(x_BV, -1).astype(jnp.int32)

    def drawn() -> jax.Array:
        least = jnp.finfo(jnp.float32).tiny
        temperature_B = jnp.where(settings.temperature > 0, jnp.maximum(settings.temperature, least), 1)
        cut_BV = (x_BV - jnp.max(x_BV, -1, keepdims=True)) / temperature_B[:, None]  # at most 0: a small temperature makes no infinities of it
        cut_BV = where_asked(settings.top_k > 0, lambda x: top_k(x, settings.top_k), cut_BV)
        cut_BV = where_asked(settings.top_p < 1, lambda x: top_p(x, settings.top_p), cut_BV)
        cut_BV = where_asked(settings.min_p > 0, lambda x: min_p(x, settings.min_p), cut_BV)
        noise_BV = jax.vmap(lambda seed, position: noise(seed, position, cut_BV.shape[-1]))(settings.seed, position_B)
        return jnp.where(settings.temperature > 0, jnp.argmax(cut_BV + noise_BV, -1).astype(jnp.int32), greedy_B)

    token_B = jax.lax.cond(jnp.any(settings.temperature > 0), drawn, lambda: greedy_B)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], -1)[:, 0]
    return token_B, chosen_B - jax.nn.logsumexp(logits_BV, -1)


def where_asked(asked_B: jax.Array, cut: Callable[[jax.Array], jax.Array], x_BV: jax.Array) -> jax.Array:
    """The rows that ask for it cut, the others as they are; nothing is computed where no row asks."""
    return jax.lax.cond(jnp.any(asked_B), lambda x: jnp.where(asked_B[:, None], cut(x), x), lambda x: x, x_BV)


def noise(seed: jax.Array, position: jax.Array, vocab: int) -> jax.Array:
    """Gumbel noise [V] of a position of a request: the most likely token after adding it is one drawn from the softmax."""
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (vocab,), jnp.float32)


def penalised(x_BV: jax.Array, seen_BV: jax.Array, penalty_B: jax.Array) -> jax.Array:
    """Tokens seen before made less likely (for penalties above 1)."""
    penalty_B1 = penalty_B[:, None]
    return jnp.where(seen_BV, jnp.where(x_BV > 0, x_BV / penalty_B1, x_BV * penalty_B1), x_BV)


def top_k(x_BV: jax.Array, k_B: jax.Array) -> jax.Array:
    """-inf for all that is less than the k-th largest of its row."""
    return above(x_BV, x_BV, lambda kept_BV: jnp.sum(kept_BV, -1) >= jnp.minimum(k_B, x_BV.shape[-1]))


def top_p(x_BV: jax.Array, p_B: jax.Array) -> jax.Array:
    """-inf for all but the smallest set of most likely tokens with a probability of at least p together."""
    probability_BV = jax.nn.softmax(x_BV)
    return above(x_BV, probability_BV, lambda kept_BV: jnp.sum(jnp.where(kept_BV, probability_BV, 0), -1) >= p_B)


def min_p(x_BV: jax.Array, p_B: jax.Array) -> jax.Array:
    """-inf for what has less than p times the probability of the most likely token."""
    probability_BV = jax.nn.softmax(x_BV)
    return jnp.where(probability_BV < p_B[:, None] * jnp.max(probability_BV, -1, keepdims=True), -jnp.inf, x_BV)


def above(x_BV: jax.Array, value_BV: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """x where its value is at least a threshold, else -inf: each row's largest threshold at which what is kept is `enough`.

    Found bit by bit, from the top: floats as integers of the same order. That takes 32 sums over the row, for any k or p, where sorting a
    vocabulary takes many times that on CPUs. Where nothing is enough (rounding: all of the row sums to less than p), all is kept.
    """
    order_BV = ordered(value_BV)

    def with_bit(i: jax.Array, threshold_B: jax.Array) -> jax.Array:
        higher_B = threshold_B | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(enough(order_BV >= higher_B[:, None]), higher_B, threshold_B)

    threshold_B = jax.lax.fori_loop(0, 32, with_bit, jnp.zeros(len(x_BV), jnp.uint32))
    return jnp.where(order_BV >= threshold_B[:, None], x_BV, -jnp.inf)


def ordered(x: jax.Array) -> jax.Array:
    """uint32 in the order of float32 values: the bits, with those of negative numbers turned round."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)  # + 0.0: -0 is 0
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
