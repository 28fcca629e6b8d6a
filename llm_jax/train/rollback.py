"""Roll-backs: after a loss spike the run returns to a checkpoint and skips the batches that led to it.

The batch of a step is a function of the step and of the roll-backs recorded in <run_dir>/rollbacks.jsonl, so a state is one of its step
and those of them that it knows, wherever the run was broken off. A roll-back is done in this order, and a process that is killed within
it leaves a run that comes to the same spike again, or one that has been rolled back:
  1. the newest checkpoint is restored that has not seen a batch which is to be skipped;
  2. those that have are removed, and that is on the disk;
  3. the roll-back is recorded, and that is on the disk; then training resumes.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import drop_torn_line, read_json_lines, sync_folder
from llm_jax.processes.collective import broadcast_from_first
from llm_jax.processes.group import Group
from llm_jax.train.config import RollbackConfig

NAME = "rollbacks.jsonl"


@dataclass(frozen=True)
class Rollback:
    """One roll-back, as a line of rollbacks.jsonl. Steps are counted from 1, batches from 0."""

    spike_step: int
    """The step with the spike."""
    loss: float
    """The loss of that step."""
    median: float
    """The median of the losses before it."""
    restored_step: int
    """The step of the checkpoint that the run returned to; 0: its start."""
    kept_steps: int
    """The steps up to this one train on the same batches as before."""
    batches: list[int]
    """Which batches are skipped, in the order in which they would have come next."""
    batch_shas: list[str]
    """Their fingerprints, as metrics.jsonl has them; empty where it has none."""


class Rollbacks:
    """The roll-backs of a run, oldest first: the same on all processes, and kept in its folder."""

    def __init__(self, run_dir: Path, group: Group):
        self.path, self.group = run_dir / NAME, group
        self.list = [Rollback(**line) for line in broadcast_from_first(group, "roll-backs", self.read)]

    def read(self) -> list[dict[str, Any]]:
        """The lines of the file.

        A last one without its end is of a roll-back that was not finished, and is removed.
        """
        drop_torn_line(self.path)
        try:
            return read_json_lines(self.path, strict=True)
        except ValueError as error:
            raise UserError(
                f"{self.path}: is damaged ({error}), so the batches that this run skips are unknown. "
                "Choose another run_dir"
            ) from error

    def batch(self, step: int) -> int:
        """The batch of a step; both from 0.

        Each roll-back took batches out of the order that those before it had left.
        """
        for rollback in reversed(self.list):
            if step >= rollback.kept_steps:
                step += len(rollback.batches)
        return step

    @property
    def skipped(self) -> int:
        """Batches that are skipped, of all that come before the run's last."""
        return sum(len(rollback.batches) for rollback in self.list)

    def add(self, rollback: Rollback) -> None:
        """Records a roll-back. It is on the disk, on all processes, when this returns."""

        def append() -> None:
            with self.path.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(rollback)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.path.parent)

        broadcast_from_first(self.group, "roll-back", append)
        self.list.append(rollback)


class Spike(Exception):
    """A loss far above the losses before it; the run resumes after a roll-back."""

    def __init__(self, step: int, loss: float, median: float):
        super().__init__(
            f"step {step}: loss {loss:.4f} is {loss / median:.2f} times the median before it ({median:.4f})"
        )
        self.step, self.loss, self.median = step, loss, median


class SpikeWatch:
    """Keeps the last losses and detects a spike: a function of the run's losses alone, equal on all
    processes.
    """

    def __init__(self, config: RollbackConfig, losses: Iterable[float] = ()):
        """losses: of the steps before, oldest first, as `losses` of another one had them."""
        self.config = config
        self.losses: deque[float] = deque(losses, maxlen=config.window)

    def add(self, step: int, loss: float) -> Spike | None:
        """Adds a finite loss; returns the Spike if it is one, else None."""
        median = statistics.median(self.losses) if len(self.losses) == self.config.window else 0.0
        if self.config.spike and median > 0 and loss > self.config.spike * median:
            return Spike(step, loss, median)
        self.losses.append(loss)
        return None
