"""XLA_FLAGS of the tests' processes."""

import os

FAST = os.environ.get(
    "LLM_JAX_TEST_XLA", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
"""Less work for the CPU compiler: 60 % of the time of a test that compiles, at level 1 with the older
emitters (docs/testing.md).

`LLM_JAX_TEST_XLA=""` compiles as users do. Level 0 takes 40 %, but runs of one program then differ in their
last bits. Results of different settings may differ there too, so all processes of the tests share one.
"""


def simulated(devices: int) -> str:
    """XLA_FLAGS for `devices` simulated devices."""
    return f"--xla_force_host_platform_device_count={devices} {FAST}"
