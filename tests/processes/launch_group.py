"""Starts the processes of a group on this machine, as a launcher other than Slurm would."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60
"""No test takes so long: a process that still runs then hangs, and is killed."""

PRELUDE = """
import os, random, signal, sys, threading, time
from llm_jax.processes.config import ClusterConfig
from llm_jax.processes.group import Group
from llm_jax.processes.launcher import read_task
from llm_jax.core.command import run_command
from llm_jax.core.errors import Fault, UserError

def report(*words):
    print(*words, flush=True)

def main(arguments):
    with Group(read_task(os.environ)) as group:
        rank, size = group.task.rank, group.task.size
{before}
        group.join(ClusterConfig(**{config}))
{body}
    return 0

sys.exit(run_command(main, []))
"""


@dataclass
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def indented(text: str) -> str:
    """Python source, indented as the body of a block."""
    return "\n".join(f"        {line}" for line in text.strip("\n").split("\n"))


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment variables that a launcher without Slurm sets."""
    ours = {
        "LLM_JAX_RANK": str(rank),
        "LLM_JAX_SIZE": str(size),
        "LLM_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "PYTHONUNBUFFERED": "1",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | ours


@contextlib.contextmanager
def started(
    size: int, body: str, before: str = "pass", ranks: list[int] | None = None, **config: float
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that run `before` before the rendezvous and `body` after it, with the names group, rank, size
    and report.

    They are killed at the end of the context.
    """
    port = free_port()
    program = PRELUDE.format(
        before=indented(before), body=indented(body), config={"start_seconds": 20.0, **config}
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (range(size) if ranks is None else ranks)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout
            assert process.stderr
            process.stdout.close()
            process.stderr.close()


def ended(processes: list[subprocess.Popen[str]]) -> list[Ended]:
    """Waits until all have ended."""
    deadline = time.monotonic() + SECONDS
    found = []
    for process in processes:
        out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        found.append(Ended(process.returncode, out, err))
    return found


def ran(
    size: int, body: str, before: str = "pass", ranks: list[int] | None = None, **config: float
) -> list[Ended]:
    """Starts processes (see `started`), and waits until all have ended."""
    with started(size, body, before, ranks, **config) as processes:
        return ended(processes)


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    """Reads what a process prints until this line."""
    assert process.stdout
    for printed in process.stdout:
        if printed.strip() == line:
            return
    raise AssertionError(f"ended without {line!r}")
