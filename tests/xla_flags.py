"""XLA_FLAGS of the tests' processes."""

FAST = "--xla_backend_optimization_level=1"
"""LLVM's second half of the work is a third of most tests' time. Programs are the same but for last bits, so processes that are compared share it."""


def simulated(devices: int) -> str:
    """XLA_FLAGS for so many devices."""
    return f"--xla_force_host_platform_device_count={devices} {FAST}"
