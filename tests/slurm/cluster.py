"""The Slurm cluster of tests; its fixture is `slurm_cluster` in tests/conftest.py."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TOOL = ROOT / "tools" / "slurm_cluster.py"
NODES, CPUS = 4, 8
GPUS = 4 if os.geteuid() == 0 else 0
"""Fake GPUs of a node; only root can make them."""


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """tools/slurm_cluster.py in a process of its own."""
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


@dataclass(frozen=True)
class SlurmCluster:
    """node1 ... node4, of 8 CPUs and 4 fake GPUs each (none where the tests don't run as root). SLURM_CONF
    names it while a test has it."""

    folder: Path
    nodes: tuple[str, ...] = tuple(f"node{i + 1}" for i in range(NODES))
    gpus: int = GPUS

    def run(self, *command: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a command with more environment variables, and captures its output as text."""
        return subprocess.run(
            list(map(str, command)),
            env={**os.environ, **more},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def ask(self, *command: object) -> str:
        """The output of a command, which must not fail."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: int | str) -> dict[str, str]:
        """The fields that `scontrol show job` prints, by name: JobState, Restarts, ExitCode ..."""
        return dict(
            word.split("=", 1)
            for word in self.ask("scontrol", "-o", "show", "job", job).split()
            if "=" in word
        )

    def wait(self, job: int | str, *states: str, seconds: float = 120.0) -> dict[str, str]:
        """Waits until a job is in one of the states (COMPLETED, RUNNING ...). Fails where it ends in another,
        and after `seconds`."""
        end = time.monotonic() + seconds
        while (found := self.state(job))["JobState"] not in states:
            assert time.monotonic() < end, (
                f"job {job} is still {found['JobState']} ({found['Reason']}) after {seconds:.0f} s"
            )
            ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"} - set(
                states
            )
            assert found["JobState"] not in ended or found["Restarts"] != self.state(job)["Restarts"], found
            time.sleep(0.1)
        return found

    def clear(self) -> None:
        """Ends all jobs and resumes all nodes."""
        for job in self.run("squeue", "-h", "-o", "%A").stdout.split():
            self.run("scancel", "--full", "--signal=KILL", job)
            self.run("scancel", job)
        self.run("scontrol", "update", f"NodeName={','.join(self.nodes)}", "State=RESUME")
        end = time.monotonic() + 30
        while self.run("squeue", "-h").stdout.strip() and time.monotonic() < end:
            time.sleep(0.1)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file's lock, so that one process at a time is in the context."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def shared_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """The cluster in a folder that several workers share: the first starts it, and the last one stops it.
    Skips where Slurm isn't installed."""
    if not shutil.which("slurmctld", path=os.environ["PATH"] + os.pathsep + "/usr/sbin"):
        from tools.slurm_cluster import INSTALL

        pytest.skip(f"Slurm isn't installed here; install it with: {INSTALL}")
    users = folder.with_suffix(".users")
    with locked(folder.with_suffix(".lock")):
        count = int(users.read_text()) if users.exists() else 0
        if not count:
            done = tool("start", f"folder={folder}", f"nodes={NODES}", f"cpus={CPUS}", f"gpus={GPUS}")
            assert done.returncode == 0, done.stderr
        users.write_text(str(count + 1))
    try:
        yield SlurmCluster(folder)
    finally:
        with locked(folder.with_suffix(".lock")):
            count = int(users.read_text()) - 1
            users.write_text(str(count))
            if not count:
                done = tool("stop", f"folder={folder}")
                assert done.returncode == 0, done.stderr
