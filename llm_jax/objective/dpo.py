"""Direct preference optimisation (DPO) and its kin: a policy learns which of two answers is better, and stays
near a reference.

With b(y) = beta times the sum of log(policy / reference) over an answer's tokens, the reward that the policy
implies (Rafailov et al. 2023), the sigmoid loss of a pair is -log sigmoid(b(chosen) - b(rejected)): the
negative log-likelihood of the Bradley-Terry model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from llm_jax.core.errors import UserError, require
from llm_jax.objective import answer_sums
from llm_jax.objective.answer_sums import AnswerSums
from llm_jax.objective.preference import PairObjective, WithReference

PairLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "sigmoid_norm",
]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
WITH_SMOOTHING = ("sigmoid", "robust", "exo_pair")
"""The losses that label_smoothing changes."""
WITH_DIVERGENCE = ("sigmoid", "hinge", "ipo", "robust", "exo_pair", "sigmoid_norm")
"""The losses of a difference of scores; the others are of each answer's gain."""
LARGEST_EXPONENT = 80.0
"""exp(88.8) is infinite in float32."""


@dataclass(frozen=True)
class DPO(WithReference, PairObjective):
    """Makes chosen answers likelier than rejected ones, as against a reference."""

    name: str = "dpo"
    loss: PairLoss = "sigmoid"  # type: ignore[assignment]
    """The loss of a pair (docs/post_training.md has the formulas)."""
    beta: float = 0.1
    """How much an answer's gain over the reference counts: the larger, the nearer the policy stays."""
    label_smoothing: float = 0.0
    """The probability that a pair's labels are exchanged: of cDPO (loss=sigmoid), `robust` and `exo_pair`."""
    divergence: Divergence = "reverse_kl"
    """Which divergence from the reference is held down (f-DPO, Wang et al. 2024)."""
    alpha: float = 0.5
    """Of alpha_divergence; 1 is reverse_kl."""
    sft: float = 0.0
    """Weight of the chosen answers' cross-entropy, a mean over their tokens (RPO, Pang et al. 2024)."""

    def check(self) -> None:
        """Raises UserError for a value out of range, or one that the chosen loss doesn't read."""
        super().check()
        require(0 < self.beta < math.inf, "objective.beta", self.beta, "above 0, e.g. 0.1")
        require(0 <= self.sft < math.inf, "objective.sft", self.sft, "0 (off) or more, e.g. 1")
        require(math.isfinite(self.alpha), "objective.alpha", self.alpha, "a finite number, e.g. 0.5")
        if self.alpha != DPO.alpha and self.divergence != "alpha_divergence":
            raise UserError(
                f"objective.alpha={self.alpha}: has an effect only with "
                "objective.divergence=alpha_divergence. Add that, or leave objective.alpha out"
            )
        smoothing = self.label_smoothing
        require(0 <= smoothing < 0.5, "objective.label_smoothing", smoothing, "0 or more, and below 0.5")
        if smoothing and self.loss not in WITH_SMOOTHING:
            raise UserError(
                f"objective.label_smoothing={smoothing}: loss={self.loss} has none. Leave it out, or use "
                f"objective.loss={', '.join(WITH_SMOOTHING)}"
            )
        if self.loss == "exo_pair" and not smoothing:
            raise UserError(
                f"objective.label_smoothing={smoothing}: exo_pair takes its logarithm. Give a small one, "
                "e.g. 0.001"
            )
        if self.divergence != "reverse_kl" and self.loss not in WITH_DIVERGENCE:
            raise UserError(
                f"objective.divergence={self.divergence}: loss={self.loss} is defined for reverse_kl only. "
                f"Leave it out, or use objective.loss={', '.join(WITH_DIVERGENCE)}"
            )

    @property
    def cross_entropy_weight(self) -> float:
        """The weight of the chosen answers' cross-entropy."""
        return self.sft

    def pair_losses(self, chosen: AnswerSums, rejected: AnswerSums) -> jax.Array:
        """The losses of pairs."""
        return pair_losses(self, chosen, rejected)


