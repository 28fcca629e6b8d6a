"""Whether the job of a run goes on: python -m llm_jax.slurm.requeue RUN_DIR code=CODE

  python -m llm_jax.slurm.requeue runs/quickstart/default code=85

Slurm job scripts ask it when a start of the run has ended (llm_jax/slurm/job.sh.jinja). It says why in one line on stderr, prints how many seconds
to wait before the next start, and keeps the decision in <RUN_DIR>/slurm/restarts.jsonl.

code=CODE            the exit code of srun: the highest of the run's processes
max_restarts=N       (10) restarts in a row without progress before the run is given up; a newer checkpoint is progress
backoff_seconds=N    (120) the wait after a crash; twice as long with each restart without progress, at most half an hour

  --help             this text

Exit codes: 85 requeue; else the code that the job is to end with: 0 the run is finished, 2 a mistake in what was asked, 3 the run diverged,
87 given up (the same fault again at the same step, or too many restarts without progress), 130 cancelled by llm_jax.slurm.cancel.
"""

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

from llm_jax.core.command import read_arguments, run_command
from llm_jax.core.errors import (
    EXIT_DIVERGED,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_PEER,
    EXIT_REPEATED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    UserError,
    nearest,
    require,
)
from llm_jax.core.files import BUSY
from llm_jax.processes import fault_log
from llm_jax.slurm import job

LONGEST_WAIT = 1800
TWICE = ("exception", "hang")
"""Kinds of faults that are the run's own: the second at the same step is the last."""
THRICE = ("killed", "silent")
"""Kinds that may be the machine's, twice at the same step by chance. A third time is too much."""
ASKED_TO_STOP = (128 + signal.SIGTERM, 128 + signal.SIGUSR1)
"""A process that had no handler for these yet, or no longer: it was to stop, and nothing is wrong with it."""
KEYS = {"code": -1, "max_restarts": 10, "backoff_seconds": 120}

Record = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """What becomes of the job."""

    code: int
    """85: it is requeued; else what it ends with."""
    reason: str
    delay: int = 0
    """Seconds before the next start."""


