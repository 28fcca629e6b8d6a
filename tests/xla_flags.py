"""XLA_FLAGS of the tests' processes."""

import os

FAST = os.environ.get("LLM_JAX_TEST_XLA", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
"""Least work for the CPU compiler: a third of the time of a test that compiles (docs/testing.md). `LLM_JAX_TEST_XLA=""` compiles as users do.

The last bits of a result may differ between settings, so all processes of the tests share one.
"""


def simulated(devices: int) -> str:
    """XLA_FLAGS for `devices` simulated devices."""
    return f"--xla_force_host_platform_device_count={devices} {FAST}"
