"""Injects faults into a run under a real Slurm: the job, its phase, the faults and their outcomes. Used by
tools/soak.py and tests/faults."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_jax.core.files import read_json_lines
from tools.slurm_cluster import Cluster, require_slurm

ROOT = Path(__file__).parent.parent
PHASES = ("start", "compile", "train", "evaluate", "save", "sample")
SIGNALS = ("TERM", "USR1", "USR1 then TERM", "TERM to one process", "scontrol requeue")
"""Faults that leave time to save: no step may be lost."""
CRASHES = ("kill -9 one process", "kill -9 all processes", "stop one process", "node down")
"""Faults that leave no time to save: at most the steps since the last checkpoint are done again."""
SMALL = (
    "model.layers=2", "model.embed=64", "model.heads=4", "model.mlp=128", "tokenizer.vocab=512",
    "train.batch_size=8", "train.sequence_length=64",
    "optimizer.name=adamw", "optimizer.learning_rate=3e-3", "optimizer.warmup_steps=5", "layout=fsdp",
    "evaluate.every=20", "evaluate.batches=10",
    "evaluate.final_batches=10", "checkpoint.every=10", "sample.tokens=40", "train.progress_every=1",
)  # fmt: skip
"""Overrides that make the quickstart small: a step takes some hundredths of a second, an evaluation about one
second."""
CHECKPOINT_EVERY, EVALUATE_EVERY = 10, 20
STOP_SECONDS = 150
"""After any fault a run must have stopped within so many seconds."""


@dataclass
class Job:
    """A run of several processes under Slurm, submitted as a user would. SLURM_CONF names the cluster."""

    run_dir: Path
    steps: int
    nodes: int = 2
    devices: int = 2
    """Simulated devices of each process; one process a node."""
    experiment: tuple[str, ...] = ("experiment=quickstart", *SMALL)
    """The experiment and its sizes, key=value of the launcher."""
    more: tuple[str, ...] = ()
    """Further key=value of the launcher."""
    number: str = ""

    def submit(self) -> None:
        """Submits the run with the launcher. Raises RuntimeError with the launcher's output where it
        fails."""
        command = [
            sys.executable, "-m", "llm_jax.launch", *self.experiment,
            f"train.steps={self.steps}",
            f"run_dir={self.run_dir}", *self.more,
            "submit=slurm", f"slurm.nodes={self.nodes}", "slurm.tasks_per_node=1", "slurm.cpus_per_task=1",
            "slurm.time=01:00:00",
            "slurm.backoff_seconds=0", "slurm.max_restarts=50",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}",
        }
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        self.number = str(json.loads((self.run_dir / "slurm" / "job.json").read_text())["job"])

    def state(self) -> str:
        """The job's state in Slurm: PENDING, RUNNING, COMPLETED ..."""
        return slurm_fields("job", self.number)["JobState"]

    def wait(self, *states: str, seconds: float = 300) -> str:
        """Waits until the job is in one of these states. Raises RuntimeError where it ends in another, and
        after `seconds`."""
        end = time.monotonic() + seconds
        while (state := self.state()) not in states:
            if state in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") or time.monotonic() > end:
                raise RuntimeError(
                    f"job {self.number} is {state}, not {' or '.join(states)}\n{self.log()[-3000:]}"
                )
            time.sleep(0.05)
        return state

    def log(self) -> str:
        """The job's output so far."""
        path = self.run_dir / "slurm" / "job.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def processes(self) -> dict[int, int]:
        """The process ids of the run's live processes, by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if (
                    f"run_dir={self.run_dir}" not in words
                    or "llm_jax.launch" not in words
                    or Path(words[0]).name == "srun"
                ):
                    continue
                environment = dict(
                    w.split("=", 1)
                    for w in (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                    if "=" in w
                )
                if (
                    "SLURM_PROCID" in environment
                    and environment.get("SLURM_JOB_ID") == self.number
                    and environment.get("SLURM_STEP_ID") != "batch"
                ):
                    found[int(environment["SLURM_PROCID"])] = int(folder.name)
        return found

    def steps_done(self) -> dict[int, dict[str, Any]]:
        """The lines of metrics.jsonl by step. Raises AssertionError where a step was done twice with
        different losses or tokens."""
        found: dict[int, dict[str, Any]] = {}
        for line in self.lines():
            if "train_loss" in line:
                before = found.setdefault(line["step"], line)
                if any(before[key] != line[key] for key in ("train_loss", "batch_sha")):
                    raise AssertionError(
                        f"step {line['step']} was done twice and differs: {before['train_loss']} and "
                        f"{line['train_loss']}"
                    )
        return found

    def lines(self) -> list[dict[str, Any]]:
        """The complete lines of metrics.jsonl, in the order of the file."""
        path = self.run_dir / "metrics.jsonl"
        return list(read_json_lines(path)) if path.exists() else []

    def last_step(self, since: int = 0) -> int:
        """The newest step in metrics.jsonl after its first `since` lines; 0 if there is none."""
        return max((line["step"] for line in self.lines()[since:] if "train_loss" in line), default=0)


def slurm_fields(kind: str, name: str) -> dict[str, str]:
    """The fields that `scontrol show` prints, by name."""
    text = subprocess.run(
        ["scontrol", "-o", "show", kind, name], capture_output=True, text=True, check=True
    ).stdout
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def in_phase(job: Job, phase: str, start: int, patience: float) -> bool:
    """Waits until the job's present start is in a phase, as its files show. False when the job has passed it.

    start: the position in the log at which the present start began. patience: seconds.
    """
    until = time.monotonic() + patience
    saving = job.run_dir / "checkpoints"
    first = job.last_step()
    while time.monotonic() < until:
        printed = job.log()[start:]
        if phase == "start" and job.processes():
            return True
        if phase == "compile" and "run folder" in printed and job.last_step() == first:
            return True
        lines = job.lines() if phase in ("train", "evaluate", "sample") else []
        newest = lines[-1] if lines else {}
        if phase == "train" and newest.get("step", 0) > first + 1 and "train_loss" in newest:
            return True
        if (
            phase == "evaluate"
            and newest.get("step", 0) > first
            and newest["step"] % EVALUATE_EVERY == 0
            and "train_loss" in newest
        ):
            return True
        if phase == "save" and saving.is_dir() and any(not path.name.isdigit() for path in saving.iterdir()):
            return True
        if phase == "sample" and newest.get("step") == job.steps and "eval_loss" in newest:
            return True
        if job.state() not in ("RUNNING", "PENDING", "CONFIGURING", "COMPLETING"):
            return False
        time.sleep(0.005 if phase == "save" else 0.02)
    return False


def bring_back(node: str) -> None:
    """Resumes a node that was taken down, and waits until it is up. A node that has come back by itself must
    not be resumed."""
    while "DOWN" in slurm_fields("node", node)["State"]:
        subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], capture_output=True)
        time.sleep(0.2)


@dataclass(frozen=True)
class Case:
    """A fault, and the phase of the run in which to inject it."""

    fault: str
    phase: str


@dataclass
class Outcome:
    """The outcome of a fault."""

    case: Case
    at: int
    """The newest step when it was injected."""
    seconds_to_stop: float = float("nan")
    resumed_at: int = -1
    lost: int = 0
    """How many steps had to be done again."""
    notes: list[str] = field(default_factory=list)


def inject(job: Job, case: Case, rank: int) -> Callable[[], None]:
    """Injects the fault, and returns a function to call when the run has stopped. rank: the process it hits,
    where it hits one."""
    processes = job.processes()
    one = processes.get(rank) or next(iter(processes.values()), None)

    def kill(number: signal.Signals, *pids: int | None) -> None:
        for pid in pids:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def nothing() -> None:
        pass

    def scontrol(*words: str) -> None:
        subprocess.run(["scontrol", *words], check=True, capture_output=True)

    if case.fault in ("TERM", "USR1"):
        subprocess.run(["scancel", f"--signal={case.fault}", job.number], check=True)
    elif case.fault == "USR1 then TERM":
        subprocess.run(["scancel", "--signal=USR1", job.number], check=True)
        time.sleep(0.2)
        subprocess.run(["scancel", "--signal=TERM", job.number], check=True)
    elif case.fault == "TERM to one process":
        kill(signal.SIGTERM, one)
    elif case.fault == "scontrol requeue":
        scontrol("requeue", job.number)
    elif case.fault == "kill -9 one process":
        kill(signal.SIGKILL, one)
    elif case.fault == "kill -9 all processes":
        kill(signal.SIGKILL, *processes.values())
    elif case.fault == "stop one process":
        kill(signal.SIGSTOP, one)
        return lambda: kill(signal.SIGKILL, one)
    elif case.fault == "node down":
        node = f"node{job.nodes}"
        scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=fault")
        return lambda: bring_back(node)
    else:
        raise ValueError(case.fault)
    return nothing


def strike(job: Job, case: Case, rank: int, patience: float = 120) -> Outcome | None:
    """Waits for the phase, injects the fault, and waits until the run has resumed or is finished. None where
    the job has passed the phase.

    The other processes end the run of a suspended one; the process that Slurm leaves of it is killed here.
    """
    job.wait("RUNNING", "COMPLETED", seconds=patience)
    output, earlier = job.log(), len(job.lines())
    start = max(output.rfind("start "), 0)
    if not in_phase(job, case.phase, start, patience):
        return None
    before, old = job.last_step(), set(job.processes().values())
    began = time.monotonic()
    afterwards = inject(job, case, rank)
    while alive := old & set(job.processes().values()):
        if time.monotonic() - began > STOP_SECONDS:
            raise RuntimeError(
                f"{case}: processes {sorted(alive)} still run after {STOP_SECONDS} s\n{job.log()[-3000:]}"
            )
        if case.fault == "stop one process" and len(alive) == 1 and len(old) > 1:
            break
        time.sleep(0.02)
    outcome = Outcome(case, before, seconds_to_stop=time.monotonic() - began)
    done, size = job.last_step(since=earlier), len(job.log())  # steps that an earlier fault lost don't count
    afterwards()
    end = time.monotonic() + 180
    while time.monotonic() < end:
        printed = job.log()[size:]
        if "resuming at step" in printed:
            outcome.resumed_at = int(printed.split("resuming at step", 1)[1].split()[0])
            break
        if job.state() == "COMPLETED":
            outcome.resumed_at = max(done, before)
            break
        if "run folder" in printed and not any(
            path.name.isdigit() for path in (job.run_dir / "checkpoints").glob("*")
        ):
            outcome.resumed_at = 0
            break
        if job.state() in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            raise RuntimeError(f"{case}: job {job.number} is {job.state()}\n{job.log()[-3000:]}")
        time.sleep(0.05)
    else:
        raise RuntimeError(f"{case}: the job did not resume\n{job.log()[-3000:]}")
    outcome.lost = max(0, done - outcome.resumed_at)
    return outcome


def compare(job: Job, unbroken: Job) -> None:
    """Raises AssertionError where an interrupted run differs from an uninterrupted one in any step's tokens
    or (bit for bit) loss."""
    ours, theirs = job.steps_done(), unbroken.steps_done()
    assert sorted(ours) == list(range(1, job.steps + 1)), (
        f"steps {sorted(set(range(1, job.steps + 1)) - set(ours))} are missing"
    )
    for step, line in theirs.items():
        assert ours[step]["batch_sha"] == line["batch_sha"], f"step {step}: other tokens"
        assert ours[step]["train_loss"] == line["train_loss"], (
            f"step {step}: loss {ours[step]['train_loss']}, unbroken {line['train_loss']}"
        )
    assert not job.processes(), f"processes are left: {job.processes()}"


@contextlib.contextmanager
def cluster(folder: Path, nodes: int, cpus: int = 4) -> Iterator[None]:
    """Runs a cluster while the context lasts; SLURM_CONF names it."""
    require_slurm()
    made = Cluster(folder)
    made.start(nodes=nodes, cpus=cpus, gpus=0, memory=4000)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(made.conf)
    try:
        yield
    finally:
        made.stop()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
