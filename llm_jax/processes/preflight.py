"""Checks before a run costs anything: all processes have one program, the GPUs that Slurm allocated, and one
run folder with room in it.

The first failure is printed once, as a line that names the host and what to do, and ends all processes with
EXIT_USER_ERROR. `llm_jax.processes.probe` has the checks that need JAX.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.format import byte_size
from llm_jax.processes.group import Group
from llm_jax.processes.local_gpus import device_names, given_devices

SECONDS = 60.0
"""All processes must have reached an exchange within so many seconds."""
SEEN_SECONDS = 20.0
"""A file that one host wrote must exist on the others within so many seconds: network file systems need
some."""
PACKAGES = (
    "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-nccl-cu12", "nvidia-nccl-cu13",
    "flax", "optax", "orbax-checkpoint",
    "numpy",
)  # fmt: skip
MAY_DIFFER = (
    "JAX_LOCAL_DEVICE_IDS",
    "JAX_PROCESS_ID",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_BIND_ADDRESS",
    "JAX_COMPILATION_CACHE_DIR",
)
"""Environment variables of JAX that may differ between processes."""

Facts = dict[str, Any]


def check(group: Group, experiment: str, run_dir: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Raises UserError, on all processes, where they differ or something is missing. experiment: as YAML,
    which must be equal on all."""
    mine = facts(group, experiment, environ)
    everyone = group.exchange("preflight: versions and devices", mine, SECONDS)
    check_same(everyone)
    check_devices(everyone)
    check_folder(group, run_dir)


def facts(group: Group, experiment: str, environ: Mapping[str, str]) -> Facts:
    """The versions, settings and devices of this process, which are compared with the others'."""
    same: dict[str, str | None] = {"python": platform.python_version(), "llm_jax (its code)": code_hash()}
    same["the experiment"] = short_hash(experiment.encode())
    same |= {name: version(name) for name in PACKAGES}
    same |= {
        name: value
        for name, value in environ.items()
        if name == "XLA_FLAGS" or (name.startswith("JAX_") and name not in MAY_DIFFER)
    }
    devices = device_names(group.task, environ)
    return {
        "host": group.task.host,
        "same": same,
        "devices": devices,
        # A run on CPUs may leave GPUs idle.
        "given": None if environ.get("JAX_PLATFORMS") == "cpu" else given_devices(environ),
        "visible": environ.get("CUDA_VISIBLE_DEVICES"),
        "driver": bool(devices) and devices[0].startswith("GPU-"),
    }


def version(package: str) -> str | None:
    """A package's version; None if it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def short_hash(data: bytes) -> str:
    """The first 12 hex digits of the sha256."""
    return hashlib.sha256(data).hexdigest()[:12]


def code_hash() -> str:
    """A hash of the names and contents of all Python files of this package."""
    root = Path(__file__).parents[1]
    files = sorted(root.rglob("*.py"))
    return short_hash(
        b"".join(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() for path in files)
    )


# Equal on all processes:


def check_same(everyone: Sequence[Facts]) -> None:
    """Raises UserError for the first fact that isn't equal on all processes, naming hosts and values."""
    for key in {key: None for their in everyone for key in their["same"]}:
        values = [their["same"].get(key) for their in everyone]
        if len(set(values)) > 1:
            raise UserError(differing(key, values, [their["host"] for their in everyone]))


def differing(key: str, values: Sequence[str | None], hosts: Sequence[str]) -> str:
    """A line about a fact that differs between hosts, with the few hosts that differ from most."""
    usual = collections.Counter(values).most_common(1)[0][0]
    odd = {host: value for host, value in zip(hosts, values, strict=True) if value != usual}
    others = "; ".join(f"{shown(value)} on {host}" for host, value in list(odd.items())[:4]) + (
        f" and {len(odd) - 4} more" if len(odd) > 4 else ""
    )
    where = (
        "Set it on all hosts."
        if key.startswith(("JAX_", "XLA_"))
        else "Use one environment and one copy of the code on all hosts."
    )
    if key == "the experiment":
        where = "Give all processes one command and one experiment file."
    return f"{key}: differs between hosts: {shown(usual)} on most, but {others}. {where}"


def shown(value: str | None) -> str:
    """A fact as messages print it."""
    return "absent" if value is None else value


# GPUs:


