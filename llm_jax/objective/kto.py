"""Kahneman-Tversky optimisation (KTO, Ethayarajh et al. 2024): a policy learns from answers that are wanted
or not, without pairs.

The value of an answer is sigmoid(beta (gain - z)) or, where it is not wanted, sigmoid(beta (z - gain)): the
gain over the reference is measured from z, the mean gain of answers that belong to other prompts, which
estimates the divergence of policy and reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from llm_jax.core.errors import require
from llm_jax.data.answer_encoder import AnswerKind
from llm_jax.data.answer_rows import MISMATCHED, most_examples
from llm_jax.data.rows import RowKind
from llm_jax.model.accounting import train_flops_per_token
from llm_jax.model.config import ModelConfig
from llm_jax.model.transformer import Transformer
from llm_jax.objective import answer_sums
from llm_jax.objective.answer_sums import AnswerSums
from llm_jax.objective.preference import WithReference
from llm_jax.objective.protocol import WEIGHTS, ArraySpec, Batch, Loss, Metric

KTOLoss = Literal["kto", "apo_zero_unpaired"]


@dataclass(frozen=True)
class KTO(WithReference):
    """Makes wanted answers likelier, and unwanted ones less likely, as against a reference."""

    name: str = "kto"
    loss: KTOLoss = "kto"  # type: ignore[assignment]
    """`kto`, or `apo_zero_unpaired`, whose z is 0: it needs no mismatched answers."""
    beta: float = 0.1
    """How much an answer's gain over the reference counts: the larger, the nearer the policy stays."""
    desirable_weight: float = 1.0
    """Weight of each wanted answer. The paper advises that weight times number of the wanted ones is 1 to
    1.33 times that of the unwanted ones."""
    undesirable_weight: float = 1.0
    """Weight of each unwanted answer."""

    rows: ClassVar[RowKind] = "labelled"
    record: ClassVar[AnswerKind] = "label"
    shown: ClassVar[tuple[str, ...]] = ("wanted_reward", "unwanted_reward")
    unit: ClassVar[str] = "mean over answers"
    curves: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "log-probability of an answer (nats)": ("wanted_logp", "unwanted_logp"),
        "reward": ("wanted_reward", "unwanted_reward"),
        "divergence from the reference, z (nats)": ("kl",),
    }

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        super().check()
        require(0 < self.beta < math.inf, "objective.beta", self.beta, "above 0, e.g. 0.1")
        for name in ("desirable_weight", "undesirable_weight"):
            weight = getattr(self, name)
            require(0 < weight < math.inf, f"objective.{name}", weight, "above 0, e.g. 1")

    @property
    def has_mismatched(self) -> bool:
        """Whether z is estimated from mismatched answers."""
        return self.loss == "kto"

    def arrays(self) -> Mapping[str, ArraySpec]:
        """The arrays of a batch: labels [B, T] is 1 for the tokens of a wanted answer, and mismatched_tokens
        etc. are rows of prompts with answers of other examples."""
        own = super().arrays()
        mismatched = {MISMATCHED + name: spec for name, spec in own.items()} if self.has_mismatched else {}
        return {**own, "labels": WEIGHTS, **mismatched}

    def totals(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch
    ) -> Mapping[str, jax.Array]:
        """The sum of the gains of mismatched answers, nats, and their number."""
        if not self.has_mismatched:
            return {}
        mismatched = {
            name.removeprefix(MISMATCHED): value
            for name, value in batch.items()
            if name.startswith(MISMATCHED)
        }
        _, sums = self.answers(policy, frozen, mismatched)
        return {
            "mismatched_gain": jnp.sum(sums.gain * sums.there),
            "mismatched_count": jnp.sum(sums.there),
        }

    def compute_loss(self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch) -> Loss:
        """The weighted sum of the losses of answers."""
        hidden, losses_BN, sums, wanted_BN, kl = self.losses(policy, frozen, batch)
        reward_BN = self.beta * sums.gain
        count = {True: jnp.sum(wanted_BN), False: jnp.sum(sums.there - wanted_BN)}
        metrics = {"kl": Metric(kl * jnp.sum(sums.there))}
        for name, is_of_BN, n in (
            ("wanted", wanted_BN, count[True]),
            ("unwanted", sums.there - wanted_BN, count[False]),
        ):
            metrics[f"{name}_reward"] = Metric(jnp.sum(reward_BN * is_of_BN), n)
            metrics[f"{name}_logp"] = Metric(jnp.sum(sums.logp * is_of_BN), n)
        return Loss(jnp.sum(losses_BN * sums.there), jnp.sum(sums.there), metrics, hidden.routing)

    def losses(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch
    ) -> tuple[Any, jax.Array, AnswerSums, jax.Array, jax.Array]:
        """(hidden states, losses [B, N], sums [B, N], 1 for wanted answers [B, N], z []) of N answers a
        row."""
        hidden, sums = self.answers(policy, frozen, batch)
        kl = jnp.zeros(())
        if self.has_mismatched:
            kl = jnp.maximum(batch["mismatched_gain"] / jnp.maximum(batch["mismatched_count"], 1), 0)
        N = most_examples(batch["tokens"].shape[1])
        wanted_BN = answer_sums.of_segments(batch["labels"], None, batch["weights"], batch["segments"], N)
        is_wanted_BN = (wanted_BN.logp > 0).astype(jnp.float32) * sums.there
        return hidden, example_losses(self, sums, is_wanted_BN, kl), sums, is_wanted_BN, kl

    def evaluate(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch, token_bytes: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Sums over one held-out batch; z is that of the batch."""
        batch = {**batch, **self.totals(policy, frozen, batch)}
        _, losses_BN, sums, wanted_BN, kl = self.losses(policy, frozen, batch)
        unwanted_BN, reward_BN = sums.there - wanted_BN, self.beta * sums.gain
        return {
            "loss": jnp.sum(losses_BN * sums.there),
            "examples": jnp.sum(sums.there),
            "kl": kl * jnp.sum(sums.there),
            "wanted": jnp.sum(wanted_BN),
            "unwanted": jnp.sum(unwanted_BN),
            "wanted_reward": jnp.sum(reward_BN * wanted_BN),
            "unwanted_reward": jnp.sum(reward_BN * unwanted_BN),
            "wanted_logp": jnp.sum(sums.logp * wanted_BN),
            "unwanted_logp": jnp.sum(sums.logp * unwanted_BN),
        }

    def scores(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """eval_loss, a mean over answers, and the means of what `evaluate` sums up."""
        of = {
            f"eval_{kind}_{what}": sums[f"{kind}_{what}"] / max(sums[kind], 1)
            for kind in ("wanted", "unwanted")
            for what in ("reward", "logp")
        }
        return {
            "eval_loss": sums["loss"] / sums["examples"],
            "eval_kl": sums["kl"] / sums["examples"],
            **of,
            "eval_examples": sums["examples"],
        }

    def flops_per_token(
        self, model: ModelConfig, sequence_length: int, frozen: Mapping[str, ModelConfig]
    ) -> float:
        """Training FLOPs a token: the mismatched answers take a forward pass of each model more."""
        forward = sum(
            train_flops_per_token(config, sequence_length) / 3 for config in (model, *frozen.values())
        )
        return super().flops_per_token(model, sequence_length, frozen) + self.has_mismatched * forward


def kto_loss(
    config: KTO,
    policy_logp_BT: jax.Array,
    reference_logp_BT: jax.Array,
    mask_BT: jax.Array,
    label_B: jax.Array,
    kl: jax.Array | float,
) -> jax.Array:
    """The mean loss over answers, a row each, float32 [].

    Log-probabilities are those of the tokens, in nats, float32; the mask is 1 for a token of the completion,
    else 0; label_B is true for wanted answers. kl: z before it is held at 0 or more, the mean gain of
    mismatched answers, which is a constant.
    """
    sums = answer_sums.of_rows(policy_logp_BT, reference_logp_BT, mask_BT)
    return jnp.mean(example_losses(config, sums, jnp.asarray(label_B, jnp.float32), kl))


def example_losses(config: KTO, sums: AnswerSums, wanted: jax.Array, kl: jax.Array | float) -> jax.Array:
    """The loss of each answer, in the shape of the sums (eq. 8 of the paper).

    wanted: 1 for a wanted answer, else 0. kl: as of `kto_loss`.
    """
    z = jax.lax.stop_gradient(jnp.maximum(kl, 0.0)) if config.has_mismatched else 0.0
    over = config.beta * (sums.gain - z)
    return jnp.where(
        wanted > 0,
        config.desirable_weight * jax.nn.sigmoid(-over),
        config.undesirable_weight * jax.nn.sigmoid(over),
    )
