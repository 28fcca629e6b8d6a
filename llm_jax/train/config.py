"""How long a run trains, how often it evaluates and saves, and what it shows at the end."""

from __future__ import annotations

from dataclasses import dataclass


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
    seed: int = 0
    """Seeds the weights and the order of the data."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which is then evaluated and sampled too; 0: none."""
    stop_after_bad_steps: int = 20
    """Stops the run when so many updates in a row were skipped because loss or gradient was not finite."""
    log_every: int = 1
    """Steps between lines of metrics.jsonl."""
    progress_every: float = 10.0
    """Seconds between progress lines where the output is not a terminal."""
    batch_sha: bool = True
    """Whether metrics.jsonl has the sha256 of each step's batch."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on held-out documents."""

    every: int = 500
    """Steps between evaluations; 0: only at the end."""
    batches: int | None = 32
    """At most so many batches of train.batch_size held-out sequences; None: all of them."""
    final_batches: int | None = None
    """The same for the evaluation at the end."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints in <run_dir>/checkpoints."""

    every: int = 500
    """Steps between checkpoints; one is always saved at the end."""
    keep: int = 2
    """So many of the newest are kept."""
    keep_best: bool = True
    """Whether the one with the lowest held-out loss is kept too."""


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
