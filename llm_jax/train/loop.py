"""The train loop: step s + 1 is dispatched before the metrics of step s are read."""

from __future__ import annotations

import signal
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


class Diverged(Exception):
    """Too many steps in a row with a loss or gradient that was not finite."""


class Stopped(Exception):
    """A signal asked the run to stop; the state is saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}")
        self.number, self.step = number, step


class StopSignal:
    """Notes SIGTERM and Ctrl-C, so that the loop can save and stop between two steps. A second one ends at once."""

    def __init__(self):
        self.received: int | None = None
        self.old: dict[int, Any] = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(self, number: int, frame: Any) -> None:
        self.received = number
        signal.signal(number, self.old[number])

    def close(self) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


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

    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    feed: Feed
    checkpoints: Checkpoints
    evaluate: Callable[[TrainState], dict[str, float]]
    info: Callable[[], dict[str, Any]]
    writer: MetricsWriter | None
    console: Console
    train: TrainConfig
    evaluation: EvaluateConfig
    checkpointing: CheckpointConfig
    flops_per_step: float
    peak_flops: float | None
    clock: Clock = field(default_factory=Clock)
    latest: dict[str, Any] = field(default_factory=dict)

    def run(self, state: TrainState, first: int) -> TrainState:
        """Trains to `train.steps`. Raises Diverged or Stopped, with the state saved where it is good."""
        last = self.train.steps
        stop = StopSignal() if jax.process_count() == 1 else None
        self.console.start(last, first)
        pending: tuple[int, dict[str, jax.Array], str | None, float] | None = None
        batches = self.feed.batches(first, last)
        self.mark = time.perf_counter()
        self.fresh = True  # the next step's time is not a step's: it compiles, or follows an evaluation
        try:
            for done in range(first + 1, last + 1):
                waited = time.perf_counter()
                fed = next(batches)
                waited = time.perf_counter() - waited
                state, metrics = self.step(state, fed.arrays)
                if pending:
                    self.read(*pending)
                pending = (done, metrics, fed.sha, waited)
                evaluate = done == last or (self.evaluation.every and done % self.evaluation.every == 0)
                save = done == last or done % self.checkpointing.every == 0
                stopped = stop.received if stop else None
                if evaluate or save or stopped:
                    self.read(*pending)
                    pending = None
                    self.pause(state, done, bool(evaluate), bool(save or stopped))
                if stopped:
                    raise Stopped(stopped, done)
        finally:
            self.console.stop()
            if stop:
                stop.close()
        return state

    def read(self, done: int, metrics: dict[str, jax.Array], sha: str | None, waited: float) -> None:
        """Waits for a step's metrics, writes them, and checks them."""
        values: dict[str, Any] = {name: float(value) for name, value in jax.device_get(metrics).items()}
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
        bad_in_a_row = values.pop("bad_in_a_row")
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
                f"last good checkpoint: {max(self.checkpoints.steps(), default='none')}"
            )

    def pause(self, state: TrainState, done: int, evaluate: bool, save: bool) -> None:
        """Evaluates and saves between two steps."""
        eval_loss = None
        if evaluate:
            scores = self.evaluate(state)
            eval_loss = scores["eval_loss"]
            tokens = done * self.train.batch_size * self.train.sequence_length
            self.latest |= scores
            if self.writer:
                self.writer.write({"step": done, "tokens": tokens, **scores})
            self.console.say(f"step {done}: held-out loss {eval_loss:.4f}, {scores['eval_bits_per_byte']:.4f} bits per byte")
        if save:
            self.checkpoints.save(state, done, self.info(), eval_loss)
        self.mark, self.fresh = time.perf_counter(), not self.clock.steps

    def mfu(self, seconds: float) -> float | None:
        """Model FLOPs utilisation of a step of so many seconds; None where the peak isn't known."""
        return self.flops_per_step / seconds / self.peak_flops if self.peak_flops else None

    def line(self, values: dict[str, Any]) -> str:
        """The progress line: all that one wants to know at a glance."""
        seconds = self.clock.step_seconds()
        parts = [f"loss {values['train_loss']:.4f}"]
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