def preference_loss(
    config: DPO, policy_logp_BT: jax.Array, reference_logp_BT: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """The mean loss over pairs, float32 []: of B / 2 chosen answers, a row each, and then as many rejected
    ones in the same order.

    Log-probabilities are those of the tokens, in nats, float32; the mask is 1 for a token of the completion,
    else 0. With config.sft the chosen answers' cross-entropy is added, a mean over all their tokens.
    """
    sums = answer_sums.of_rows(policy_logp_BT, reference_logp_BT, mask_BT)
    chosen, rejected = answer_sums.halves(sums)
    loss = jnp.mean(pair_losses(config, chosen, rejected))
    if config.sft:
        loss -= config.sft * jnp.sum(chosen.logp) / jnp.sum(chosen.tokens)
    return loss


def pair_losses(config: DPO, chosen: AnswerSums, rejected: AnswerSums) -> jax.Array:
    """The loss of each pair, float32, in the shape of the sums.

    Sources: sigmoid, Rafailov et al. 2023, with smoothing cDPO, Mitchell 2023; hinge, SLiC-HF, Zhao et al.
    2023; ipo, Azar et al. 2023, with means over tokens in place of sums; robust, Chowdhury et al. 2024;
    exo_pair, Ji et al. 2024, eq. 16; nca_pair, Chen et al. 2024; bco_pair, Jung et al. 2024, without its
    running mean; sppo_hard, Wu et al. 2024, eq. 4.7 with outcomes 1 and 0; apo_zero and apo_down,
    D'Oosterlinck et al. 2024, eq. 7 and 8; sigmoid_norm, DPO of means over tokens, Lambert et al. 2024
    (Tülu 3).
    """
    beta, smoothing, log_sigmoid = config.beta, config.label_smoothing, jax.nn.log_sigmoid
    score_c, score_r = score(config, chosen.gain), score(config, rejected.gain)
    reward_c, reward_r = beta * chosen.gain, beta * rejected.gain
    margin = beta * (score_c - score_r)
    match config.loss:
        case "sigmoid":
            return -(1 - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin)
        case "hinge":
            return jax.nn.relu(1 - margin)
        case "ipo":
            return jnp.square(score_c / chosen.tokens - score_r / rejected.tokens - 1 / (2 * beta))
        case "robust":
            clean, exchanged = -log_sigmoid(margin), -log_sigmoid(-margin)
            return ((1 - smoothing) * clean - smoothing * exchanged) / (1 - 2 * smoothing)
        case "exo_pair":
            right, wrong = log_sigmoid(margin), log_sigmoid(-margin)
            return jnp.exp(right) * (right - math.log1p(-smoothing)) + jnp.exp(wrong) * (
                wrong - math.log(smoothing)
            )
        case "nca_pair":
            return -log_sigmoid(reward_c) - 0.5 * (log_sigmoid(-reward_c) + log_sigmoid(-reward_r))
        case "bco_pair":
            return -log_sigmoid(reward_c) - log_sigmoid(-reward_r)
        case "sppo_hard":
            return jnp.square(chosen.gain - 0.5 / beta) + jnp.square(rejected.gain + 0.5 / beta)
        case "apo_zero":
            return jax.nn.sigmoid(-reward_c) + jax.nn.sigmoid(reward_r)
        case "apo_down":
            return jax.nn.sigmoid(reward_c) + jax.nn.sigmoid(reward_r - reward_c)
        case "sigmoid_norm":
            return -log_sigmoid(beta * (score_c / chosen.tokens - score_r / rejected.tokens))
    raise ValueError(config.loss)


def score(config: DPO, gain: jax.Array) -> jax.Array:
    """The derivative f'(policy / reference) of the divergence's generator f, from the logarithm of the ratio,
    up to a constant (Wang et al. 2024, table 1)."""
    match config.divergence:
        case "forward_kl":
            return 1 - jnp.exp(jnp.minimum(-gain, LARGEST_EXPONENT))
        case "js_divergence":
            return math.log(2) + jax.nn.log_sigmoid(gain)
        case "alpha_divergence" if config.alpha != 1:
            less = config.alpha - 1
            return jnp.expm1(jnp.minimum(less * gain, LARGEST_EXPONENT)) / less
    return gain
