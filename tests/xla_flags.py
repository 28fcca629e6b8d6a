"""XLA_FLAGS of the tests' processes."""

FAST = "--xla_backend_optimization_level=1"
"""Less of LLVM's work, a third of the time of a test that compiles (docs/log.md). Last bits may be others, so all processes share it."""


def simulated(devices: int) -> str:
    """XLA_FLAGS for so many devices."""
    return f"--xla_force_host_platform_device_count={devices} {FAST}"
