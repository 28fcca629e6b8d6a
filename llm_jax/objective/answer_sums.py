"""Sums over the tokens of answers: what every loss of preferences is made of."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class AnswerSums(NamedTuple):
    """Sums over the trained tokens of some answers; arrays of one shape, float32."""

    logp: jax.Array
    """Log-probabilities that the policy gives, nats."""
    gain: jax.Array
    """How much larger these are than the reference's, nats; `logp` where there is no reference."""
    tokens: jax.Array
    """The number of trained tokens, at least 1."""
    there: jax.Array
    """1 for an answer, 0 for a place without one: its other values are such that any loss of it is finite."""

    @property
    def mean_logp(self) -> jax.Array:
        """The log-probability of a token, on average, nats."""
        return self.logp / self.tokens


def of_rows(policy_logp_BT: jax.Array, reference_logp_BT: jax.Array | None, mask_BT: jax.Array) -> AnswerSums:
    """The sums of answers that have a row each: arrays [B].

    Log-probabilities are those of the row's tokens in nats; the mask is 1 for a trained token, else 0.
    """
    return _sums(policy_logp_BT, reference_logp_BT, mask_BT, lambda x_BT: jnp.sum(x_BT, -1))


def of_segments(
    policy_logp_BT: jax.Array,
    reference_logp_BT: jax.Array | None,
    mask_BT: jax.Array,
    segments_BT: jax.Array,
    count: int,
) -> AnswerSums:
    """The sums of answers that share rows, in the order of the rows' segments, 1 to `count`: [B, count].

    count: the most segments that a row has. The other arguments are those of `of_rows`.
    """
    is_of_BTS = segments_BT[:, :, None] == 1 + jnp.arange(count)

    def add(x_BT: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(is_of_BTS, x_BT[:, :, None], 0), 1)

    return _sums(policy_logp_BT, reference_logp_BT, mask_BT, add)


def _sums(policy_logp_BT, reference_logp_BT, mask_BT, add) -> AnswerSums:
    policy_logp_BT, mask_BT = jnp.asarray(policy_logp_BT, jnp.float32), jnp.asarray(mask_BT)
    trained_BT = mask_BT > 0
    # What is not trained may be anything, infinite too.
    logp_BT = jnp.where(trained_BT, policy_logp_BT, 0)
    tokens = add(trained_BT.astype(jnp.float32))
    there = (tokens > 0).astype(jnp.float32)
    logp = add(logp_BT)
    gain = logp
    if reference_logp_BT is not None:
        # Token by token: the difference of two large sums would lose digits.
        gain = add(jnp.where(trained_BT, logp_BT - jnp.asarray(reference_logp_BT, jnp.float32), 0))
    return AnswerSums(jnp.where(there > 0, logp, -1.0), gain, jnp.maximum(tokens, 1), there)


def halves(sums: AnswerSums) -> tuple[AnswerSums, AnswerSums]:
    """(chosen, rejected), each [B / 2]: the first half of the rows, and the second."""
    if sums.logp.shape[0] % 2:
        raise ValueError(f"{sums.logp.shape[0]} rows; the chosen ones and as many rejected ones are wanted")
    return tuple(AnswerSums(*part) for part in zip(*(jnp.split(x, 2) for x in sums), strict=True))  # type: ignore[return-value]


def alternating(sums: AnswerSums) -> tuple[AnswerSums, AnswerSums]:
    """(chosen, rejected), each [B, S / 2]: of each row the answers 0, 2, 4, ..., and 1, 3, 5, ..."""
    pairs = [x.reshape(x.shape[0], -1, 2) for x in sums]
    return AnswerSums(*(x[..., 0] for x in pairs)), AnswerSums(*(x[..., 1] for x in pairs))
