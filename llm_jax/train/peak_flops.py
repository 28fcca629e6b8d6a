"""The matrix-product peak of the devices: what MFU is measured against."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from llm_jax.layout.hardware import datasheet_peak


def device_peak(mesh: jax.sharding.Mesh, dtype: str, processes: int = 1) -> float | None:
    """FLOP/s of one device of the mesh in products of `dtype`; None where it isn't known (then there is no
    MFU).

    A GPU's is its datasheet's. A CPU's is measured, in float32: the simulated devices of all `processes` on
    this host share its cores.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return measure_matmul() / (
            processes * sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
        )
    return datasheet_peak(device.device_kind, dtype)


def measure_matmul(size: int = 2048, rounds: int = 5) -> float:
    """FLOP/s of the fastest of a few float32 products of two [size, size] matrices on the first
    local device.
    """
    device = jax.local_devices()[0]
    a = jax.device_put(jax.random.normal(jax.random.key(0), (size, size), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
