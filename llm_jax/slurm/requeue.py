"""The command `python -m llm_jax.slurm.requeue`, which job scripts call: decides whether the job of a run is
requeued."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.command import run_command
from llm_jax.core.errors import (
    EXIT_DIVERGED,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_PEER,
    EXIT_REPEATED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    UserError,
)
from llm_jax.core.files import BUSY, has_fields
from llm_jax.processes import fault_log
from llm_jax.processes.launcher import number
from llm_jax.slurm import job

LONGEST_WAIT = 1800
RUN_FAULTS = ("exception", "hang")
"""Kinds of faults that the run itself causes: the second at one step ends the job."""
MACHINE_FAULTS = ("killed", "silent")
"""Kinds of faults that the machine may cause, twice at one step by chance: the third ends the job."""
STOPPED_BY_SIGNAL = (128 + signal.SIGTERM, 128 + signal.SIGUSR1)
"""Exit codes of a process that a signal to stop ended before it had a handler, or after: no fault."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """Whether the job is requeued, and why."""

    code: int
    """85: it is requeued; else the exit code with which it ends."""
    reason: str
    delay: int = 0
    """Seconds before the next start."""


def decide(run_dir: Path, code: int, max_restarts: int, backoff_seconds: int) -> tuple[Decision, Record]:
    """The decision about a job whose run ended with an exit code, from the run folder's files, and the record
    to keep of it."""
    step, earlier = newest_checkpoint(run_dir), job.decisions_since_submission(run_dir)
    fault = fault_of(run_dir, code, earlier)
    idle_restarts = 0  # since the last newer checkpoint
    for record in reversed(earlier):
        if record["step"] < step:
            break
        idle_restarts += 1
    decision = decide_from(run_dir, code, step, idle_restarts, fault, earlier, max_restarts, backoff_seconds)
    record = {
        "time": time.time(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "start": number(os.environ, "SLURM_RESTART_COUNT", 0) + 1,
        "exit": code,
        "step": step,
        "fault": fault,
        "decision": "requeue" if decision.code == EXIT_STOPPED else "end",
        "code": decision.code,
        "reason": decision.reason,
        "delay": decision.delay,
    }
    return decision, record


def decide_from(
    run_dir: Path,
    code: int,
    step: int,
    idle_restarts: int,
    fault: Record | None,
    earlier: list[Record],
    max_restarts: int,
    backoff_seconds: int,
) -> Decision:
    """The decision about a job.

    code: the run's exit code. step: that of the newest checkpoint. idle_restarts: starts since that
    checkpoint. fault: what ended this start. earlier: the decisions since the job was submitted.
    """
    error = user_error_line(run_dir) if code == EXIT_USER_ERROR else ""
    # After the loss of a node its processes may live on for a while and keep the folder locked: no user
    # error, if the job has run before.
    locked = BUSY in error and number(os.environ, "SLURM_RESTART_COUNT", 0) > 0
    ends = {0: "the run is finished", EXIT_USER_ERROR: error, EXIT_DIVERGED: "the run diverged"}
    if code in ends and not locked:
        return Decision(code, ends[code])
    if job.cancel_mark(run_dir).exists():
        return Decision(
            EXIT_INTERRUPTED,
            f"cancelled, with a checkpoint of step {step}"
            if step
            else "cancelled, before there was a checkpoint",
        )
    if code in (EXIT_INTERRUPTED, EXIT_REPEATED):
        return Decision(code, "interrupted" if code == EXIT_INTERRUPTED else "given up by the run")
    if (
        code != EXIT_STOPPED
        and fault
        and (again := repeated(fault, [record.get("fault") for record in earlier]))
    ):
        return Decision(EXIT_REPEATED, f"given up: {again}")
    if idle_restarts >= max_restarts:
        return Decision(
            EXIT_REPEATED,
            f"given up: no checkpoint newer than step {step} in {idle_restarts} restarts "
            f"(slurm.max_restarts={max_restarts})",
        )
    if code == EXIT_STOPPED or (code in STOPPED_BY_SIGNAL and not fault):
        how = "stopped" if code == EXIT_STOPPED else f"ended by {signal.Signals(code - 128).name}"
        return Decision(
            EXIT_STOPPED,
            f"{how} with a checkpoint of step {step}: resumes from there" if step else f"{how}: starts again",
        )
    delay = min(LONGEST_WAIT, backoff_seconds * 2**idle_restarts)
    return Decision(
        EXIT_STOPPED,
        f"{error or describe_failure(code, fault)}; resumes at step {step} in {delay} s at the earliest",
        delay,
    )


def user_error_line(run_dir: Path) -> str:
    """The last error line in the job's log, without "error: "."""
    log = job.job_folder(run_dir) / "job.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else "a user error"


