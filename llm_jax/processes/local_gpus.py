"""Which of a host's GPUs this process uses. Imports no JAX.

Slurm lists in CUDA_VISIBLE_DEVICES the GPUs that a task may use: all of the job's on the host
(--gpus-per-node), or the task's own (--gpus-per-task, --gpu-bind). JAX would use the one of the task's local
rank, which is wrong for a task per node and for a task that sees only its own.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from llm_jax.core.errors import UserError
from llm_jax.processes.launcher import LaunchedProcess


def visible_devices(environ: Mapping[str, str]) -> list[str] | None:
    """The names of GPUs in CUDA_VISIBLE_DEVICES; None where it isn't set, and all GPUs are visible."""
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    return [] if text in ("", "-1", "NoDevFiles") else text.split(",")


def given_devices(environ: Mapping[str, str]) -> int | None:
    """How many GPUs of this host Slurm allocated to all tasks together; None outside Slurm."""
    text = environ.get("SLURM_GPUS_ON_NODE", "")
    return int(text) if text.isdecimal() else None


def present_devices() -> int:
    """How many NVIDIA GPUs this host has, by their device files."""
    return len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])


def local_devices(task: LaunchedProcess, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPUs that this process uses, as positions among the visible ones; None: all of those, or there are
    none.

    Raises UserError where the host's tasks can't share its GPUs evenly.
    """
    visible, given = visible_devices(environ), given_devices(environ)
    count = len(visible) if visible is not None else given or present_devices()
    if task.local_size == 1 or count == 0:
        return None
    if given is not None and count < given:  # it only sees its own
        return None
    if given is None and visible is not None and count < task.local_size:
        return None
    if count % task.local_size:
        raise UserError(
            f"{task.host}: {task.local_size} tasks share {count} GPUs, which doesn't divide. Start a task "
            f"per GPU (srun --ntasks-per-node={count}) "
            "or a task per node (srun --ntasks-per-node=1)"
        )
    share = count // task.local_size
    return tuple(range(task.local_rank * share, (task.local_rank + 1) * share))


def device_names(task: LaunchedProcess, environ: Mapping[str, str]) -> list[str]:
    """The names of the GPUs that this process uses: UUIDs where nvidia-smi lists them, else as in
    CUDA_VISIBLE_DEVICES."""
    visible = visible_devices(environ)
    names = (
        visible
        if visible is not None
        else [str(i) for i in range(given_devices(environ) or present_devices())]
    )
    uuids = list_uuids()
    if all(name.isdecimal() and int(name) < len(uuids) for name in names):
        names = [uuids[int(name)] for name in names]
    mine = local_devices(task, environ)
    return names if mine is None else [names[i] for i in mine]


def list_uuids() -> list[str]:
    """The UUIDs of the GPUs that this process may open; empty where there is no driver."""
    try:
        shown = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"UUID: (GPU-[\w-]+)", shown)
