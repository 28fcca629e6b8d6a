"""Several processes on this machine, as another launcher than Slurm would start them."""

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
"""No test takes so long: whoever still runs then hangs, and is killed."""

PRELUDE = """
import os, random, signal, sys, threading, time
from llm_jax.processes.config import ClusterConfig
from llm_jax.processes.group import Group
from llm_jax.processes.launcher import read_task
from llm_jax.core.command import run_command
from llm_jax.core.errors import Fault, UserError

def say(*words):
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
    """A process that has come to its end."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def indented(text: str) -> str:
    """Python that stands in a block."""
    return "\n".join(f"        {line}" for line in text.strip("\n").split("\n"))


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher without Slurm says."""
    ours = {"LLM_JAX_RANK": str(rank), "LLM_JAX_SIZE": str(size), "LLM_JAX_COORDINATOR": f"127.0.0.1:{port}", "PYTHONUNBUFFERED": "1"}
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | ours


@contextlib.contextmanager
def started(size: int, body: str, before: str = "pass", ranks: list[int] | None = None, **config: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that run `before` before they meet, and then `body`, with the names group, rank, size and say. Killed in the end."""
    port = free_port()
    program = PRELUDE.format(before=indented(before), body=indented(body), config={"start_seconds": 20.0, **config})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env=environment(rank, size, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
    """Waits for all."""
    deadline = time.monotonic() + SECONDS
    found = []
    for process in processes:
        out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        found.append(Ended(process.returncode, out, err))
    return found


def ran(size: int, body: str, before: str = "pass", ranks: list[int] | None = None, **config: float) -> list[Ended]:
    """Processes from their start to their end."""
    with started(size, body, before, ranks, **config) as processes:
        return ended(processes)


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    """Reads what a process prints until this line."""
    assert process.stdout
    for said in process.stdout:
        if said.strip() == line:
            return
    raise AssertionError(f"ended without {line!r}")
