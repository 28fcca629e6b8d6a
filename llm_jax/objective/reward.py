"""Reward models: a number for a whole text, learned from which of two answers is better.

With R the reward at the last token of an answer, the loss of a pair is the negative log-likelihood of the
Bradley-Terry model (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1), with a margin m (Touvron et al. 2023,
eq. 2) and centring (Eisenstein et al. 2023; TRL's `center_rewards_coefficient`):

  -log sigmoid(R(chosen) - R(rejected) - m) + centring (R(chosen) + R(rejected))^2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.core.errors import require
from llm_jax.data.answer_encoder import answer_encoder
from llm_jax.data.answer_rows import most_examples
from llm_jax.data.encoder import Encoder, EncoderSettings
from llm_jax.data.rows import RowKind
from llm_jax.model.attention_context import restore
from llm_jax.model.transformer import Transformer
from llm_jax.objective import answer_sums
from llm_jax.objective.logprobs import Hidden, hidden_states
from llm_jax.objective.protocol import WEIGHTS, ArraySpec, Batch, Loss, Metric, Objective, Score
from llm_jax.objective.ranking import order_of_pairs, tied, with_ties


class PairRewards(NamedTuple):
    """Rewards of the pairs of a batch: arrays [B, P] for the most pairs P that a row holds, float32."""

    chosen: jax.Array
    rejected: jax.Array
    margin: jax.Array
    there: jax.Array
    """1 for a pair, 0 for a place without one."""


@dataclass(frozen=True)
class Reward(Objective):
    """A model that gives better answers a larger reward: a linear head on the last token of each answer."""

    name: str = "reward"
    centring: float = 0.0
    """Coefficient of the squared sum of a pair's rewards, which keeps their mean at 0; 0: off, else e.g.
    0.01."""
    equal_answers: Literal["error", "drop"] = "error"
    """Whether pairs of equal answers are a mistake in the data, or are left out and counted."""

    outputs: ClassVar[Literal["logits", "reward"]] = "reward"
    reads: ClassVar[Literal["text", "record"]] = "record"
    rows: ClassVar[RowKind] = "pairs"
    shown: ClassVar[tuple[str, ...]] = ("accuracy",)

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(
            0 <= self.centring < math.inf, "objective.centring", self.centring, "0 (off) or more, e.g. 0.01"
        )

    def progress(self, metrics: Mapping[str, float]) -> list[str]:
        """The accuracy, with ties where there are some."""
        return with_ties(super().progress(metrics), metrics)

    def encoder(self, settings: EncoderSettings) -> Encoder:
        """Encodes pairs of answers in the chat template."""
        return answer_encoder("preference", settings, self.equal_answers)

    def arrays(self) -> Mapping[str, ArraySpec]:
        """The arrays of a batch; continues [B, T] is 1 where a token of the same answer follows, and margins
        [B, T] is the margin of the pair that a token is of."""
        return {**super().arrays(), "continues": WEIGHTS, "margins": WEIGHTS}

    @property
    def score(self) -> Score:
        """The share of held-out pairs that are ranked right."""
        return Score("eval_accuracy", lower_is_better=False)

    def loss(self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch) -> Loss:
        """The sum of the losses of pairs."""
        hidden = hidden_states(policy, batch)
        sums = self.sums(pair_rewards(policy, hidden, batch))
        total, pairs = sums.pop("loss"), sums.pop("pairs")
        return Loss(total, pairs, {name: Metric(value) for name, value in sums.items()}, hidden.routing)

    def sums(self, of: PairRewards) -> dict[str, jax.Array]:
        """Sums over pairs, float32 []."""
        difference = of.chosen - of.rejected
        losses = reward_loss(of.chosen, of.rejected, of.margin, self.centring)
        values = {
            "loss": losses,
            "pairs": jnp.ones_like(losses),
            **order_of_pairs(of.chosen, of.rejected),
            "reward_difference": difference,
            "chosen_reward": of.chosen,
            "rejected_reward": of.rejected,
        }
        return {name: jnp.sum(value * of.there) for name, value in values.items()}

    def evaluate(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch, token_bytes: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Sums over one held-out batch."""
        return self.sums(pair_rewards(policy, hidden_states(policy, batch), batch))

    def scores(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """eval_loss, eval_accuracy (the share of pairs whose chosen answer has the larger reward), eval_ties,
        the means of rewards, and eval_pairs."""
        means = {f"eval_{name}": sums[name] / sums["pairs"] for name in sums if name != "pairs"}
        return {**means, "eval_pairs": sums["pairs"]}

    def line(self, scores: Mapping[str, float]) -> str:
        """The scores of an evaluation as one line of the log."""
        return (
            f"held out: loss {scores['eval_loss']:.4g}, "
            f"accuracy {scores['eval_accuracy']:.1%}{tied(scores, 'eval_')} of "
            f"{int(scores['eval_pairs']):,} pairs, difference {scores['eval_reward_difference']:.4g}"
        )


def reward_loss(
    chosen: jax.Array, rejected: jax.Array, margin: jax.Array | float = 0.0, centring: float = 0.0
) -> jax.Array:
    """The losses of pairs, in the shape of their rewards."""
    return -jax.nn.log_sigmoid(chosen - rejected - margin) + centring * jnp.square(chosen + rejected)


def rewards(model: Transformer, hidden: Hidden) -> jax.Array:
    """The reward of the tokens up to each position, float32 [B, T]."""
    return restore(model.reward(hidden.x_BTD), model.place)


def pair_rewards(model: Transformer, hidden: Hidden, batch: Batch) -> PairRewards:
    """The rewards of a batch's pairs: answers 2 i and 2 i + 1 of a row are its pair i."""
    segments_BT = batch["segments"]
    count = 2 * most_examples(segments_BT.shape[1])
    last_BT = (segments_BT > 0) * (1 - batch["continues"])  # the last token of each answer
    values = [
        answer_sums.of_segments(values_BT, None, last_BT, segments_BT, count)
        for values_BT in (rewards(model, hidden), batch["margins"])
    ]
    (chosen, rejected), (margin, _) = (answer_sums.alternating(sums) for sums in values)
    there = chosen.there * rejected.there
    return PairRewards(chosen.logp * there, rejected.logp * there, margin.logp * there, there)
