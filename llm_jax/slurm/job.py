"""The Slurm job of a run: what the run folder knows of it, and what Slurm says.

<run_dir>/slurm/ has `job.sh` (the script), `experiment.yaml` (what it runs), `job.json` (its number), `job.log` (what it printed),
`restarts.jsonl` (why it went on or ended, a line each time) and `cancelled`, if it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.files import read_json_lines

FOLDER = "slurm"
COLUMNS = {"JobArrayID": 40, "State": 20, "RestartCnt": 12, "StartTime": 24, "Reason": 200}

LOST = "its job ended without a last word: scancel, or a node that died"


@dataclass(frozen=True)
class Queued:
    """A job that Slurm knows and that has not ended."""

    state: str
    """PENDING, RUNNING, COMPLETING ..."""
    restarts: int
    start: str
    """When it started, or is expected to; "N/A" where Slurm doesn't know."""
    reason: str
    """Why it waits."""


def folder(run_dir: Path) -> Path:
    """Where all about a run's job is kept."""
    return run_dir / FOLDER


def job_of(run_dir: Path) -> str:
    """The job's number, as 12 or 12_3; empty if the run was not submitted."""
    path = folder(run_dir) / "job.json"
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads(path.read_text())["job"])
    return ""


def cancelled(run_dir: Path) -> Path:
    """The mark of a job that is to end and not to go on."""
    return folder(run_dir) / "cancelled"


def forgotten(error: str) -> bool:
    """Whether squeue's complaint says no more than that it has forgotten the job."""
    return "Invalid job id" in error


def queued(jobs: Iterable[str]) -> dict[str, Queued]:
    """What Slurm says of those of these jobs that have not ended; nothing where there is no Slurm."""
    jobs = sorted({job for job in jobs if job})
    if not jobs or not shutil.which("squeue"):
        return {}
    form = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
    done = slurm("squeue", "--noheader", "--array", f"--jobs={','.join(jobs)}", f"--Format={form}")
    if done.returncode:
        if not forgotten(done.stderr):
            raise SlurmError(said(done))
        return {}
    found = {}
    for line in done.stdout.splitlines():
        values = []
        for width in COLUMNS.values():
            values.append(line[:width].strip())
            line = line[width:]
        job, state, restarts, start, reason = values
        found[job] = Queued(state, int(restarts) if restarts.isdigit() else 0, start, "" if reason == "None" else reason)
    return found


class SlurmError(Exception):
    """One of Slurm's commands failed: its own words."""


def slurm(*command: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """One of Slurm's commands. Inside a job it is not told of that job, whose settings are not another's."""
    own = dict(os.environ if environment is None else environment)
    clean = {name: value for name, value in own.items() if not name.startswith(("SLURM_", "SRUN_")) or name == "SLURM_CONF"}
    return subprocess.run(list(map(str, command)), env=clean, capture_output=True, text=True)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed complained of, in one line."""
    lines = [line.split("error: ", 1)[-1].strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"


def restarts(run_dir: Path) -> list[dict[str, Any]]:
    """What was decided each time that the job came to an end (`requeue.decide`), the oldest first."""
    return read_json_lines(folder(run_dir) / "restarts.jsonl")


def submitted(run_dir: Path) -> float:
    """When the run's job was submitted, seconds since 1970; 0 if it was not by us."""
    path = folder(run_dir) / "job.json"
    return float(json.loads(path.read_text())["submitted"]) if path.exists() else 0.0


def since_submitted(run_dir: Path) -> list[dict[str, Any]]:
    """The decisions about the job since it was submitted: earlier ones were about another."""
    return [record for record in restarts(run_dir) if record["time"] > submitted(run_dir)]
