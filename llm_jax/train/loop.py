"""The train loop: step s + 1 is dispatched before the metrics of step s are read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, TrainConfig
from llm_jax.train.console import Console, duration
from llm_jax.train.feed import Feed
from llm_jax.train.metrics import MetricsWriter, short
from llm_jax.train.state import TrainState
from llm_jax.train.stop import StopSignal


class Diverged(Exception):
    """Too many steps in a row with a loss or gradient that was not finite."""


@dataclass
class Clock:
    """Times of the steps, without the first one (it compiles), evaluations and checkpoints."""

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


@dataclass
class Loop:
    """Everything that the loop works with. `run` goes from the state's step to the last and returns the last state."""

    stop: StopSignal

    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    feed: Feed
    checkpoints: Checkpoints
    evaluate: Callable[[TrainState], dict[str, float] | None]
    """Held-out scores; None where a signal ended it early."""
    info: Callable[[], dict[str, Any]]
    """What a checkpoint says beside the state."""
    writer: MetricsWriter | None
    console: Console
    train: TrainConfig
    evaluation: EvaluateConfig
    checkpointing: CheckpointConfig
    flops_per_step: float
    peak_flops: float | None
    clock: Clock = field(default_factory=Clock)
    latest: dict[str, Any] = field(default_factory=dict)
    """The newest value of every metric."""
    bad_in_a_row: int = 0

    def run(self, state: TrainState, first: int, evaluation_due: bool = False) -> TrainState:
        """Trains to `train.steps`. Raises Diverged, or Stopped with the state saved.

        `evaluation_due`: whether the run was stopped before the evaluation that belongs to step `first`.
        """
        last = self.train.steps
        self.console.start(last, first)
        pending: tuple[int, dict[str, jax.Array], str | None, float] | None = None
        batches = self.feed.batches(first, last)
        self.mark = time.perf_counter()
        self.fresh = True  # the next step's time is not a step's: it compiles, or follows an evaluation
        try:
            if evaluation_due:
                self.pause(state, first, evaluate=True, save=False)
                self.stop.check()
            for done in range(first + 1, last + 1):
                waited = time.perf_counter()
                fed = next(batches)
                waited = time.perf_counter() - waited
                state, metrics = self.step(state, fed.arrays)
                if pending:
                    self.read(*pending)
                pending = (done, metrics, fed.sha, waited)
                evaluate = done == last or (self.evaluation.every and done % self.evaluation.every == 0)
                save = done == last or done % self.checkpointing.every == 0 or done in self.checkpointing.also
                if evaluate or save or self.stop.received:
                    self.read(*pending)
                    pending = None
                    # In a row of bad steps nothing was learned since the last checkpoint, which is better kept.
                    self.pause(state, done, bool(evaluate), save and (not self.bad_in_a_row or done == last))
                    self.stop.check()
        finally:
            self.console.stop()
        return state

    def read(self, done: int, metrics: dict[str, jax.Array], sha: str | None, waited: float) -> None:
        """Waits for a step's metrics, writes them, and checks them."""
        values: dict[str, Any] = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.stop.hold()
        now = time.perf_counter()
        seconds, self.mark = now - self.mark, now
        if self.fresh:
            self.clock.first_step_seconds = self.clock.first_step_seconds or seconds
        else:
            self.clock.add(seconds)
        fresh, self.fresh = self.fresh, False
        tokens = self.train.batch_size * self.train.sequence_length
        for name in ("bad_steps", "bad_in_a_row"):
            values[name] = int(values[name])
        bad_in_a_row = self.bad_in_a_row = values.pop("bad_in_a_row")
        values |= {"tokens": done * tokens, "epoch": self.feed.corpus.epoch(done - 1), "step_seconds": seconds, "data_seconds": waited}
        if not fresh:
            values["tokens_per_second"] = tokens / seconds
            values["mfu"] = self.mfu(seconds)
        values["memory_bytes"] = device_memory()
        values["batch_sha"] = sha
        values = {"step": done, **{k: v for k, v in values.items() if v is not None}}
        self.latest |= values
        if self.writer and (done % self.train.log_every == 0 or done == self.train.steps):
            self.writer.write(values)
        self.console.progress(done, self.train.steps, self.line(values), self.train.progress_every)
        if bad_in_a_row:
            self.console.say(
                f"step {done}: loss {values['train_loss']}, gradient norm {values['gradient_norm']}: update skipped ({bad_in_a_row} in a row)"
            )
        if bad_in_a_row >= self.train.stop_after_bad_steps:
            raise Diverged(
                f"{bad_in_a_row} updates in a row skipped at step {done} (loss or gradient not finite); "
                f"last good checkpoint: {max(self.checkpoints.steps(), default='none')}; "
                "try a smaller optimizer.learning_rate, more optimizer.warmup_steps or a smaller optimizer.clip_norm, in another run_dir"
            )

    def pause(self, state: TrainState, done: int, evaluate: bool, save: bool) -> None:
        """Evaluates and saves between two steps. A signal cuts the evaluation short: it is then due on resuming."""
        scores = self.evaluate(state) if evaluate and not self.stop.received else None
        eval_loss = None
        if scores is not None:
            eval_loss = scores["eval_loss"]
            tokens = done * self.train.batch_size * self.train.sequence_length
            self.latest |= scores
            if self.writer:
                self.writer.write({"step": done, "tokens": tokens, **scores})
            self.console.say(f"step {done}: held-out loss {eval_loss:.4f}, {scores['eval_bits_per_byte']:.4f} bits per byte")
        if save or self.stop.received or (eval_loss is not None and self.checkpoints.wants(eval_loss)):
            self.checkpoints.save(state, done, {**self.info(), "evaluation_due": evaluate and scores is None}, eval_loss)
        self.mark, self.fresh = time.perf_counter(), not self.clock.steps

    def mfu(self, seconds: float) -> float | None:
        """Model FLOPs utilisation of a step of so many seconds; None where the peak isn't known."""
        return self.flops_per_step / seconds / self.peak_flops if self.peak_flops else None

    def line(self, values: dict[str, Any]) -> str:
        """The progress line: all that one wants to know at a glance."""
        seconds = self.clock.step_seconds()
        parts = [f"loss {values['train_loss']:.4f}"]
        if "expert_load_max" in values:
            parts.append(f"load {values['expert_load_max']:.2f}x" + (f", {values['expert_dropped']:.1%} dropped" if values["expert_dropped"] else ""))
        if self.clock.steps:
            tokens = self.train.batch_size * self.train.sequence_length
            parts.append(f"{short(tokens / seconds)} tokens/s")
            mfu = self.mfu(seconds)
            if mfu is not None:
                parts.append(f"MFU {mfu:.1%}")
            parts.append(f"ETA {duration((self.train.steps - values['step']) * seconds)}")
        return "  ".join(parts)


def device_memory() -> int | None:
    """Peak bytes in use on the first local device, where the backend tells."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None