def decide(run_dir: Path, code: int, max_restarts: int, backoff_seconds: int) -> tuple[Decision, Record]:
    """What becomes of a job whose run ended with an exit code, and the record of it, from what is in the run folder."""
    step, earlier = newest_checkpoint(run_dir), job.since_submitted(run_dir)
    fault = fault_of(run_dir, code, earlier)
    stuck = 0  # restarts since the last progress
    for record in reversed(earlier):
        if record["step"] < step:
            break
        stuck += 1
    decision = judge(run_dir, code, step, stuck, fault, earlier, max_restarts, backoff_seconds)
    record = {
        "time": time.time(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "start": int(os.environ.get("SLURM_RESTART_COUNT") or 0) + 1,
        "exit": code,
        "step": step,
        "fault": fault,
        "decision": "requeue" if decision.code == EXIT_STOPPED else "end",
        "code": decision.code,
        "reason": decision.reason,
        "delay": decision.delay,
    }
    return decision, record


def judge(
    run_dir: Path, code: int, step: int, stuck: int, fault: Record | None, earlier: list[Record], max_restarts: int, backoff_seconds: int
) -> Decision:
    """The decision, from all that counts for it."""
    said = mistake(run_dir) if code == EXIT_USER_ERROR else ""
    # After a node was lost its processes may live on for a while, and hold the folder: that is no mistake, if the job has run before.
    held = BUSY in said and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    ends = {0: "the run is finished", EXIT_USER_ERROR: said, EXIT_DIVERGED: "the run diverged"}
    if code in ends and not held:
        return Decision(code, ends[code])
    if job.cancelled(run_dir).exists():
        return Decision(EXIT_INTERRUPTED, f"cancelled, with a checkpoint of step {step}" if step else "cancelled, before there was a checkpoint")
    if code in (EXIT_INTERRUPTED, EXIT_REPEATED):
        return Decision(code, "interrupted" if code == EXIT_INTERRUPTED else "given up by the run")
    if code != EXIT_STOPPED and fault and (again := repeated(fault, [record["fault"] for record in earlier])):
        return Decision(EXIT_REPEATED, f"given up: {again}")
    if stuck >= max_restarts:
        return Decision(EXIT_REPEATED, f"given up: no checkpoint newer than step {step} in {stuck} restarts (slurm.max_restarts={max_restarts})")
    if code == EXIT_STOPPED or (code in ASKED_TO_STOP and not fault):
        how = "stopped" if code == EXIT_STOPPED else f"ended by {signal.Signals(code - 128).name}"
        return Decision(EXIT_STOPPED, f"{how} with a checkpoint of step {step}: goes on from there" if step else f"{how}: starts again")
    delay = min(LONGEST_WAIT, backoff_seconds * 2**stuck)
    return Decision(EXIT_STOPPED, f"{said or failed(code, fault)}; goes on from step {step}, in {delay} s at the earliest", delay)


def mistake(run_dir: Path) -> str:
    """The line that says what was wrong with what was asked: the last in the log."""
    log = job.folder(run_dir) / "job.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return told[-1] if told else "a mistake in what was asked"


def repeated(fault: Record, earlier: list[Record | None]) -> str:
    """In words that this is the same fault at the same step again, and one too many; empty if it isn't."""
    same = [one for one in earlier if one and fingerprint(one) == fingerprint(fault)]
    often = 1 + len(same)
    if fault["kind"] not in (*TWICE, *THRICE) or often < (2 if fault["kind"] in TWICE else 3):
        return ""
    batch = f", batch {fault['batch']}" if fault.get("batch") else ""
    where = f"step {fault['step']}{batch}" if fault.get("step") else f"phase {fault['phase']}"
    return f"the same fault at {where}, {often} times: {fault['message']}"


def fingerprint(fault: Record) -> tuple[Any, ...]:
    """What makes two faults the same. Before the first step a machine's faults are many, and only the same words tell that it is one.

    What was killed from outside is the same only if it was the same process.
    """
    where = (fault["kind"], fault.get("phase"), fault.get("step"))
    if fault["kind"] in THRICE:
        return (*where, fault.get("rank"), fault.get("host"))
    return where if fault.get("step") else (*where, fault.get("message"))


def failed(code: int, fault: Record | None) -> str:
    """What happened, in words."""
    if fault and fault["phase"] != "unknown":
        return fault_log.describe(fault)
    if code > 128 and code - 128 in list(signal.Signals):
        return f"killed by {signal.Signals(code - 128).name}"
    return f"failed with exit code {code}"


def fault_of(run_dir: Path, code: int, earlier: list[Record]) -> Record | None:
    """The fault that ended this start: the first that was recorded since the last decision; where there is no more than a traceback, one made up."""
    if code in (0, EXIT_USER_ERROR, EXIT_DIVERGED, EXIT_STOPPED, EXIT_INTERRUPTED):
        return None
    since = earlier[-1]["time"] if earlier else job.submitted(run_dir)
    for fault in fault_log.read(run_dir):
        if fault.get("time", 0) > since:
            return fault
    if code in (EXIT_FAULT, EXIT_PEER):
        step = newest_checkpoint(run_dir)
        message = f"exit code {code} after the checkpoint of step {step}, with no fault recorded; the log has what was said"
        return {"kind": "exception", "rank": 0, "host": "", "phase": "unknown", "step": 0, "batch": None, "message": message}
    return None


def newest_checkpoint(run_dir: Path) -> int:
    """The step of the newest whole checkpoint; 0 if there is none."""
    folder = run_dir / "checkpoints"
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0) if folder.is_dir() else 0


def keep(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Appends a decision to the run folder."""
    job.folder(run_dir).mkdir(exist_ok=True)
    with (job.folder(run_dir) / "restarts.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(requeue, arguments)


def requeue(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    folders = [a for a in arguments if "=" not in a and not a.startswith("-")]
    flags, pairs = read_arguments([a for a in arguments if a not in folders], ("--help", "-h"))
    if not arguments or flags:
        print(__doc__)
        return 0
    if len(folders) != 1 or not Path(folders[0]).is_dir():
        raise UserError(f"{' '.join(folders) or 'RUN_DIR'}: must be one run folder")
    numbers = dict(KEYS)
    for key, value in pairs:
        if key not in KEYS:
            raise UserError(f"{key}={value}: there is no key {key!r}; {nearest(key, KEYS)}")
        require(value.isdigit(), key, value, "a whole number")
        numbers[key] = int(value)
    if numbers["code"] < 0:
        raise UserError("code=: is missing: the exit code of srun")
    run_dir = Path(folders[0])
    decision, record = decide(run_dir, **numbers)
    keep(run_dir, record)
    print(f"{'requeue' if decision.code == EXIT_STOPPED else 'the job ends'}: {decision.reason}", file=sys.stderr)
    print(decision.delay)
    return decision.code


if __name__ == "__main__":
    sys.exit(main())
