"""The Slurm job of a run: its files in the run folder, and its entry in Slurm's queue.

<run_dir>/slurm/ has `job.sh` (the script), `experiment.yaml` (what it runs), `job.json` (its number),
`job.log` (its output), `restarts.jsonl` (one decision for each end of the job, with its reason) and
`cancelled`, an empty file that marks a cancelled job.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import has_fields, read_json, read_json_lines

FOLDER = "slurm"
COLUMNS = {"JobArrayID": 40, "State": 20, "RestartCnt": 12, "StartTime": 24, "Reason": 200}

DECISION = {
    "time": int | float, "start": int, "exit": int, "step": int, "decision": str, "code": int, "reason": str,
}  # fmt: skip
"""The fields of a line of restarts.jsonl, with their types; beside them it has the fault, or null."""
FAULT = {"kind": str, "message": str}
LOST_JOB = "its job ended without a result: it was ended by scancel, or its node died"


@dataclass(frozen=True)
class Queued:
    """A job in Slurm's queue, waiting or running."""

    state: str
    """PENDING, RUNNING, COMPLETING ..."""
    restarts: int
    """How often it was requeued."""
    start: str
    """When it started, or is expected to, as 2026-01-31T12:00:00; "N/A" where Slurm doesn't know."""
    reason: str
    """Slurm's reason for its waiting; "" if there is none."""


def job_folder(run_dir: Path) -> Path:
    """The folder with all files of a run's job."""
    return run_dir / FOLDER


def job_number(run_dir: Path, file: str = "job.json") -> str:
    """The job's number, as 12 or, in an array, 12_3; "" if the run was not submitted.

    file: "job.json", or "grid.json" for the job that waits for a grid's runs. What is no number is none: it
    would be an option of squeue or scancel.
    """
    with contextlib.suppress(OSError, UserError):
        found = str(read_json(job_folder(run_dir) / file).get("job"))
        return found if re.fullmatch(r"[0-9]+(_[0-9]+)?", found) else ""
    return ""


def cancel_mark(run_dir: Path) -> Path:
    """The file whose existence marks a job as cancelled: when it ends, it isn't requeued."""
    return job_folder(run_dir) / "cancelled"


def is_unknown_job(error: str) -> bool:
    """Whether squeue's error only means that the job has ended so long ago that Slurm has forgotten it."""
    return "Invalid job id" in error


def queued_jobs(jobs: Iterable[str]) -> dict[str, Queued]:
    """The jobs of these numbers that have not ended, by number; empty without Slurm. Raises SlurmError where
    squeue fails."""
    jobs = sorted({job for job in jobs if job})
    if not jobs or not shutil.which("squeue"):
        return {}
    form = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
    done = slurm("squeue", "--noheader", "--array", f"--jobs={','.join(jobs)}", f"--Format={form}")
    if done.returncode:
        if not is_unknown_job(done.stderr):
            raise SlurmError(error_line(done))
        return {}
    found = {}
    for line in done.stdout.splitlines():
        values = []
        for width in COLUMNS.values():
            values.append(line[:width].strip())
            line = line[width:]
        job, state, restarts, start, reason = values
        found[job] = Queued(
            state, int(restarts) if restarts.isdecimal() else 0, start, "" if reason == "None" else reason
        )
    return found


class SlurmError(Exception):
    """One of Slurm's commands failed; the text is its own error."""


def slurm(*command: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs one of Slurm's commands. Inside a job it doesn't see that job's variables, whose settings must not
    apply to other jobs."""
    own = dict(os.environ if environment is None else environment)
    clean = {
        name: value
        for name, value in own.items()
        if not name.startswith(("SLURM_", "SRUN_")) or name == "SLURM_CONF"
    }
    return subprocess.run(list(map(str, command)), env=clean, capture_output=True, text=True)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The errors that a failed command printed, in one line."""
    lines = [line.split("error: ", 1)[-1].strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"


def read_decisions(run_dir: Path) -> list[dict[str, Any]]:
    """The decisions of all ends of the job (`requeue.decide`), the oldest first."""
    return [
        record
        for record in read_json_lines(job_folder(run_dir) / "restarts.jsonl", DECISION)
        if record.get("fault") is None or has_fields(record["fault"], FAULT)
    ]


def submitted_at(run_dir: Path) -> float:
    """When the run's job was submitted, in seconds since 1970; 0 if it was not submitted with
    submit=slurm."""
    submitted = read_json(job_folder(run_dir) / "job.json").get("submitted")
    return float(submitted) if isinstance(submitted, (int, float)) else 0.0


def decisions_since_submission(run_dir: Path) -> list[dict[str, Any]]:
    """The decisions since the job was submitted, the oldest first; earlier ones belong to another job."""
    return [record for record in read_decisions(run_dir) if record["time"] > submitted_at(run_dir)]
