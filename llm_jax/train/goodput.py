"""Where the time of a run goes, over all its starts: how much of it was training.

Every second from the start of the process on is spent on one of PARTS, so they add up to the wall time.
<run_dir>/time.json has them, and the count of starts, at most a few seconds behind; a process that is killed
takes so much of its account with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import read_json, write_json

PARTS = ("start", "compile", "data", "step", "evaluation", "checkpoint", "sample", "lost")
"""start: imports, the corpus, restoring. compile: of the train step. data: waiting for batches. step: waiting
for steps. checkpoint: while training stands still for one. lost: steps, and what belongs to them, that were
done again after a restart or a roll-back.
"""
DONE_AGAIN = ("compile", "data", "step", "evaluation")
"""Parts that count as lost when they follow the checkpoint that a restart resumes from."""
EVERY = 5.0
"""Seconds between writes of time.json."""


class Goodput:
    """The seconds of one run by part. `begun`: the `time.monotonic()` at which this start began."""

    def __init__(self, begun: float):
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.part, self.mark = "start", begun
        self.starts = 1
        self.path: Path | None = None
        self.written = begun
        self.notice = ""
        """A line for the log where the times of earlier starts could not be read."""

    def resume(self, run_dir: Path, at_checkpoint: Mapping[str, float], writes: bool = True) -> None:
        """Adds the times of earlier starts from the run folder.

        `at_checkpoint`: the `seconds` in the checkpoint that the run resumes from.

        writes: whether this process writes time.json.
        """
        path = run_dir / "time.json"
        try:
            before = read_json(path)
        except (OSError, UserError) as error:  # no reason not to train
            before = {}
            self.notice = f"the times of earlier starts can't be read: {error}"
        seconds = before.get("seconds") or dict(at_checkpoint)
        self.starts = before.get("starts", 0) + 1
        for part in PARTS:
            self.parts[part] += seconds.get(part, 0.0)
        self.lose(at_checkpoint, DONE_AGAIN)
        if writes:
            self.path = path
            self.write()

    def lose(self, at_checkpoint: Mapping[str, float], parts: Sequence[str]) -> None:
        """Counts the time that was spent on these parts since a checkpoint with these `seconds` as lost: the
        work is repeated.
        """
        self.spend(self.part)
        for part in parts:
            again = max(0.0, self.parts[part] - at_checkpoint.get(part, 0.0))
            self.parts[part] -= again
            self.parts["lost"] += again

    def spend(self, part: str) -> None:
        """Starts to count time for this part."""
        now = time.monotonic()
        self.parts[self.part] += now - self.mark
        self.part, self.mark = part, now
        if self.path and now - self.written > EVERY:
            self.write()

    @contextlib.contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """Counts the time inside the block for this part."""
        before = self.part
        self.spend(part)
        try:
            yield
        finally:
            self.spend(before)

    def seconds(self) -> dict[str, float]:
        """Seconds of each part up to now."""
        self.spend(self.part)
        return dict(self.parts)

    @property
    def wall_seconds(self) -> float:
        """Wall-clock seconds of all starts of the run."""
        return sum(self.parts.values()) + time.monotonic() - self.mark

    def summary(self) -> dict[str, Any]:
        """For summary.json: `goodput` is the share of the wall time that was spent on steps which counted."""
        seconds = self.seconds()
        wall = sum(seconds.values())
        return {
            "wall_seconds": wall,
            "seconds": seconds,
            "goodput": seconds["step"] / wall if wall else None,
            "starts": self.starts,
        }

    def write(self) -> None:
        """Writes time.json atomically."""
        if not self.path:
            return
        self.written = time.monotonic()
        seconds = dict(self.parts)
        seconds[self.part] += self.written - self.mark
        write_json(self.path, {"starts": self.starts, "at": time.time(), "seconds": seconds})
