"""Contrastive preference optimisation (CPO, Xu et al. 2024) and SimPO (Meng et al. 2024): preferences without
a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from llm_jax.core.errors import UserError, require
from llm_jax.objective import answer_sums
from llm_jax.objective.answer_sums import AnswerSums
from llm_jax.objective.preference import PairObjective

CPOLoss = Literal["sigmoid", "hinge", "ipo", "simpo"]


@dataclass(frozen=True)
class CPO(PairObjective):
    """Makes chosen answers likelier than rejected ones, and the chosen ones likely."""

    name: str = "cpo"
    loss: CPOLoss = "sigmoid"  # type: ignore[assignment]
    """The loss of a pair, of the answers' log-probabilities; of `ipo` and `simpo`: of their means over
    tokens."""
    beta: float = 0.1
    """How much a difference of log-probabilities counts."""
    gamma: float = 0.5
    """The margin of rewards that `simpo` asks for."""
    label_smoothing: float = 0.0
    """The probability that a pair's labels are exchanged."""
    sft: float | None = None
    """Weight of the chosen answers' cross-entropy, a mean over their tokens; null: 1, but 0 for `simpo`."""

    def check(self) -> None:
        """Raises UserError for a value out of range, or one that the chosen loss doesn't read."""
        super().check()
        require(0 < self.beta < math.inf, "objective.beta", self.beta, "above 0, e.g. 0.1")
        require(0 <= self.gamma < math.inf, "objective.gamma", self.gamma, "0 or more, e.g. 0.5")
        if self.gamma != CPO.gamma and self.loss != "simpo":
            raise UserError(
                f"objective.gamma={self.gamma}: has an effect only with objective.loss=simpo. Add that, or "
                "leave objective.gamma out"
            )
        require(
            self.sft is None or 0 <= self.sft < math.inf, "objective.sft", self.sft, "0 (off) or more, e.g. 1"
        )
        smoothing = self.label_smoothing
        require(0 <= smoothing < 0.5, "objective.label_smoothing", smoothing, "0 or more, and below 0.5")
        if smoothing and self.loss not in ("sigmoid", "simpo"):
            raise UserError(
                f"objective.label_smoothing={smoothing}: loss={self.loss} has none. Leave it out, or use "
                "objective.loss=sigmoid or simpo"
            )

    @property
    def cross_entropy_weight(self) -> float:
        """The weight of the chosen answers' cross-entropy."""
        return float(self.loss != "simpo") if self.sft is None else self.sft

    def pair_losses(self, chosen: AnswerSums, rejected: AnswerSums) -> jax.Array:
        """The losses of pairs."""
        return pair_losses(self, chosen, rejected)

    def rewards(self, sums: AnswerSums) -> jax.Array:
        """What answers are compared by: beta times the log-probability, or its mean over tokens."""
        return self.beta * (sums.mean_logp if self.loss in ("ipo", "simpo") else sums.logp)


def preference_loss(config: CPO, policy_logp_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """The mean loss over pairs, float32 []: of B / 2 chosen answers, a row each, and then as many rejected
    ones in the same order.

    Log-probabilities are those of the tokens, in nats, float32; the mask is 1 for a token of the completion,
    else 0. The chosen answers' cross-entropy is added, a mean over all their tokens, by its weight.
    """
    chosen, rejected = answer_sums.halves(answer_sums.of_rows(policy_logp_BT, None, mask_BT))
    loss = jnp.mean(pair_losses(config, chosen, rejected))
    if config.cross_entropy_weight:
        loss -= config.cross_entropy_weight * jnp.sum(chosen.logp) / jnp.sum(chosen.tokens)
    return loss


def pair_losses(config: CPO, chosen: AnswerSums, rejected: AnswerSums) -> jax.Array:
    """The loss of each pair, without the cross-entropy: float32, in the shape of the sums."""
    difference, smoothing = config.rewards(chosen) - config.rewards(rejected), config.label_smoothing
    match config.loss:
        case "hinge":
            return jax.nn.relu(1 - difference)
        case "ipo":
            return jnp.square(chosen.mean_logp - rejected.mean_logp - 1 / (2 * config.beta))
        case "simpo":
            difference -= config.gamma
    return -(1 - smoothing) * jax.nn.log_sigmoid(difference) - smoothing * jax.nn.log_sigmoid(-difference)
