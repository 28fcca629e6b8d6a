"""The train loop: step s + 1 is dispatched before the metrics of step s are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from llm_jax.core.console import Console
from llm_jax.core.errors import Stopped
from llm_jax.core.format import clock, short
from llm_jax.objective.protocol import Objective
from llm_jax.processes.group import Group
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, TrainConfig
from llm_jax.train.loader import BatchSource
from llm_jax.train.rollback import Spike
from llm_jax.train.run_state import RunState
from llm_jax.train.state import Frozen, TrainState


class Diverged(Exception):
    """Too many steps in a row with a loss or gradient that was not finite: no run is left."""


def only(tree: Any) -> list[Any]:
    """The parts of a tree that belongs to one run: the tree itself."""
    return [tree]


@dataclass
class Loop:
    """Everything that the loop works with.

    `run` goes from the state's step to the last and returns the last state.

    Its step may train several runs at once, in lockstep: state, metrics and scores are then of all of them.
    """

    group: Group
    step: Callable[[TrainState, Any, Frozen], tuple[TrainState, dict[str, jax.Array]]]
    source: BatchSource
    evaluate: Callable[[TrainState], dict[str, Any] | None]
    """Held-out scores; None where a signal ended it early."""
    runs: Sequence[RunState]
    console: Console
    train: TrainConfig
    evaluation: EvaluateConfig
    checkpointing: CheckpointConfig
    objective: Objective
    frozen: Frozen = field(default_factory=Frozen)
    """Read by the step beside the state, never changed."""
    parts: Callable[[Any], list[Any]] = only
    """Takes a tree of all runs apart: one tree for each run."""
    recover: Callable[[Spike], tuple[TrainState, Mapping[str, Any]]] | None = None
    """Rolls the run back after a loss spike: the state and checkpoint info to resume from."""

    def run(self, state: TrainState | None, first: int, evaluation_due: bool = False) -> TrainState:
        """Trains from step `first` to `train.steps`, through roll-backs.

        Raises Diverged, or Stopped with the state saved.

        All processes do the same, and decide by what is the same on all: they poll for a signal in the same
        places (`Group.poll`).

        `evaluation_due`: whether the run was stopped before the evaluation that belongs to step `first`.
        """
        while True:
            assert state is not None
            try:
                return self.train_from(state, first, evaluation_due)
            except Spike as raised:
                if self.recover is None:
                    raise
                spike = raised.with_traceback(
                    None
                )  # its frames hold the state, and there may not be room for two
            state = None
            state, info = self.recover(spike)
            first, evaluation_due = info["step"], bool(info.get("evaluation_due"))

    def train_from(self, state: TrainState, first: int, evaluation_due: bool) -> TrainState:
        """Trains from step `first` to `train.steps`.

        Raises Spike after a loss spike, and what `run` raises.
        """
        last = self.train.steps
        self.console.start(last, first)
        pending: tuple[int, dict[str, jax.Array], Sequence[str | None], float] | None = None
        compiled = False
        self.mark = time.perf_counter()
        self.fresh = True  # the next step's time is not a step's: it compiles, or follows an evaluation
        try:
            if evaluation_due:
                self.pause(state, first, evaluate=True, save=False)
                self.leave_if_stopped()
            for done in range(first + 1, last + 1):
                self.spend("data")
                waited = time.perf_counter()
                batch = self.source.next(done - 1, state)
                waited = time.perf_counter() - waited
                self.spend("step" if compiled else "compile")
                self.group.mark("train" if compiled else "compile", done, batch.shas[0])
                state, metrics = self.step(state, batch.arrays, self.frozen)
                compiled = True
                self.spend("step")
                if pending:
                    self.read(*pending)
                pending = (done, metrics, batch.shas, waited)
                stopped = self.group.poll() is not None
                evaluate = done == last or (self.evaluation.every and done % self.evaluation.every == 0)
                save = done == last or done % self.checkpointing.every == 0 or done in self.checkpointing.also
                for run in self.live():
                    run.checkpoints.check()
                if evaluate or save or stopped:
                    self.read(*pending)
                    pending = None
                    # In a row of bad steps nothing was learned since the last checkpoint, which is better
                    # kept.
                    good = not any(run.bad_in_a_row for run in self.live())
                    self.pause(state, done, bool(evaluate), save and (good or done == last))
                    self.leave_if_stopped()
        finally:
            self.console.stop()
        return state

    def leave_if_stopped(self) -> None:
        """Raises Stopped where a signal was received; everything is saved by then."""
        if self.group.received is not None:
            raise Stopped(self.group.received, self.group.reason)

    def spend(self, part: str) -> None:
        """Counts time for this part of every run's goodput from now on."""
        for run in self.runs:
            run.goodput.spend(part)

    def live(self) -> list[RunState]:
        """The runs that have not diverged yet."""
        return [run for run in self.runs if not run.diverged]

    def read(
        self, done: int, metrics: dict[str, jax.Array], shas: Sequence[str | None], waited: float
    ) -> None:
        """Waits for a step's metrics, writes them, and checks them for divergence and spikes."""
        read = jax.device_get(metrics)
        self.group.arm()
        now = time.perf_counter()
        seconds, self.mark = now - self.mark, now
        live = self.live()
        for run, values, sha in zip(self.runs, self.parts(read), shas, strict=True):
            if not run.diverged:
                run.add(done, values, seconds=seconds, fresh=self.fresh, waited=waited, sha=sha)
        self.fresh = False
        self.console.progress(done, self.train.steps, self.line(done), self.train.progress_every)
        for run in live:
            run.check(done, self.console.log)
            if run.diverged and len(self.runs) > 1:
                self.console.log(f"{run.label}diverged: {run.diverged}")
        if not self.live():
            raise Diverged(live[-1].diverged)

    def pause(self, state: TrainState, done: int, evaluate: bool, save: bool) -> None:
        """Evaluates and saves between two steps.

        A signal ends the evaluation early: it is then due on resuming.
        """
        self.spend("evaluation")
        scores = None
        if evaluate and self.group.received is None:
            scores = self.evaluate(state)
            self.group.poll()  # a signal in the last batch of an evaluation need not wait for a step
        if scores is not None:
            for run, own in zip(self.runs, self.parts(scores), strict=True):
                if not run.diverged:
                    run.score(done, {name: float(value) for name, value in own.items()}, self.console.log)
        every = save or self.group.received is not None
        wanted = [
            run
            for run in self.live()
            if every
            or (scores is not None and run.checkpoints.is_best(run.latest[self.objective.score.name]))
        ]
        if (
            scores is not None and not every
        ):  # the processes compute the same, but if they didn't, they would wait for each other for ever
            kept = [
                self.runs[i] for i in self.group.exchange("kept", [self.runs.index(run) for run in wanted])[0]
            ]
        else:
            kept = wanted
        if kept:
            self.spend("checkpoint")
            self.group.mark("save", done)
            for run, own in zip(self.runs, self.parts(state), strict=True):
                if run in kept:
                    run.save(own, done, evaluation_due=evaluate and scores is None, scored=scores is not None)
        if every:
            self.group.poll()  # what there is has just been saved
        self.mark, self.fresh = time.perf_counter(), not self.runs[0].clock.steps

    def line(self, done: int) -> str:
        """The progress line: loss, expert load, tokens/s, MFU and the time that is left."""
        runs = self.live()
        first, losses = runs[0], [run.latest["train_loss"] for run in runs]
        parts = [
            f"loss {losses[0]:.4f}"
            if len(self.runs) == 1
            else f"{len(runs)} runs, losses {min(losses):.4f} to {max(losses):.4f}"
        ]
        parts += self.objective.progress(first.latest)
        if "expert_load_max" in first.latest:
            dropped = first.latest["expert_dropped"]
            parts.append(
                f"load {first.latest['expert_load_max']:.2f}x"
                + (f", {dropped:.1%} dropped" if dropped else "")
            )
        if first.clock.steps:
            seconds = first.clock.step_seconds()
            parts.append(f"{short(len(self.runs) * first.tokens_per_step / seconds)} tokens/s")
            mfu = first.mfu(seconds)
            if mfu is not None:
                parts.append(f"MFU {len(self.runs) * mfu:.1%}")
            parts.append(f"ETA {clock((self.train.steps - done) * seconds)}")
        return "  ".join(parts)
