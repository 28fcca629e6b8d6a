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


def set_by_user(environment: Mapping[str, str] = os.environ) -> set[str]:
    """The names of the flags in XLA_FLAGS, under JAX 0.11's names too.

    >>> set_by_user({"XLA_FLAGS": "--xla_a=true --xla_b"}) == {"xla_a", "xla_b"}
    True
    """
    names = re.findall(r"--(\w+)", environment.get("XLA_FLAGS", ""))
    return {*names, *(name.replace("enable_pipelined", "pipeline") for name in names)}


def keep_collectives_in_order(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes simulated devices run their collectives in one order, if XLA_FLAGS ask for such devices. Called
    before JAX starts.

    A program that JAX 0.11 takes from its compilation cache has lost the order of its collectives. One device
    then waits in a collective for another that waits in the next one (seen under `pipeline`), until XLA
    aborts the process after 40 s. Without its scheduler for concurrency XLA runs a program in the order in
    which it was compiled. As a compiler option it would be lost in the cache too.
    """
    ordered = "xla_cpu_enable_concurrency_optimized_scheduler"
    theirs = set_by_user(environment)
    if SIMULATED_DEVICES in theirs and ordered not in theirs:
        environment["XLA_FLAGS"] += f" --{ordered}=false"


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
