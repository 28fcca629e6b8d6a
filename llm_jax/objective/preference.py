"""What objectives of preferences have in common: answers that share rows, the reference, losses of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from llm_jax.core.errors import require
from llm_jax.data.answer_encoder import AnswerKind, answer_encoder
from llm_jax.data.answer_rows import most_examples
from llm_jax.data.encoder import Encoder, EncoderSettings
from llm_jax.data.rows import RowKind
from llm_jax.model.transformer import Transformer
from llm_jax.objective import answer_sums
from llm_jax.objective.answer_sums import AnswerSums
from llm_jax.objective.logprobs import Hidden, hidden_states, token_logprobs
from llm_jax.objective.protocol import WEIGHTS, ArraySpec, Batch, Loss, Metric, Objective
from llm_jax.objective.ranking import order_of_pairs, tied, with_ties


@dataclass(frozen=True)
class AnswerObjective(Objective):
    """A loss of the log-probabilities of whole answers. Rows hold whole answers, which don't see each
    other."""

    chunk: int = 1024
    """Positions whose logits exist at once on a device."""

    reads: ClassVar[Literal["text", "record"]] = "record"
    record: ClassVar[AnswerKind] = "preference"
    """The kind of records that it is trained on."""

    def encoder(self, settings: EncoderSettings) -> Encoder:
        """Encodes answers in the template."""
        return answer_encoder(self.record, settings)

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(self.chunk >= 1, "objective.chunk", self.chunk, "at least 1 position")

    def arrays(self) -> Mapping[str, ArraySpec]:
        """The arrays of a batch, each [B, T]; ROLE_logp of a model whose log-probabilities are
        precomputed."""
        return {**super().arrays(), **{f"{role}_logp": WEIGHTS for role in self.precomputed()}}

    def policy_logp(self, policy: Transformer, batch: Batch) -> tuple[Hidden, jax.Array]:
        """(hidden states, log-probabilities of the targets in nats, float32 [B, T])."""
        hidden = hidden_states(policy, batch)
        return hidden, token_logprobs(policy, hidden, batch["targets"], chunk=self.chunk)

    def answers(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch
    ) -> tuple[Hidden, AnswerSums]:
        """(hidden states, sums [B, N] of the answers of each row, at most N)."""
        hidden, logp_BT = self.policy_logp(policy, batch)
        reference_BT = self.reference_logp(frozen, batch)
        N = most_examples(batch["tokens"].shape[1])
        return hidden, answer_sums.of_segments(logp_BT, reference_BT, batch["weights"], batch["segments"], N)

    def reference_logp(self, frozen: Mapping[str, Transformer], batch: Batch) -> jax.Array | None:
        """The log-probabilities that the reference gives to the targets, float32 [B, T]; None without one."""
        if "reference_logp" in batch:
            return batch["reference_logp"]
        if "reference" in frozen:
            return jax.lax.stop_gradient(self.policy_logp(frozen["reference"], batch)[1])
        return None


@dataclass(frozen=True)
class WithReference(AnswerObjective):
    """An objective that compares the policy with a reference, which doesn't change."""

    reference: str = ""
    """The folder of the reference, of a run or a Hugging Face model; empty: the weights that the run starts
    with."""
    cache: bool = True
    """Whether the reference's log-probabilities are computed once, before the first step, and kept beside the
    tokens; false: in every step, with the reference in memory."""

    def frozen(self) -> Mapping[str, str]:
        """The reference, where each step runs it."""
        return {} if self.cache else {"reference": self.reference}

    def precomputed(self) -> Mapping[str, str]:
        """The reference, where its log-probabilities come with the data."""
        return {"reference": self.reference} if self.cache else {}


