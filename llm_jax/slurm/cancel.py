"""The command `python -m llm_jax.slurm.cancel`: cancels runs after saving."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.arguments import positional, read_command
from llm_jax.core.command import run_command
from llm_jax.core.errors import EXIT_FAULT
from llm_jax.slurm import job
from llm_jax.slurm.status import find_runs, lock_holder


def cancel_run(run_dir: Path, queue: dict[str, job.Queued]) -> str:
    """Cancels one run and returns a sentence about what was done. Raises job.SlurmError where Slurm
    refuses."""
    number = job.job_number(run_dir)
    waiting = queue.get(number)
    if waiting is None:
        if pid := lock_holder(run_dir):
            os.kill(pid, signal.SIGTERM)
            return f"process {pid} on this machine received SIGTERM: it saves and ends"
        return "nothing to do: it is neither queued nor running" + (
            f" (job {number} has ended)" if number else ""
        )
    job.cancel_mark(run_dir).touch()  # first: the job may end at any moment, and must find it
    if waiting.state == "RUNNING":
        # The signal goes to the run's processes, and not to the script, which decides about the requeue.
        call("scancel", "--signal=USR1", number)
        return f"job {number} is running and received USR1: it saves, ends, and isn't requeued"
    call("scancel", number)
    return f"job {number} was {waiting.state.lower()}, and was removed from the queue"


def call(*command: str) -> None:
    """Runs one of Slurm's commands. Raises job.SlurmError if it fails."""
    done = job.slurm(*command)
    if done.returncode:
        raise job.SlurmError(f"{' '.join(command)}: {job.error_line(done)}")


def dependent_jobs(folders: list[Path]) -> list[str]:
    """The numbers of the jobs that wait for a grid's runs in order to continue the grid."""
    return [number for folder in folders if (number := job.job_number(folder, "grid.json"))]


@dataclass(frozen=True)
class CancelCommand:
    """Cancels runs after saving: python -m llm_jax.slurm.cancel RUNS...

      python -m llm_jax.slurm.cancel runs/quickstart/default
      python -m llm_jax.slurm.cancel runs/scaling/isoflop_gpu/default      a grid: all of its jobs

    A running job saves a checkpoint and ends; a waiting one is removed from the queue. Neither is requeued.
    The command that submitted the run submits it again, and it resumes from the checkpoint.

    Exit codes: 0 done, 1 Slurm refused, 2 a user error (one line on stderr).
    """

    runs: tuple[Path, ...] = positional("RUNS...")
    """Run folders, grids' folders, or folders above some."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(cancel, arguments)


def cancel(arguments: list[str]) -> int:
    """Runs the command line; raises UserError where it is wrong."""
    command = read_command(arguments, CancelCommand)
    if command is None:
        return 0
    runs, dependent = find_runs(list(command.runs)), dependent_jobs(list(command.runs))
    code = 0
    try:
        queue = job.queued_jobs([*map(job.job_number, runs), *dependent])
        for number in dependent:  # before the runs, whose end would start them
            if number in queue:
                call("scancel", number)
                print(f"job {number}, which waits for the grid's runs, was removed from the queue")
        for run in runs:
            if len(runs) == 1 or job.job_number(run) in queue or lock_holder(run):
                print(f"{run}: {cancel_run(run, queue)}")
    except job.SlurmError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_FAULT
    return code


if __name__ == "__main__":
    sys.exit(main())
