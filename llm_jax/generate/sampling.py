"""Draws the next token from logits.

The order of the steps is that of transformers' `generate` (its `_get_logits_processor`): repetition penalty,
temperature, top-k, top-p, min-p. A row's token depends on the row's logits, settings, seed and position, and
on nothing else in the batch.

A cut keeps every token that is as likely as the least likely one it keeps: ties are not broken by token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

FLOAT32 = jnp.finfo(jnp.float32)


class Settings(NamedTuple):
    """Sampling settings of each row of a batch, arrays [B]."""

    temperature: jax.Array
    """float32: logits are divided by it; 0: always the most likely token."""
    top_k: jax.Array
    """int32: only the k most likely tokens; 0: all."""
    top_p: jax.Array
    """float32: only the most likely tokens that together have this probability, at least one (Holtzman et al.
    2019); 1: all."""
    min_p: jax.Array
    """float32: only tokens at least this times as likely as the most likely one (Nguyen et al. 2024); 0:
    all."""
    repetition_penalty: jax.Array
    """float32: positive logits of tokens seen before are divided by it, negative ones multiplied (Keskar et
    al. 2019); 1: off."""
    seed: jax.Array
    """uint32: with the position it determines the noise."""


def draw(
    logits_BV: jax.Array,
    seen_BV: jax.Array,
    position_B: jax.Array,
    settings: Settings,
    vocab: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(token_B int32, logprob_B float32, in nats), from float32 logits.

    seen_BV: bool, whether a token is in the row's prompt or continuation. position_B: int32, the position
    that the drawn token gets. vocab: token ids from this one on, which only pad the embedding, are never
    drawn; None: all may be. The log-probability is the model's: of the logits as they are, before penalty,
    temperature and cuts.
    """
    x_BV = apply_repetition_penalty(logits_BV, seen_BV, settings.repetition_penalty)
    if vocab is not None and vocab < x_BV.shape[-1]:
        x_BV = jnp.where(jnp.arange(x_BV.shape[-1]) < vocab, x_BV, -jnp.inf)
    greedy_B = jnp.argmax(x_BV, -1).astype(jnp.int32)

    def sample() -> jax.Array:
        cut_BV = divide_by_temperature(
            x_BV, jnp.where(settings.temperature > 0, settings.temperature, 1)[:, None]
        )
        cut_BV = apply_where(settings.top_k > 0, lambda x: top_k(x, settings.top_k), cut_BV)
        cut_BV = apply_where(settings.top_p < 1, lambda x: top_p(x, settings.top_p), cut_BV)
        cut_BV = apply_where(settings.min_p > 0, lambda x: min_p(x, settings.min_p), cut_BV)
        noise_BV = jax.vmap(lambda seed, position: noise(seed, position, cut_BV.shape[-1]))(
            settings.seed, position_B
        )
        return jnp.where(
            settings.temperature > 0, jnp.argmax(cut_BV + noise_BV, -1).astype(jnp.int32), greedy_B
        )

    token_B = jax.lax.cond(jnp.any(settings.temperature > 0), sample, lambda: greedy_B)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], -1)[:, 0]
    return token_B, chosen_B - jax.nn.logsumexp(logits_BV, -1)


def in_range(x: jax.Array | float) -> jax.Array:
    """A positive float32 of which processors take neither it nor its reciprocal for 0, as they may what is
    below the smallest normal number.
    """
    return jnp.clip(x, FLOAT32.tiny, 1 / FLOAT32.tiny)


def divide_by_temperature(x_BV: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Logits less the largest of their row, so that no temperature above 0 makes infinities of them, divided
    by it.
    """
    return (x_BV - jnp.max(x_BV, -1, keepdims=True)) / in_range(temperature)


def apply_where(wanted_B: jax.Array, cut: Callable[[jax.Array], jax.Array], x_BV: jax.Array) -> jax.Array:
    """x_BV with `cut` applied to the rows where `wanted_B` is true. `cut` is not computed where no row wants
    it."""
    return jax.lax.cond(
        jnp.any(wanted_B), lambda x: jnp.where(wanted_B[:, None], cut(x), x), lambda x: x, x_BV
    )


def noise(seed: jax.Array, position: jax.Array, vocab: int) -> jax.Array:
    """Gumbel noise [V], float32, for one position of one request: the argmax of logits plus noise is a draw
    from their softmax."""
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (vocab,), jnp.float32)


def apply_repetition_penalty(x_BV: jax.Array, seen_BV: jax.Array, penalty_B: jax.Array) -> jax.Array:
    """Logits with those of tokens seen before lowered (for penalties above 1; raised for those below)."""
    penalty_B1 = in_range(penalty_B)[:, None]
    penalized_BV = jnp.where(x_BV > 0, x_BV / penalty_B1, x_BV * penalty_B1)
    return jnp.where(seen_BV, jnp.clip(penalized_BV, -FLOAT32.max / 2, FLOAT32.max / 2), x_BV)


def top_k(x_BV: jax.Array, k_B: jax.Array) -> jax.Array:
    """Logits with -inf for every token below the k-th largest of its row."""
    return keep_above_threshold(
        x_BV, x_BV, lambda kept_BV: jnp.sum(kept_BV, -1) >= jnp.minimum(k_B, x_BV.shape[-1])
    )


def top_p(x_BV: jax.Array, p_B: jax.Array) -> jax.Array:
    """Logits with -inf for all but the smallest set of most likely tokens whose probabilities sum to at least
    p."""
    probability_BV, p_B = jax.nn.softmax(x_BV), in_range(p_B)
    return keep_above_threshold(
        x_BV, probability_BV, lambda kept_BV: jnp.sum(jnp.where(kept_BV, probability_BV, 0), -1) >= p_B
    )


def min_p(x_BV: jax.Array, p_B: jax.Array) -> jax.Array:
    """Logits with -inf for tokens of less than p times the probability of the most likely one."""
    probability_BV = jax.nn.softmax(x_BV)
    return jnp.where(
        probability_BV < p_B[:, None] * jnp.max(probability_BV, -1, keepdims=True), -jnp.inf, x_BV
    )


def keep_above_threshold(
    x_BV: jax.Array, value_BV: jax.Array, enough: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """x_BV where value_BV is at least a row's threshold, else -inf. The threshold is the largest one whose
    kept tokens are `enough`.

    enough: kept_BV (bool) → bool [B], monotone in the threshold. The threshold is found by bisection on the
    bits of the values, from the top (`sortable_bits`). That takes 32 sums over the row for any k or p;
    sorting a vocabulary takes many times that on CPUs. Where no threshold is enough (rounding: the whole row
    sums to less than p), the whole row is kept.
    """
    bits_BV = sortable_bits(value_BV)

    def with_bit(i: jax.Array, threshold_B: jax.Array) -> jax.Array:
        higher_B = threshold_B | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(enough(bits_BV >= higher_B[:, None]), higher_B, threshold_B)

    threshold_B = jax.lax.fori_loop(0, 32, with_bit, jnp.zeros(len(x_BV), jnp.uint32))
    return jnp.where(bits_BV >= threshold_B[:, None], x_BV, -jnp.inf)


def sortable_bits(x: jax.Array) -> jax.Array:
    """uint32 that sort as the float32 values do: the bits, all flipped for negative numbers, the sign bit
    flipped for others."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)  # + 0.0: -0 is 0
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
