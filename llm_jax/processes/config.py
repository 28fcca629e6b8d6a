"""How long the processes of a run wait for each other before they call it a fault."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_jax.core.errors import require


@dataclass(frozen=True)
class ClusterConfig:
    """Several processes, and jobs with a time limit."""

    start_seconds: float = 180.0
    """All processes of a run must have met within so many seconds of its start."""
    beat_seconds: float = 30.0
    """A process that wasn't heard of for so many seconds is lost (its host is, or it was stopped), and the run ends."""
    hang_seconds: float = 600.0
    """The run ends when no process got any further for so many seconds in training, evaluation, saving or sampling."""
    compile_seconds: float = 3600.0
    """The same while it compiles."""
    stop_before_end_seconds: float = 120.0
    """A run saves and stops so many seconds before its Slurm job's time limit, at most a quarter of the job's time; 0: only a signal stops it."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        for key in ("start_seconds", "beat_seconds", "hang_seconds", "compile_seconds"):
            require(0 < getattr(self, key) < math.inf, f"cluster.{key}", getattr(self, key), "more than 0 seconds")
        value = self.stop_before_end_seconds
        require(0 <= value < math.inf, "cluster.stop_before_end_seconds", value, "0 (only a signal stops the run) or more seconds")

    def limit(self, phase: str) -> float:
        """For how many seconds a process may get no further in a phase. Preparing a corpus may take hours, so only dead processes end that."""
        if phase in ("start", "data", "end"):
            return math.inf
        return self.compile_seconds if phase == "compile" else self.hang_seconds
