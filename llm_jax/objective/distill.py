"""Distillation: a student learns the next-token distribution of a larger teacher, on the data's own
tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from llm_jax.core.errors import UserError, require
from llm_jax.core.format import format_loss
from llm_jax.data.encoder import Encoder, EncoderSettings
from llm_jax.model.transformer import Transformer
from llm_jax.objective.divergence import DivergenceKind, Divergences, TopTokens
from llm_jax.objective.logprobs import Hidden, divergence, hidden_states
from llm_jax.objective.next_token import NextToken
from llm_jax.objective.protocol import ArraySpec, Batch, Examples, Loss, Metric
from llm_jax.objective.sft import SFT
from llm_jax.objective.teacher_file import IDS, LOGP, WithTeacher, open_teacher_file


@dataclass(frozen=True)
class Distill(NextToken):
    """The divergence of the student's next-token distribution from the teacher's, a mean over trained tokens.

    (1 - hard) * divergence + hard * cross-entropy: see `objective/divergence.py` for the formulas. The
    teacher may have any shape; its vocabulary is the student's.
    """

    name: str = "distill"
    teacher: str = ""
    """A run folder or Hugging Face folder (`teacher=FOLDER` for short)."""
    teacher_file: str = ""
    """In the teacher's stead: a file of its likeliest tokens, made by
    `python -m llm_jax.run.save_teacher`."""
    records: Literal["texts", "conversations"] = "texts"
    """What the data is: texts, of which every token is trained, or conversations, prepared as for `sft`."""
    beta: float = 0.0
    """0: KL(teacher ‖ student); 1: KL(student ‖ teacher); between: generalised Jensen-Shannon (GKD)."""
    temperature: float = 1.0
    """Both models' logits are divided by it first. The divergence is not multiplied by its square."""
    hard: float = 0.0
    """The share of the data's own cross-entropy in the loss, 0 to 1."""

    def check(self) -> None:
        """Raises UserError for a value out of range, and unless there is one teacher."""
        super().check()
        require(0 <= self.beta <= 1, "objective.beta", self.beta, "from 0 (forward KL) to 1 (reverse KL)")
        require(
            0.01 <= self.temperature <= 100, "objective.temperature", self.temperature, "from 0.01 to 100"
        )
        require(0 <= self.hard <= 1, "objective.hard", self.hard, "from 0 to 1")
        if not self.teacher and not self.teacher_file:
            raise UserError(
                "teacher= is missing: the model to learn from. Add teacher=RUN_OR_FOLDER (or "
                "objective.teacher_file=FILE)"
            )
        if self.teacher and self.teacher_file:
            raise UserError(
                f"objective.teacher_file={self.teacher_file}: takes the place of teacher={self.teacher}. "
                "Give one of them"
            )

    @property
    def rows(self) -> Literal["cut", "whole"]:  # type: ignore[override]
        """Conversations are never cut."""
        return "cut" if self.records == "texts" else SFT.rows

    @property
    def reads(self) -> Literal["text", "record"]:  # type: ignore[override]
        """What the encoder gets of a record."""
        return "text" if self.records == "texts" else SFT.reads

    def encoder(self, settings: EncoderSettings) -> Encoder | None:
        """None for texts; `sft`'s for conversations."""
        return None if self.records == "texts" else SFT().encoder(settings)

    def arrays(self) -> Mapping[str, ArraySpec]:
        """Those of next-token prediction and, from a file, the teacher's likeliest tokens."""
        arrays = super().arrays()
        if not self.teacher_file:
            return arrays
        k = open_teacher_file(self.teacher_file).k
        return {
            **arrays,
            IDS: ArraySpec(("batch", "sequence", k), "int32"),
            LOGP: ArraySpec(("batch", "sequence", k + 1), "float32"),
        }

    def frozen(self) -> Mapping[str, str]:
        """The teacher, unless a file stands for it."""
        return {} if self.teacher_file else {"teacher": self.teacher}

    def files(self) -> Mapping[str, str]:
        """The file that stands for the teacher."""
        return {"teacher_file": self.teacher_file} if self.teacher_file else {}

    def examples(self, corpus: Any, settings: Any) -> Examples:
        """The corpus's batches, with the teacher's likeliest tokens from its file.

        Raises UserError for a file that was made for other data.
        """
        if not self.teacher_file:
            return corpus
        file = open_teacher_file(self.teacher_file)
        file.check(corpus, settings, self.temperature)
        return WithTeacher(corpus, file)

    def loss(self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch) -> Loss:
        """The weighted sum of divergences (and cross-entropies, and z-losses)."""
        hidden = hidden_states(policy, batch)
        sums = self.divergences(policy, hidden, frozen, batch)
        metrics = {"divergence": Metric(sums.divergence), "cross_entropy": Metric(sums.cross_entropy)}
        return Loss(sums.total, jnp.sum(batch["weights"]), metrics, hidden.routing)

    def divergences(
        self, policy: Transformer, hidden: Hidden, frozen: Mapping[str, Transformer], batch: Batch
    ) -> Divergences:
        """The sums of a batch. hidden: the policy's hidden states."""
        if self.teacher_file:
            teacher: Any = TopTokens(batch[IDS], batch[LOGP])
        else:
            teacher = frozen["teacher"], hidden_states(frozen["teacher"], batch)
        kind = DivergenceKind(self.beta, self.temperature, self.hard, self.z_loss)
        return divergence(policy, hidden, teacher, batch["targets"], batch["weights"], kind, chunk=self.chunk)

    def evaluate(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch, token_bytes: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Sums of divergence and cross-entropy, the weights, and the bytes of the targets."""
        sums = self.divergences(policy, hidden_states(policy, batch), frozen, batch)
        return {
            "divergence": sums.divergence,
            "cross_entropy": sums.cross_entropy,
            **self.sizes(batch, token_bytes),
        }

    def scores(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Those of next-token prediction, so that runs with and without a teacher compare, and
        eval_divergence.
        """
        return {**super().scores(sums), "eval_divergence": sums["divergence"] / sums["weight"]}

    def line(self, scores: Mapping[str, float]) -> str:
        """The scores of an evaluation as one line of the log."""
        return f"{super().line(scores)}, divergence {format_loss(scores.get('eval_divergence'))}"
