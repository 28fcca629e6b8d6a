"""How long the processes of a run wait for each other before the run ends with a fault."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_jax.core.errors import require


@dataclass(frozen=True)
class ClusterConfig:
    """Time limits of runs of several processes, and of runs in Slurm jobs."""

    start_seconds: float = 180.0
    """Seconds within which all processes of a run must have connected after its start."""
    beat_seconds: float = 30.0
    """A process that has sent nothing for so many seconds counts as lost (its host is down, or it was
    suspended), and the run ends."""
    hang_seconds: float = 600.0
    """The run ends when no process has made progress for so many seconds in training, evaluation, saving or
    sampling."""
    compile_seconds: float = 3600.0
    """The run ends when no process has made progress for so many seconds while it compiles."""
    stop_before_end_seconds: float = 120.0
    """A run saves and stops so many seconds before its Slurm job's time limit, but at most a quarter of the
    job's time before it. 0: only a signal stops it."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        for key in ("start_seconds", "beat_seconds", "hang_seconds", "compile_seconds"):
            require(
                0 < getattr(self, key) < math.inf, f"cluster.{key}", getattr(self, key), "more than 0 seconds"
            )
        value = self.stop_before_end_seconds
        require(
            0 <= value < math.inf,
            "cluster.stop_before_end_seconds",
            value,
            "0 (only a signal stops the run) or more seconds",
        )

    def limit(self, phase: str) -> float:
        """The seconds for which a process may make no progress in a phase.

        Infinite in the phases start, data and end: preparing a corpus may take hours, so only the loss of a
        process ends it.
        """
        if phase in ("start", "data", "end"):
            return math.inf
        return self.compile_seconds if phase == "compile" else self.hang_seconds
