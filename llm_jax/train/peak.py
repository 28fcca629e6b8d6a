"""The matrix-product peak of the devices: what MFU is measured against."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

# FLOP/s of dense bf16 matrix products per device, from the makers' datasheets (without sparsity). Names are looked
# for in `device_kind` in this order. float32 products run as TF32 by default on NVIDIA's: half of these.
DATASHEET_BF16 = (
    ("GB200", 2.5e15),  # NVIDIA GB200 NVL72 datasheet: 2.5 PFLOP/s a GPU
    ("B200", 2.25e15),  # NVIDIA HGX B200 datasheet
    ("H200", 989.4e12),  # NVIDIA H200 datasheet: the same chip as H100 SXM
    ("H100 PCIe", 756e12),  # NVIDIA H100 datasheet
    ("H100 NVL", 835.5e12),
    ("GH200", 989.4e12),
    ("H100", 989.4e12),
    ("A100", 312e12),  # NVIDIA A100 datasheet
    ("A40", 149.7e12),  # NVIDIA A40 datasheet
    ("TPU v6 lite", 918e12),  # cloud.google.com/tpu/docs/v6e
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
)


def device_peak(mesh: jax.sharding.Mesh, dtype: str) -> float | None:
    """FLOP/s of one device of the mesh in products of `dtype`; None where it isn't known (then there is no MFU).

    A GPU's is its datasheet's. A CPU's is measured, in float32: the mesh's simulated devices share all its cores.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return measure_matmul() / mesh.size
    for name, peak in DATASHEET_BF16:
        if name in device.device_kind:
            return peak / 2 if dtype == "float32" else peak
    return None


def measure_matmul(size: int = 2048, rounds: int = 5) -> float:
    """FLOP/s of the fastest of a few float32 products of two [size, size] matrices on the first local device."""
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
