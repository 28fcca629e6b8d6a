"""The XLA flags that are set before JAX starts."""

from __future__ import annotations

import os
import subprocess
import sys

from llm_jax.core import xla_flags
from llm_jax.core.xla_flags import NO_DRIVER, enough_threads, expect_no_gpu


def test_simulated_devices_have_threads_for_the_collectives_that_they_wait_in():
    """With one for each device a step of fsdp_tensor aborted: the final norm's weight was gathered beside the
    loop over the layers."""
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    enough_threads(environment)
    assert environment["PJRT_NPROC"] == "64"
    environment["PJRT_NPROC"] = "9"
    enough_threads(environment)  # the user's stays
    assert environment["PJRT_NPROC"] == "9"
    alone: dict[str, str] = {}
    enough_threads(alone)
    assert not alone


def test_every_command_and_the_tests_give_them():
    assert os.environ["PJRT_NPROC"] == "64"  # tests/conftest.py
    told = "import os; from llm_jax.core.command import before_jax; before_jax(); print(os.environ['PJRT_NPROC'])"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    said = subprocess.run(
        [sys.executable, "-c", told], env={**environment, **flags}, capture_output=True, text=True, check=True
    )
    assert said.stdout == "16\n"


def test_the_cuda_plugin_may_complain_only_where_there_is_a_gpu(monkeypatch, tmp_path):
    environment: dict[str, str] = {}
    monkeypatch.setattr(xla_flags, "GPU_FILES", (str(tmp_path / "none"), str(tmp_path)))
    expect_no_gpu(environment)
    assert not environment
    monkeypatch.setattr(xla_flags, "GPU_FILES", (str(tmp_path / "none"),))
    expect_no_gpu(environment)
    assert environment == {NO_DRIVER: "1"}
