"""XLA_FLAGS of the tests' processes."""

import os

FAST = os.environ.get(
    "LLM_JAX_TEST_XLA",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
"""Less work for the CPU compiler: at level 0 with the older emitters a test that compiles takes half of the
time that it takes at level 1 (docs/testing.md); a program in one piece takes a sixth less than in the pieces
that other cores would compile.

`LLM_JAX_TEST_XLA=""` compiles as users do. Results of different settings may differ in their last bits, so
all processes of the tests share one.
"""


def simulated(devices: int) -> str:
    """XLA_FLAGS for `devices` simulated devices."""
    return f"--xla_force_host_platform_device_count={devices} {FAST}"
