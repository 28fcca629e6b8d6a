"""The command `python -m llm_jax.slurm.status`: a table of runs and their states."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from yaml import YAMLError

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.command import output_file, run_command
from llm_jax.core.config_tree import flat, read_yaml_text
from llm_jax.core.errors import EXIT_INTERRUPTED, EXIT_STOPPED, UserError
from llm_jax.core.files import write_atomic
from llm_jax.core.format import clock, number, short
from llm_jax.core.tables import make_console
from llm_jax.processes import fault_log
from llm_jax.run.run_folder import last_summary
from llm_jax.slurm import job
from llm_jax.train.metrics import read_metrics

TAIL = 1 << 16
"""How many bytes at the end of metrics.jsonl are read: a long run's file is large."""
WIDTH = 160
"""Columns of the table where the output is no terminal."""
COLORS = {
    "finished": "green",
    "running": "cyan",
    "queued": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "diverged": "red",
}


@dataclass(frozen=True)
class Status:
    """A row of the table: the state of a run."""

    run: str
    state: str
    """queued, running, stopped, finished, diverged or failed."""
    job: str
    """The number of its Slurm job; "" if it was not submitted."""
    step: int
    steps: int | None
    """train.steps; None before its configuration is written."""
    loss: float | None
    """Train loss of the newest step, in nats a token."""
    eval_loss: float | None
    tokens_per_second: float | None
    mfu: float | None
    eta_seconds: float | None
    """Expected seconds to the last step; None unless it is running."""
    restarts: int
    """How often it was started again."""
    goodput: float | None
    """The fraction of wall time spent in steps that count (weren't done again)."""
    error: str
    """The last error, or why it waits in the queue."""


def status_of(run_dir: Path, queue: dict[str, job.Queued]) -> Status:
    """The state of one run. queue: `job.queued_jobs`."""
    summary, lines = last_summary(run_dir), read_metrics(run_dir / "metrics.jsonl", tail=TAIL)
    number, decisions = job.job_number(run_dir), job.decisions_since_submission(run_dir)
    waiting, steps = queue.get(number), steps_of(run_dir)
    newest = {key: value for line in lines for key, value in line.items() if value is not None}
    recent = [line for line in lines if line.get("tokens_per_second") and line.get("step_seconds")][-20:]
    state, error = state_of(run_dir, waiting, summary, decisions)
    seconds = statistics.median(line["step_seconds"] for line in recent) if recent else None
    step = newest.get("step", summary.get("step")) or 0
    return Status(
        run=str(run_dir),
        state=state,
        job=number,
        step=step,
        steps=steps,
        loss=newest.get("train_loss"),
        eval_loss=newest.get("eval_loss", summary.get("eval_loss")),
        tokens_per_second=statistics.median(line["tokens_per_second"] for line in recent) if recent else None,
        mfu=statistics.median(line["mfu"] for line in recent)
        if recent and all(line.get("mfu") for line in recent)
        else None,
        eta_seconds=(steps - step) * seconds if state == "running" and steps and seconds else None,
        restarts=waiting.restarts if waiting else decisions[-1]["start"] - 1 if decisions else 0,
        goodput=summary.get("goodput"),
        error=error,
    )


def state_of(
    run_dir: Path, waiting: job.Queued | None, summary: dict[str, Any], decisions: list[dict[str, Any]]
) -> tuple[str, str]:
    """A run's state, and its last error or why it waits in the queue."""
    last = decisions[-1] if decisions else None
    failure = last["reason"] if last and last["exit"] not in (0, EXIT_STOPPED, EXIT_INTERRUPTED) else ""
    recorded = fault_log.read(run_dir)
    fault = fault_log.describe(recorded[-1]) if recorded else ""
    if waiting and waiting.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"):
        return "queued", failure or waiting.reason
    if waiting or lock_holder(run_dir):
        return "running", failure or fault
    if summary.get("state") == "finished" and (summary.get("step") or 0) >= (steps_of(run_dir) or 0):
        return "finished", ""
    if last and last["decision"] == "end" and last["code"] not in (0, EXIT_INTERRUPTED):
        return ("diverged" if summary.get("state") == "diverged" else "failed"), last["reason"]
    if summary.get("state") == "diverged":
        return "diverged", summary.get("reason", "loss or gradient not finite")
    if job.cancel_mark(run_dir).exists() or (last and last["code"] == EXIT_INTERRUPTED):
        return "stopped", last["reason"] if last else "cancelled before it started"
    if summary.get("state") == "stopped":
        return "stopped", ""
    return "failed", fault or failure or (
        job.LOST_JOB if job.job_number(run_dir) else "ended without a result"
    )


