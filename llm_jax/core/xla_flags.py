"""XLA_FLAGS: the user's flags, and ours that must be set before JAX starts. Imports no JAX."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping, MutableMapping
from pathlib import Path

NO_DRIVER = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
"""Environment variable that lets the CUDA plugin load where there is no driver."""
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""One of these is there wherever an NVIDIA GPU is (the second under Windows)."""
SIMULATED_DEVICES = "xla_force_host_platform_device_count"
THREADS = "PJRT_NPROC"
"""Environment variable with the number of threads in XLA's pool; without it, the cores or the devices."""
THREADS_PER_DEVICE = 8
"""In one sequence of operations collectives have an order; more of them wait side by side only where loops
are nested or beside each other.
"""


def set_by_user(environment: Mapping[str, str] = os.environ) -> set[str]:
    """The names of the flags in XLA_FLAGS, under JAX 0.11's names too.

    >>> set_by_user({"XLA_FLAGS": "--xla_a=true --xla_b"}) == {"xla_a", "xla_b"}
    True
    """
    names = re.findall(r"--(\w+)", environment.get("XLA_FLAGS", ""))
    return {*names, *(name.replace("enable_pipelined", "pipeline") for name in names)}


def enough_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives XLA threads for all collectives that simulated devices may wait in at once, if XLA_FLAGS ask for
    such devices. Called before JAX starts.

    A collective blocks a thread until the other devices join. XLA's pool has one for each device, and runs
    what doesn't depend on each other side by side: a weight is gathered beside a loop with collectives of its
    own. Then all threads may wait for collectives of devices that find none, until XLA aborts the process
    after 40 s.
    """
    devices = re.findall(rf"--{SIMULATED_DEVICES}=(\d+)", environment.get("XLA_FLAGS", ""))
    if devices:
        environment.setdefault(THREADS, str(THREADS_PER_DEVICE * int(devices[-1])))


def expect_no_gpu(environment: MutableMapping[str, str] = os.environ) -> None:
    """Without a GPU, keeps the CUDA plugin (installed for `plan`) from a traceback about its missing driver.
    Called before JAX starts.

    With a GPU, the plugin's errors about drivers and libraries stay.
    """
    if not any(Path(file).exists() for file in GPU_FILES):
        environment.setdefault(NO_DRIVER, "1")


def platform_problem(error: BaseException, environment: Mapping[str, str] = os.environ) -> str:
    """The error line where JAX has no device of the kinds in JAX_PLATFORMS; "" for every other error."""
    platforms = environment.get("JAX_PLATFORMS", "")
    raised_in = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    reason = next(iter(str(error).splitlines()), "").partition(" (set JAX_PLATFORMS")[0]
    no_backend = reason.startswith("Unable to initialize backend") or "_get_backend_uncached" in raised_in
    if not platforms or not no_backend:
        return ""
    return (
        f"JAX_PLATFORMS={platforms}: JAX finds no such device here{f' ({reason})' if reason else ''}; unset "
        "it, or name another (cpu, cuda)"
    )
