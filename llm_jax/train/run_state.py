"""The state of one run on the host: its newest metrics, its checkpoints, its losses, and whether
it diverged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from llm_jax.core.errors import UserError
from llm_jax.data import Corpus, batch_sha
from llm_jax.objective.protocol import Examples, Objective
from llm_jax.processes.collective import broadcast_from_first
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.config import TrainConfig
from llm_jax.train.goodput import Goodput
from llm_jax.train.loader import checked
from llm_jax.train.metrics import MetricsWriter, latest_values
from llm_jax.train.rollback import Rollback, Rollbacks, Spike, SpikeWatch
from llm_jax.train.state import TrainState

CALMER = (
    "try a smaller optimizer.learning_rate, more optimizer.warmup_steps or a smaller optimizer.clip_norm, "
    "in another run_dir"
)


@dataclass
class Clock:
    """Seconds of the steps, without the first one (it compiles), evaluations and checkpoints."""

    steps: int = 0
    seconds: float = 0.0
    first_step_seconds: float = 0.0
    recent: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds
        self.recent = [*self.recent[-19:], seconds]

    def step_seconds(self) -> float:
        """Mean seconds of the last 20 steps."""
        return sum(self.recent) / len(self.recent) if self.recent else float("nan")


@dataclass(eq=False)
class RunState:
    """One run of a loop, trained by itself or with others in one program."""

    train: TrainConfig
    checkpoints: Checkpoints
    writer: MetricsWriter | None
    """None where another process writes."""
    goodput: Goodput
    rollbacks: Rollbacks
    info: dict[str, Any]
    """Entries of every checkpoint's info, beside the train state: what identifies the corpus and the frozen
    models.
    """
    corpus: Corpus
    examples: Examples
    objective: Objective
    flops_per_step: float
    peak_flops: float | None
    label: str = ""
    """Precedes each log line about this run, where several are trained at once."""
    clock: Clock = field(default_factory=Clock)
    latest: dict[str, Any] = field(default_factory=dict)
    """The newest value of every metric."""
    bad_in_a_row: int = 0
    diverged: str = ""
    """The reason why the run diverged; empty while it has not."""
    watch: SpikeWatch = field(init=False)

    def begin(self, info: Mapping[str, Any]) -> None:
        """Resumes from a checkpoint with this `info`, or starts (step 0)."""
        first = int(info["step"])
        self.latest = (
            latest_values(self.checkpoints.run_dir / "metrics.jsonl", first) if first and self.writer else {}
        ) | {"step": first}
        self.bad_in_a_row = 0
        self.watch = SpikeWatch(self.train.rollback, info.get("losses", ()))

    def go_back(self, info: Mapping[str, Any], since: int) -> None:
        """Resumes before the step `since`, counts the time of the steps in between as lost, and records that
        in metrics.jsonl.
        """
        self.goodput.lose(info.get("seconds", {}), ("data", "step", "evaluation"))
        self.begin(info)
        if self.writer:
            first, count = int(info["step"]), len(self.rollbacks.list)
            self.writer.write(
                {
                    "step": first,
                    "rolled_back_from": since,
                    "rollbacks": count,
                    "batches_skipped": self.rollbacks.skipped,
                }
            )

    def roll_back(
        self,
        spike: Spike,
        restore: Callable[[int], tuple[TrainState, dict[str, Any]]],
        log: Callable[[str], None],
    ) -> tuple[TrainState, dict[str, Any]]:
        """Rolls the run back to a checkpoint from before a loss spike: the state and info to resume from.

        All processes call it.

        restore: reads the newest checkpoint up to a step, or makes the initial state.
        """
        config, group = self.train.rollback, self.rollbacks.group
        group.mark("restore", spike.step)
        self.goodput.spend("checkpoint")
        kept = max(0, spike.step - 1 - config.before)
        batches = [self.rollbacks.batch(step) for step in range(kept, spike.step + config.after)]
        self.checkpoints.wait()
        state, info = restore(kept)
        self.checkpoints.remove_after(kept)
        hashed = self.train.batch_sha
        shas = broadcast_from_first(
            group, "skipped", lambda: [self.sha_of(batch) for batch in batches] if hashed else []
        )
        self.rollbacks.add(Rollback(spike.step, spike.loss, spike.median, info["step"], kept, batches, shas))
        self.go_back(info, spike.step)
        named = (
            [f"{batch} ({sha[:12]})" for batch, sha in zip(batches, shas, strict=True)]
            if shas
            else [str(batch) for batch in batches]
        )
        shown = named if len(named) <= 3 else [named[0], "...", named[-1]]
        log(
            f"{spike}, with batch {named[spike.step - 1 - kept]}: back to step {info['step']}; from step "
            f"{kept + 1} on {len(batches)} batches "
            f"are skipped: {', '.join(shown)} (roll-back {len(self.rollbacks.list)} of at most {config.most})"
        )
        return state, info

    def sha_of(self, number: int) -> str:
        """The fingerprint of a batch, as metrics.jsonl has it."""
        return batch_sha(checked(self.examples.batch(number), self.objective.arrays()))

    @property
    def tokens_per_step(self) -> int:
        return self.objective.tokens_per_step(self.train.batch_size, self.train.sequence_length)

    def add(
        self,
        done: int,
        metrics: dict[str, Any],
        *,
        seconds: float,
        fresh: bool,
        waited: float,
        sha: str | None,
    ) -> None:
        """Writes a step's metrics.

        `fresh`: whether the seconds hold more than the step itself (compiling, an evaluation).
        """
        values: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
        if fresh:
            self.clock.first_step_seconds = self.clock.first_step_seconds or seconds
        else:
            self.clock.add(seconds)
        for name in ("bad_steps", "bad_in_a_row"):
            values[name] = int(values[name])
        self.bad_in_a_row = values.pop("bad_in_a_row")
        values |= {
            "tokens": done * self.tokens_per_step,
            "epoch": self.corpus.epoch(done - 1),
            "step_seconds": seconds,
            "data_seconds": waited,
        }
        if not fresh:
            values["tokens_per_second"] = self.tokens_per_step / seconds
            values["mfu"] = self.mfu(seconds)
        values["memory_bytes"] = device_memory()
        values["wall_seconds"] = self.goodput.wall_seconds
        values["batch_sha"] = sha
        values = {"step": done, **{k: v for k, v in values.items() if v is not None}}
        self.latest |= values
        if self.writer and (done % self.train.log_every == 0 or done == self.train.steps):
            self.writer.write(values)

    def check(self, done: int, log: Callable[[str], None]) -> None:
        """Logs a skipped update; ends the run as diverged after too many in a row.

        Raises Spike where the loss is a spike and the run can still be rolled back.
        """
        if self.bad_in_a_row:
            loss, norm = self.latest["train_loss"], self.latest["gradient_norm"]
            log(
                f"{self.label}step {done}: loss {loss}, gradient norm {norm}: update skipped "
                f"({self.bad_in_a_row} in a row)"
            )
        if self.bad_in_a_row >= self.train.stop_after_bad_steps:
            self.checkpoints.wait()
            self.diverged = (
                f"{self.bad_in_a_row} updates in a row skipped at step {done} (loss or gradient not finite); "
                f"last good checkpoint: {max(self.checkpoints.steps(), default='none')}; {CALMER}"
            )
        elif not self.bad_in_a_row and (spike := self.watch.add(done, self.latest["train_loss"])):
            if len(self.rollbacks.list) < self.train.rollback.most:
                raise spike
            self.checkpoints.wait()
            self.diverged = (
                f"{spike}, after as many roll-backs as train.rollback.most={self.train.rollback.most} "
                f"allows; {CALMER}"
            )

    def score(self, done: int, scores: dict[str, float], log: Callable[[str], None]) -> None:
        """Writes and logs an evaluation's scores. Raises UserError where the deciding one is missing."""
        if (name := self.objective.score.name) not in scores:
            raise UserError(
                f"objective.name={self.objective.name}: its score is {name}, and its scores() returns "
                f"{', '.join(scores)}. Return {name} too, or let `score` name one of them"
            )
        self.latest |= scores
        if self.writer:
            self.writer.write({"step": done, "tokens": done * self.tokens_per_step, **scores})
        log(f"{self.label}step {done}: {self.objective.line(scores)}")

    def save(self, state: TrainState, done: int, *, evaluation_due: bool, scored: bool) -> None:
        """Saves a checkpoint of the state. `scored`: whether the newest evaluation was of this state."""
        watched = {"losses": list(self.watch.losses)} if self.train.rollback.spike else {}
        info = {**self.info, **watched, "seconds": self.goodput.seconds(), "evaluation_due": evaluation_due}
        self.checkpoints.save(state, done, info, self.latest[self.objective.score.name] if scored else None)
        self.goodput.write()

    def mfu(self, seconds: float) -> float | None:
        """Model FLOPs utilisation (Chowdhery et al. 2022) of a step that took these seconds; None where the
        peak is unknown.
        """
        return self.flops_per_step / seconds / self.peak_flops if self.peak_flops else None


def device_memory() -> int | None:
    """Peak bytes in use on the first local device; None where the backend does not report them."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None