def steps_of(run_dir: Path) -> int | None:
    """How many steps a run is to do; None where its configuration isn't there, or can't be read."""
    for path in (run_dir / "config.yaml", job.job_folder(run_dir) / "experiment.yaml"):
        if path.exists():
            with contextlib.suppress(ValueError, TypeError, AttributeError, YAMLError):
                return int(flat(read_yaml_text(path.read_text())).get("train.steps", 0)) or None
    return None


def lock_holder(run_dir: Path) -> int | None:
    """The id of the process on this machine that holds a run folder's lock; None if there is none.

    It reads the system's list of locks. Trying to take the lock would make a run fail that starts at that
    moment.
    """
    path = Path("/proc/locks")
    if not path.exists():
        return None
    about = run_dir.stat()
    key = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[3] == "WRITE" and words[5] == key:
            return int(words[4])
    return None


def find_runs(folders: list[Path]) -> list[Path]:
    """The run folders among these folders and below them. Raises UserError for a folder without any."""
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder.")
        runs = (
            [folder]
            if is_run(folder)
            else sorted({path.parent for path in folder.rglob("config.yaml")} | submitted_below(folder))
        )
        if not runs:
            raise UserError(f"{folder}: has no run in it. Give a run folder, or one above some.")
        found += [run for run in runs if run not in found]
    return found


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, started or only submitted."""
    return (folder / "config.yaml").is_file() or (job.job_folder(folder) / "experiment.yaml").is_file()


def submitted_below(folder: Path) -> set[Path]:
    """The run folders below a folder that were submitted and may not have started."""
    return {path.parent.parent for path in folder.rglob(f"{job.FOLDER}/experiment.yaml")}


def show(found: list[Status]) -> None:
    """Prints the table of runs. The column of goodput is left out where no run has one."""
    goodput, common = (
        any(one.goodput is not None for one in found),
        os.path.commonpath([one.run for one in found]) if len(found) > 1 else "",
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in (
        "run",
        "state",
        "job",
        "step",
        "loss",
        "held out",
        "tokens/s",
        "MFU",
        "ETA",
        "restarts",
        *["goodput"] * goodput,
        "last error",
    ):
        table.add_column(
            title,
            justify="left" if title in ("run", "state", "last error") else "right",
            overflow="fold",
            no_wrap=title == "state",
        )
    for one in found:
        name = os.path.relpath(one.run, common) if common else one.run
        of = f"{one.step}/{one.steps}" if one.steps else str(one.step)
        cells = [
            name, f"[{COLORS.get(one.state, 'white')}]{one.state}", one.job, of, number(one.loss, ".4f"),
            number(one.eval_loss, ".4f"),
            short(one.tokens_per_second) if one.tokens_per_second else "", number(one.mfu, ".1%"),
            clock(one.eta_seconds) if one.eta_seconds is not None else "", str(one.restarts or ""),
            *[number(one.goodput, ".0%")] * goodput,
        ]  # fmt: skip
        table.add_row(*cells, one.error.replace("[", "\\["))
    console = make_console(WIDTH)
    if common:
        console.print(f"in {common}:")
    console.print(table, markup=True)


@dataclass(frozen=True, kw_only=True)
class StatusCommand:
    """Prints a table of runs and their states: python -m llm_jax.slurm.status RUNS...

      python -m llm_jax.slurm.status runs/quickstart/default
      python -m llm_jax.slurm.status runs                     every run below a folder

    State: queued and running come from Slurm, or from a process on this machine; finished, diverged and
    stopped (with a checkpoint) from the run's summary.json; failed means that it ended without one, or was
    given up: the last column has the reason. Speeds are medians of the last 20 steps.

    Exit codes: 0 done, 2 a user error (one line on stderr).
    """

    runs: tuple[Path, ...] = positional("RUNS...", default=(Path("runs"),))
    """Run folders, grids' folders, or folders above some."""
    json: Path | None = argument(None, shown="FILE", read=output_file)
    """Also writes the table to this file, as JSON."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(status, arguments)


def status(arguments: list[str]) -> int:
    """Runs the command line; raises UserError where it is wrong."""
    command = read_command(arguments, StatusCommand)
    if command is None:
        return 0
    runs = find_runs(list(command.runs))
    try:
        queue, unknown = job.queued_jobs(job.job_number(run) for run in runs), ""
    except job.SlurmError as error:  # the table is useful without
        queue, unknown = (
            {},
            f"squeue: {error}: queued runs, and those on other machines, are shown without their jobs",
        )
    found = [status_of(run, queue) for run in runs]
    show(found)
    if unknown:
        print(unknown, file=sys.stderr)
    if command.json:
        write_atomic(command.json, json.dumps([dataclasses.asdict(one) for one in found], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
