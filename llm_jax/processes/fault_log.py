"""Faults of a run: their records, how one is printed, and where they are kept.

A fault record is a JSON object, a line of <run_dir>/faults.jsonl:

  time      seconds since 1970
  kind      exception, killed, silent, hang, late, apart (runs another program) or unfit (preflight)
  rank      of the culprit
  host      of the culprit
  phase     where it was: start, data, compile, train, evaluate, save, restore, sample or end
  step      the step that it was at; 0 before the first
  batch     the fingerprint of that step's batch, or null
  message   what happened, as a sentence
  job       Slurm's number of the job, or ""
  restart   how often the job had been requeued
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from llm_jax.core.files import read_json_lines
from llm_jax.processes.launcher import process_name

Record = dict[str, Any]
FIELDS = {
    "time": int | float | None, "rank": int | None, "step": int | None,
    **dict.fromkeys(("kind", "host", "phase", "batch", "message"), str | None),
}  # fmt: skip
"""The types of a record's fields, where it has them."""
FILE = "faults.jsonl"
FOLDER = "faults"


def describe(fault: Record) -> str:
    """The fault in one line: process, phase, step, batch and message."""
    where = f"in phase {fault.get('phase')}" + (f", step {fault['step']}" if fault.get("step") else "")
    batch = f" (batch {fault['batch'][:12]})" if fault.get("batch") else ""
    process = process_name(fault.get("rank") or 0, fault.get("host") or "")
    return f"{process} {where}{batch}: {fault.get('message')}"


def append(run_dir: Path | None, fault: Record, once: bool = False) -> None:
    """Appends a fault to the run folder's faults.jsonl, if there is a run folder. Prints a line on stderr if
    it can't be written.

    `once`: several processes found the same fault, and only the first one writes it.
    """
    if run_dir is None or not run_dir.is_dir():
        return
    try:
        file = os.open(run_dir / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if once:
                with contextlib.suppress(
                    OSError
                ):  # a file system without locks: rather twice than not at all
                    fcntl.flock(file, fcntl.LOCK_EX)
                if any(same_fault(fault, other) for other in read(run_dir)[-4:]):
                    return
            os.write(file, json.dumps(fault).encode() + b"\n")
        finally:
            os.close(file)
    except OSError as error:
        write_stderr(f"{run_dir / FILE}: can't be written to ({error.strerror})")


def same_fault(one: Record, other: Record) -> bool:
    """Whether two records are of one fault that two processes found: one culprit and one start of the job,
    within a minute."""
    return (
        all(one.get(key) == other.get(key) for key in ("rank", "job", "restart"))
        and abs((one.get("time") or 0) - (other.get("time") or 0)) < 60
    )


def read(run_dir: Path) -> list[Record]:
    """The fault records of a run, the oldest first, without lines that were cut off or are no record."""
    return read_json_lines(run_dir / FILE, FIELDS)


def dump_stacks(run_dir: Path | None, rank: int) -> None:
    """Writes the stacks of all threads to stderr and to <run_dir>/faults/rank_<rank>.txt."""
    faulthandler.dump_traceback(2, all_threads=True)
    if run_dir is None or not run_dir.is_dir():
        return
    with contextlib.suppress(OSError):
        (run_dir / FOLDER).mkdir(exist_ok=True)
        with (run_dir / FOLDER / f"rank_{rank}.txt").open("a") as file:
            faulthandler.dump_traceback(file, all_threads=True)


def write_stderr(text: str) -> None:
    """Writes a line to stderr from any thread, even where the main thread is stuck while it writes there."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))


def end_process(code: int) -> None:
    """Ends this process at once with an exit code. Flushes stdout and stderr first, for at most a second
    each."""
    for stream in (sys.stdout, sys.stderr):
        flushing = threading.Thread(target=flush, args=(stream,), daemon=True)
        flushing.start()
        flushing.join(1.0)  # a thread that is stuck in a write has the stream's lock
    os._exit(code)


def flush(stream: TextIO) -> None:
    """Flushes a stream, ignoring errors."""
    with contextlib.suppress(Exception):
        stream.flush()
