"""The XLA flags that are set before JAX starts."""

from __future__ import annotations

import os
import subprocess
import sys

from llm_jax.core import xla_flags
from llm_jax.core.xla_flags import NO_DRIVER, expect_no_gpu, keep_collectives_in_order


def test_simulated_devices_meet_in_the_same_order():
    """Without it JAX 0.11 aborts tests/parity under `pipeline`, from the second time on: when the step comes
    from the compilation cache."""
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    keep_collectives_in_order(environment)
    assert environment["XLA_FLAGS"].split()[1:] == ["--xla_cpu_enable_concurrency_optimized_scheduler=false"]
    before = dict(environment)
    keep_collectives_in_order(environment)  # the user's, or an earlier call's, stays
    assert environment == before
    alone: dict[str, str] = {}
    keep_collectives_in_order(alone)
    assert not alone


def test_every_command_and_the_tests_keep_them_in_order():
    assert "xla_cpu_enable_concurrency_optimized_scheduler" in os.environ["XLA_FLAGS"]  # tests/conftest.py
    told = (
        "import os; from llm_jax.core.command import before_jax; before_jax(); print(os.environ['XLA_FLAGS'])"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    said = subprocess.run(
        [sys.executable, "-c", told], env={**os.environ, **flags}, capture_output=True, text=True, check=True
    )
    assert "xla_cpu_enable_concurrency_optimized_scheduler=false" in said.stdout


def test_the_cuda_plugin_may_complain_only_where_there_is_a_gpu(monkeypatch, tmp_path):
    environment: dict[str, str] = {}
    monkeypatch.setattr(xla_flags, "GPU_FILES", (str(tmp_path / "none"), str(tmp_path)))
    expect_no_gpu(environment)
    assert not environment
    monkeypatch.setattr(xla_flags, "GPU_FILES", (str(tmp_path / "none"),))
    expect_no_gpu(environment)
    assert environment == {NO_DRIVER: "1"}
