"""Odds-ratio preference optimisation (ORPO, Hong et al. 2024): cross-entropy of the better answer, and a
penalty where the worse one has the better odds. No reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llm_jax.core.errors import require
from llm_jax.objective import answer_sums
from llm_jax.objective.answer_sums import AnswerSums
from llm_jax.objective.preference import PairObjective


@dataclass(frozen=True)
class ORPO(PairObjective):
    """The mean cross-entropy of the tokens of prompts and chosen answers, plus the mean penalty of pairs."""

    name: str = "orpo"
    beta: float = 0.1
    """Weight of the penalty (lambda in the paper)."""

    cross_entropy_of_prompts = True
    cross_entropy_weight = 1.0

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        super().check()
        require(0 < self.beta < math.inf, "objective.beta", self.beta, "above 0, e.g. 0.1")

    def pair_losses(self, chosen: AnswerSums, rejected: AnswerSums) -> jax.Array:
        """The penalties of pairs."""
        return penalties(self, chosen, rejected)

    def rewards(self, sums: AnswerSums) -> jax.Array:
        """What answers are compared by: beta times the mean log-probability of a token."""
        return self.beta * sums.mean_logp


def odds_ratio_penalty(config: ORPO, policy_logp_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """The mean penalty over pairs, -beta log sigmoid(log of the odds ratio), float32 []: of B / 2 chosen
    answers, a row each, and then as many rejected ones in the same order.

    Log-probabilities are those of the tokens, in nats, float32; the mask is 1 for a token of the completion,
    else 0.
    """
    return jnp.mean(
        penalties(config, *answer_sums.halves(answer_sums.of_rows(policy_logp_BT, None, mask_BT)))
    )


def penalties(config: ORPO, chosen: AnswerSums, rejected: AnswerSums) -> jax.Array:
    """The penalty of each pair, with odds p / (1 - p) of the mean probability p of an answer's token."""
    log_odds = logit(chosen.mean_logp) - logit(rejected.mean_logp)
    return -config.beta * jax.nn.log_sigmoid(log_odds)


def logit(logp: jax.Array) -> jax.Array:
    """log(p / (1 - p)) from log p below 0."""
    below = jnp.minimum(logp, -1e-7)  # an answer of probability 1 has infinite odds
    return below - jax.nn.log1mexp(-below)