@dataclass(frozen=True)
class PairObjective(AnswerObjective):
    """A mean over pairs of a chosen and a rejected answer, plus the chosen ones' cross-entropy.

    A row holds pairs: answers 2 i and 2 i + 1 of a row are the chosen and the rejected one of its pair i.
    """

    equal_answers: Literal["error", "drop"] = "error"
    """Pairs of equal answers are a mistake in the data (`error`), or left out and counted (`drop`)."""

    rows: ClassVar[RowKind] = "pairs"
    shown: ClassVar[tuple[str, ...]] = ("accuracy", "margin")
    unit: ClassVar[str] = "mean over pairs"
    curves: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "log-probability of an answer (nats)": ("chosen_logp", "rejected_logp"),
        "reward": ("chosen_reward", "rejected_reward", "margin"),
        "share of pairs in the right order": ("accuracy",),
    }
    cross_entropy_of_prompts: ClassVar[bool] = False
    """Whether the cross-entropy is also of the prompts' tokens."""

    def encoder(self, settings: EncoderSettings) -> Encoder:
        """Encodes pairs of answers in the template."""
        return answer_encoder(self.record, settings, self.equal_answers)

    @property
    def cross_entropy_weight(self) -> float:
        """The weight of the chosen answers' cross-entropy, a mean over the tokens of a batch."""
        return 0.0

    def progress(self, metrics: Mapping[str, float]) -> list[str]:
        """Accuracy, with ties where there are some, and margin."""
        return with_ties(super().progress(metrics), metrics)

    def pair_losses(self, chosen: AnswerSums, rejected: AnswerSums) -> jax.Array:
        """The losses of pairs, float32, in the shape of the sums."""
        raise NotImplementedError

    def rewards(self, sums: AnswerSums) -> jax.Array:
        """What answers are compared by, for the metrics."""
        return self.beta * sums.gain  # type: ignore[attr-defined]

    def arrays(self) -> Mapping[str, ArraySpec]:
        """The arrays of a batch; `continues` is 1 where there is a target, trained or not."""
        more = {"continues": WEIGHTS} if self.cross_entropy_of_prompts else {}
        return {**super().arrays(), **more}

    def pair_sums(
        self, logp_BT: jax.Array, reference_BT: jax.Array | None, batch: Batch
    ) -> tuple[AnswerSums, AnswerSums, jax.Array]:
        """(chosen, rejected, 1 where there is a pair), each [B, P] for the most pairs P that a row holds."""
        count = 2 * most_examples(batch["tokens"].shape[1])
        sums = answer_sums.of_segments(logp_BT, reference_BT, batch["weights"], batch["segments"], count)
        chosen, rejected = answer_sums.alternating(sums)
        return chosen, rejected, chosen.there * rejected.there

    def cross_entropy_mask(self, batch: Batch) -> jax.Array:
        """1 for the targets of chosen answers whose cross-entropy counts, float32 [B, T]."""
        counted = batch["continues" if self.cross_entropy_of_prompts else "weights"]
        return counted * (batch["segments"] % 2)

    def totals(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch
    ) -> Mapping[str, jax.Array]:
        """The numbers of pairs and of tokens with a cross-entropy: their means have different
        denominators."""
        if not self.cross_entropy_weight:
            return {}
        *_, there = self.pair_sums(batch["weights"], None, batch)
        return {"pairs": jnp.sum(there), "cross_entropy_tokens": jnp.sum(self.cross_entropy_mask(batch))}

    def compute_loss(self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch) -> Loss:
        """The sum of the losses of pairs, and the cross-entropy in proportion to the pairs."""
        hidden, logp_BT = self.policy_logp(policy, batch)
        sums, metrics = self.sums(logp_BT, self.reference_logp(frozen, batch), batch)
        total, pairs = sums["loss"], sums["pairs"]
        measured = {name: Metric(value) for name, value in metrics.items()}
        if weight := self.cross_entropy_weight:
            tokens = jnp.maximum(batch["cross_entropy_tokens"], 1)
            total += weight * sums["cross_entropy"] * batch["pairs"] / tokens
            measured["cross_entropy"] = Metric(sums["cross_entropy"], sums["cross_entropy_tokens"])
        return Loss(total, pairs, measured, hidden.routing)

    def sums(
        self, logp_BT: jax.Array, reference_BT: jax.Array | None, batch: Batch
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Sums over a batch, float32 []: (of losses, pairs, cross-entropies and their tokens; of what is
        measured of pairs)."""
        chosen, rejected, there_BP = self.pair_sums(logp_BT, reference_BT, batch)
        add = lambda x_BP: jnp.sum(jnp.where(there_BP > 0, x_BP, 0))  # noqa: E731
        reward_c, reward_r = self.rewards(chosen), self.rewards(rejected)
        found = {"loss": add(self.pair_losses(chosen, rejected)), "pairs": jnp.sum(there_BP)}
        if self.cross_entropy_weight:
            mask_BT = self.cross_entropy_mask(batch)
            found["cross_entropy"] = -jnp.sum(logp_BT * mask_BT)
            found["cross_entropy_tokens"] = jnp.sum(mask_BT)
        measured = {
            **{name: add(of_BP) for name, of_BP in order_of_pairs(reward_c, reward_r).items()},
            "margin": add(reward_c - reward_r),
            "chosen_reward": add(reward_c),
            "rejected_reward": add(reward_r),
            "chosen_logp": add(chosen.logp),
            "rejected_logp": add(rejected.logp),
        }
        return found, measured

    def evaluate(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch, token_bytes: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Sums over one held-out batch."""
        _, logp_BT = self.policy_logp(policy, batch)
        found, measured = self.sums(logp_BT, self.reference_logp(frozen, batch), batch)
        return {**found, **measured}

    def scores(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """eval_loss, eval_accuracy (the share of pairs whose chosen answer has the larger reward), eval_ties
        (that of pairs with equal ones), and the means of rewards and log-probabilities."""
        own = ("loss", "pairs", "cross_entropy", "cross_entropy_tokens")
        loss = sums["loss"] / sums["pairs"]
        if self.cross_entropy_weight:
            loss += self.cross_entropy_weight * sums["cross_entropy"] / sums["cross_entropy_tokens"]
        means = {f"eval_{name}": sums[name] / sums["pairs"] for name in sums if name not in own}
        return {"eval_loss": loss, **means, "eval_pairs": sums["pairs"]}

    def line(self, scores: Mapping[str, float]) -> str:
        """The scores of an evaluation as one line of the log."""
        names = ("loss", "accuracy", "margin", "chosen_logp", "rejected_logp")
        shown = {name: scores[f"eval_{name}"] for name in names if f"eval_{name}" in scores}
        return "held out: " + ", ".join(
            f"accuracy {value:.1%}{tied(scores, 'eval_')}"
            if name == "accuracy"
            else f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in shown.items()
        )
