"""How long a run trains, how often it evaluates and saves, and what it shows at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llm_jax.core.errors import UserError, require

TO_BE_GIVEN = "?"
"""The `start_from` of an experiment file that leaves it to the command line."""

EVERYTHING = ("*",)
"""The `trainable` of a run that trains all of its parameters."""


@dataclass(frozen=True)
class RollbackConfig:
    """What is done about a spike of the loss: back to a checkpoint before it, and on without the batches that led to it."""

    spike: float = 0.0
    """A loss above so many times the median of the last ones is a spike, e.g. 1.5; 0: nothing is done about any."""
    window: int = 100
    """The median is of so many losses before it. The first steps of a run, as many, have no spikes."""
    before: int = 8
    """Besides the batch of the spike so many before it are skipped,"""
    after: int = 8
    """and so many after it."""
    most: int = 3
    """At most so many roll-backs in a run; the next spike ends it."""

    @property
    def most_skipped(self) -> int:
        """At most so many batches are skipped in a run."""
        return self.most * (self.before + 1 + self.after) if self.spike else 0

    @property
    def reach(self) -> int:
        """A checkpoint so many steps old is never too young to go back to."""
        return self.before if self.spike else 0

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        spike = self.spike
        require(
            spike == 0 or 1 < spike < math.inf, "train.rollback.spike", spike, "above 1 (times the median loss), e.g. 1.5, or 0 for no roll-backs"
        )
        for key in ("window", "most"):
            require(getattr(self, key) >= 1, f"train.rollback.{key}", getattr(self, key), "at least 1")
        for key in ("before", "after"):
            require(getattr(self, key) >= 0, f"train.rollback.{key}", getattr(self, key), "a number of batches, 0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """The train loop."""

    steps: int = 1000
    """Updates in all."""
    batch_size: int = 16
    """Sequences per step, over all devices and microbatches."""
    sequence_length: int = 256
    """Tokens per sequence."""
    microbatches: int = 1
    """Parts that a batch is cut into; their gradients are summed (gradient accumulation)."""
    start_from: str = ""
    """A run folder, or one of Hugging Face's, whose (newest) weights the run begins with in place of random ones; its model must have the same
    shapes, and the tokenizer must be its. `from=FOLDER` on a command line sets all that."""
    trainable: tuple[str, ...] = EVERYTHING
    """Names of the parameters that are trained, dotted, `*` for anything, e.g. ["blocks.attention.*"]; the others keep the values that
    the run starts with, and have no gradients, moments or checkpoints."""
    seed: int = 0
    """Seeds the weights and the order of the data."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which is then evaluated and sampled too; 0: none."""
    stop_after_bad_steps: int = 20
    """Stops the run when so many updates in a row were skipped because loss or gradient was not finite."""
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    log_every: int = 1
    """Steps between lines of metrics.jsonl."""
    progress_every: float = 10.0
    """Seconds between progress lines where the output is not a terminal."""
    batch_sha: bool = True
    """Whether metrics.jsonl has the sha256 of each step's batch."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        for key in ("steps", "batch_size", "sequence_length", "microbatches", "stop_after_bad_steps", "log_every"):
            require(getattr(self, key) >= 1, f"train.{key}", getattr(self, key), "at least 1")
        require(self.batch_size % self.microbatches == 0, "train.microbatches", self.microbatches, f"a divisor of train.batch_size={self.batch_size}")
        if self.start_from == TO_BE_GIVEN:
            raise UserError("from= is missing: this experiment goes on with a model that is there; add from=RUN_OR_FOLDER")
        require(bool(self.trainable), "train.trainable", "[]", 'a list of names of parameters, ["*"] for all')
        require(0 <= self.seed < 2**32, "train.seed", self.seed, "from 0 to 4294967295 (32 bits)")
        require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "from 0 (none) to below 1, e.g. 0.999")
        self.rollback.check()
        require(0 <= self.progress_every < math.inf, "train.progress_every", self.progress_every, "0 or more seconds")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on held-out documents."""

    every: int = 500
    """Steps between evaluations; 0: only at the end."""
    batches: int | None = 32
    """At most so many batches of train.batch_size held-out sequences; None: all of them."""
    final_batches: int | None = None
    """The same for the evaluation at the end."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(self.every >= 0, "evaluate.every", self.every, "a number of steps, or 0 for only at the end")
        for key in ("batches", "final_batches"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"evaluate.{key}", value, "at least 1, or null for all held-out documents")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints in <run_dir>/checkpoints."""

    every: int = 500
    """Steps between checkpoints; one is also saved at the end, and when a signal stops the run."""
    keep: int = 2
    """So many of the newest are kept."""
    also: tuple[int, ...] = ()
    """Steps whose checkpoints are saved and kept whatever else is said, for other runs to branch off from."""
    keep_best: bool = True
    """Whether the one with the lowest held-out loss is kept too; an evaluation with a new lowest then saves."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(self.every >= 1, "checkpoint.every", self.every, "at least 1 step (a large number saves only at the end)")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1, since a run resumes from the newest")
        require(all(step >= 1 for step in self.also), "checkpoint.also", list(self.also), "steps, each at least 1")


@dataclass(frozen=True)
class SampleConfig:
    """Text that the trained model writes at the end of a run."""

    prompts: tuple[str, ...] = ("",)
    """What each sample starts with; "" is the start of a document."""
    tokens: int = 64
    """Tokens per sample; 0: no samples."""
    temperature: float = 0.8
    """Logits are divided by it; 0: always the most likely token."""
    top_k: int = 50
    """Only the k most likely tokens are drawn from; 0: all."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(self.tokens >= 0, "sample.tokens", self.tokens, "a number of tokens, or 0 for no samples")
        require(0 <= self.temperature < math.inf, "sample.temperature", self.temperature, "0 (always the most likely token) or more")
        require(self.top_k >= 0, "sample.top_k", self.top_k, "a number of tokens, or 0 for all")