def check_devices(everyone: Sequence[Facts]) -> None:
    """Raises UserError where a host's tasks leave GPUs idle that Slurm allocated, or use one GPU twice, or
    hosts differ in GPUs per process."""
    hosts: dict[str, list[Facts]] = {}
    for their in everyone:
        hosts.setdefault(their["host"], []).append(their)
    for host, tasks in hosts.items():
        used = [name for task in tasks for name in task["devices"]]
        given, count = tasks[0]["given"], len(tasks)
        some = f"{count} tasks see" if count > 1 else "its task sees"
        if given is not None and len(used) < given:
            visible = " and ".join(
                sorted({f"CUDA_VISIBLE_DEVICES={shown(task['visible'])}" for task in tasks})[:4]
            )
            raise UserError(
                f"{host}: Slurm allocated {given} GPUs, and {some} {len(used)} of them ({visible}). "
                "Allocate them with "
                f"--gpus-per-node={given}, without --gpus-per-task and --gpu-bind, start a task per node "
                "or per GPU, and set no CUDA_VISIBLE_DEVICES."
            )
        if all(task["driver"] for task in tasks) and len(set(used)) < len(used):
            twice = next(name for name, times in collections.Counter(used).items() if times > 1)
            raise UserError(
                f"{host}: its {count} tasks use one GPU twice ({twice}). Start them with srun, or set "
                "CUDA_VISIBLE_DEVICES for each task."
            )
    numbers = {host: sum(len(task["devices"]) for task in tasks) for host, tasks in hosts.items()}
    per_task = {len(their["devices"]) for their in everyone}
    if len(per_task) > 1:
        counts_text = ", ".join(
            f"{host} has {number} for {len(hosts[host])} tasks" for host, number in list(numbers.items())[:6]
        )
        raise UserError(
            f"GPUs: the number per process differs ({counts_text}). Allocate equal numbers on each node "
            "(--gpus-per-node, --ntasks-per-node)."
        )


# The run folder:


def check_folder(group: Group, run_dir: Path) -> None:
    """Raises UserError where the run folder is not one folder on a shared file system for all processes, or
    some can't write there."""
    target = nearest_folder(run_dir.absolute())
    probe = f".preflight-{short_hash(group.task.token.encode())}-{os.getpid()}"
    found = group.exchange("preflight: run folder", {"folder": str(target), "probe": probe}, SECONDS)
    theirs = Path(found[0]["folder"]) / f"{found[0]['probe']}-{group.task.rank}"
    trouble = None
    try:
        theirs.write_text("")
    except OSError as error:
        trouble = f"can't be written to ({error.strerror})"
    troubles = group.exchange("preflight: run folder written", trouble, SECONDS)
    first = Path(found[0]["folder"]) / f"{found[0]['probe']}-0"
    trouble = trouble or troubles[0] or (None if appears(first) else "is not the same folder")
    results = group.exchange("preflight: run folder seen", trouble, SECONDS)
    with contextlib.suppress(OSError):
        theirs.unlink()
    # Without this exchange a user error would end some processes before they have removed their files.
    group.exchange("preflight: run folder as before", None, SECONDS)
    hosts = group.hosts
    for rank, result in enumerate(results):
        if result:
            more = (
                ""
                if result.startswith("can't")
                else f" as on {hosts[0]}. Choose a folder on a file system that all hosts share (home, "
                "scratch)."
            )
            raise UserError(f"run_dir={run_dir}: on {hosts[rank]} it {result}{more}")


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return path if path.is_dir() or path == path.parent else nearest_folder(path.parent)


def appears(path: Path) -> bool:
    """Whether a file that another host wrote exists here within SEEN_SECONDS."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            list(path.parent.iterdir())  # has a network file system refresh its cache
    return True


def check_room(group: Group, run_dir: Path, needed: int) -> None:
    """Raises UserError where the run folder's file system has fewer than `needed` bytes left, as rank 0 sees
    it. (Not all quotas are visible.)"""
    free = group.exchange(
        "preflight: room", shutil.disk_usage(nearest_folder(run_dir.absolute())).free, SECONDS
    )[0]
    if free < needed:
        raise UserError(
            f"run_dir={run_dir}: {byte_size(needed)} are needed for checkpoints, and its file system has "
            f"{byte_size(free)} left. "
            "Free some space, choose another folder, or keep fewer checkpoints (checkpoint.keep)."
        )