def repeated(fault: Record, earlier: list[Record | None]) -> str:
    """A sentence about a fault that came at one step too often (`RUN_FAULTS`, `MACHINE_FAULTS`); "" if it
    didn't."""
    same = [one for one in earlier if one and fingerprint(one) == fingerprint(fault)]
    count = 1 + len(same)
    if fault["kind"] not in (*RUN_FAULTS, *MACHINE_FAULTS) or count < (
        2 if fault["kind"] in RUN_FAULTS else 3
    ):
        return ""
    batch = f", batch {fault['batch']}" if fault.get("batch") else ""
    where = f"step {fault['step']}{batch}" if fault.get("step") else f"phase {fault['phase']}"
    return f"the same fault at {where}, {count} times: {fault['message']}"


def fingerprint(fault: Record) -> tuple[Any, ...]:
    """Equal for two faults that count as one fault again: kind, phase and step.

    Before the first step the message counts too, since many faults happen there; for faults of the machine
    the process does.
    """
    where = (fault["kind"], fault.get("phase"), fault.get("step"))
    if fault["kind"] in MACHINE_FAULTS:
        return (*where, fault.get("rank"), fault.get("host"))
    return where if fault.get("step") else (*where, fault.get("message"))


def describe_failure(code: int, fault: Record | None) -> str:
    """A sentence about the failure: its fault, or what the exit code means."""
    if fault and fault.get("phase") != "unknown":
        return fault_log.describe(fault)
    if code > 128 and code - 128 in list(signal.Signals):
        return f"killed by {signal.Signals(code - 128).name}"
    return f"failed with exit code {code}"


def fault_of(run_dir: Path, code: int, earlier: list[Record]) -> Record | None:
    """The fault that ended this start: the first one recorded since the last decision.

    Where a process failed without a record (a traceback alone), a record is made up from the newest
    checkpoint. None: no fault.
    """
    if code in (0, EXIT_USER_ERROR, EXIT_DIVERGED, EXIT_STOPPED, EXIT_INTERRUPTED):
        return None
    since = earlier[-1]["time"] if earlier else job.submitted_at(run_dir)
    for fault in fault_log.read(run_dir):
        if (fault.get("time") or 0) > since and has_fields(fault, job.FAULT):
            return fault
    if code in (EXIT_FAULT, EXIT_PEER):
        step = newest_checkpoint(run_dir)
        message = f"exit code {code} after the checkpoint of step {step}, with no fault recorded; see the log"
        return {
            "kind": "exception",
            "rank": 0,
            "host": "",
            "phase": "unknown",
            "step": 0,
            "batch": None,
            "message": message,
        }
    return None


def newest_checkpoint(run_dir: Path) -> int:
    """The step of the newest complete checkpoint; 0 if there is none."""
    folder = run_dir / "checkpoints"
    return (
        max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)
        if folder.is_dir()
        else 0
    )


def append_decision(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Appends a decision to <run_dir>/slurm/restarts.jsonl."""
    job.job_folder(run_dir).mkdir(exist_ok=True)
    with (job.job_folder(run_dir) / "restarts.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


@dataclass(frozen=True, kw_only=True)
class RequeueCommand:
    """Decides whether the job of a run is requeued: python -m llm_jax.slurm.requeue RUN_DIR code=CODE

      python -m llm_jax.slurm.requeue runs/quickstart/default code=85

    Slurm job scripts call it when a start of the run has ended (llm_jax/slurm/job.sh.jinja). It prints the
    reason in one line on stderr and the seconds to wait before the next start on stdout, and appends the
    decision to <RUN_DIR>/slurm/restarts.jsonl.

    Exit codes: 85 requeue; else the code with which the job ends: 0 the run is finished, 2 a user error, 3
    the run diverged, 87 given up (one fault again at one step, or too many restarts without a newer
    checkpoint), 130 cancelled by llm_jax.slurm.cancel.
    """

    run_dir: Path = positional("RUN_DIR")
    """The run folder."""
    code: int = argument(shown="CODE", least=0)
    """The exit code of srun: the highest of the run's processes."""
    max_restarts: int = argument(10, least=0)
    """Restarts in a row without a newer checkpoint before the run is given up."""
    backoff_seconds: int = argument(120, least=0)
    """The wait after a crash; doubled with each restart without a newer checkpoint, at most half an hour."""

    def check(self) -> None:
        """Raises UserError unless the folder exists."""
        if not self.run_dir.is_dir():
            raise UserError(f"{self.run_dir}: must be one run folder")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(requeue, arguments)


def requeue(arguments: list[str]) -> int:
    """Runs the command line; raises UserError where it is wrong."""
    command = read_command(arguments, RequeueCommand)
    if command is None:
        return 0
    run_dir = command.run_dir
    decision, record = decide(run_dir, command.code, command.max_restarts, command.backoff_seconds)
    append_decision(run_dir, record)
    print(
        f"{'requeue' if decision.code == EXIT_STOPPED else 'the job ends'}: {decision.reason}",
        file=sys.stderr,
    )
    print(decision.delay)
    return decision.code


if __name__ == "__main__":
    sys.exit(main())
