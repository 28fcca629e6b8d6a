"""The preflight checks that need JAX: the devices of all processes, a sum over them, and the speed of each.

Where a host computes wrong sums, or has a slow link or device, the run ends with a line that names it, before
anything is compiled.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.core.errors import UserError
from llm_jax.processes.group import Group
from llm_jax.processes.local_gpus import given_devices, local_devices, visible_devices
from llm_jax.processes.preflight import SECONDS

LINK_BYTES = 64 << 20
"""Bytes that each device sends to the next host in the measurement of links."""
MATRIX = 8192
"""Side of the matrices that are multiplied: 1.1 TFLOP, a few milliseconds on a GPU."""
SLOW = {"link_gbps": 1 / 3, "matmul_tflops": 1 / 2}
"""A speed below this fraction of the median of all is a fault. Healthy links differ more than healthy
devices."""
DESCRIPTIONS = {
    "link_gbps": "its link to the next host carries {:.3g} Gbit/s",
    "matmul_tflops": "its slowest device multiplies {:.3g} TFLOP/s",
}
REPEATS = 3


def check(group: Group, environ: Mapping[str, str] = os.environ) -> dict[str, float]:
    """Ends the run where a process's devices are missing, compute wrong sums or are far slower than those of
    its peers.

    Returns the speeds of this process and the medians of all: link_gbps in Gbit/s and matmul_tflops in
    TFLOP/s; empty on CPUs, which differ too much. Raises UserError, on all processes, for devices that are
    missing.
    """
    devices = jax.local_devices()
    mine = {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "expected": expected_devices(group, environ),
    }
    check_devices(group.exchange("preflight: JAX's devices", mine, SECONDS), group.hosts, environ)
    check_sum(group, contributions())
    if devices[0].platform == "cpu":
        return {}
    speeds = {
        "matmul_tflops": matmul_speed(),
        **({"link_gbps": link_speed(group)} if group.task.size > 1 else {}),
    }
    everyone = group.exchange("preflight: speeds", speeds, SECONDS)
    for name in speeds:
        slow = slowest_rank([their[name] for their in everyone], SLOW[name])
        if slow is not None:
            median = statistics.median(their[name] for their in everyone)
            description = DESCRIPTIONS[name].format(everyone[slow][name])
            end_naming(
                group,
                slow,
                f"{description}, and the median of all is {median:.3g}. Leave the host out (sbatch "
                "--exclude).",
            )
    return speeds | {
        f"median_{name}": statistics.median(their[name] for their in everyone) for name in speeds
    }


def end_naming(group: Group, rank: int, message: str) -> None:
    """Ends the run because of a process's host. Called by all processes."""
    if group.task.rank == 0:
        group.abort_naming(rank, message)
    group.exchange("preflight: the end")


def expected_devices(group: Group, environ: Mapping[str, str]) -> int | None:
    """How many devices this process should have; None where neither Slurm nor CUDA_VISIBLE_DEVICES tells."""
    mine, visible = local_devices(group.task, environ), visible_devices(environ)
    return len(mine) if mine is not None else len(visible) if visible else given_devices(environ)


def check_devices(
    everyone: Sequence[dict[str, Any]], hosts: Sequence[str], environ: Mapping[str, str]
) -> None:
    """Raises UserError, naming the host, where JAX doesn't find the expected devices, or hosts differ in kind
    or number."""
    for their, host in zip(everyone, hosts, strict=True):
        if their["platform"] == "cpu" and their["expected"] and environ.get("JAX_PLATFORMS") != "cpu":
            raise UserError(
                f"{host}: Slurm allocated {their['expected']} GPUs, and JAX finds only the CPU. Install "
                "JAX for them (pip install 'llm_jax[cuda]'), "
                "run nvidia-smi there, or set JAX_PLATFORMS=cpu to run without"
            )
        if their["platform"] != "cpu" and their["expected"] and their["count"] != their["expected"]:
            raise UserError(
                f"{host}: a process should have {their['expected']} GPUs, and JAX finds {their['count']}. "
                "Run nvidia-smi there."
            )
        first = everyone[0]
        for key in ("platform", "kind", "count"):
            if their[key] != first[key]:
                what = "the number of devices per process is" if key == "count" else "the devices are"
                raise UserError(
                    f"{host}: {what} not as on {hosts[0]} ({their[key]}, not {first[key]}); ask for one "
                    "kind of node (--constraint, --gpus-per-node)"
                )


# The sum:


def all_devices_mesh() -> Mesh:
    """The mesh [process, device] of all devices of all processes."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(
        np.array(devices).reshape(jax.process_count(), -1),
        ("process", "device"),
        axis_types=(AxisType.Auto,) * 2,
    )


def contributions() -> np.ndarray:
    """The result of a sum over all devices in which device d adds d + 1 at place d: int32 [processes,
    devices]. Correct if equal to `expected`."""
    mesh = all_devices_mesh()
    sharding = NamedSharding(mesh, P("process", "device"))
    rows, columns = mesh.devices.shape
    size = rows * columns

    def own(index: Any) -> np.ndarray:
        """Row d of a diagonal matrix, on device d: each device has a place of its own in the sum."""
        row, column = (part.start or 0 for part in index[:2])
        d = row * columns + column
        return (np.arange(size) == d).astype(np.int32)[None, None] * (d + 1)

    values = jax.make_array_from_callback((rows, columns, size), sharding, own)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("process", "device"), out_specs=P())
    def total(values: jax.Array) -> jax.Array:
        return jax.lax.psum(values[0, 0], ("process", "device"))

    return np.asarray(total(values)).reshape(rows, columns)


def expected(shape: tuple[int, ...]) -> np.ndarray:
    """The correct sum for a mesh of this shape: 1, 2, ... in the order of devices."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.int32).reshape(shape)


def check_sum(group: Group, found: np.ndarray) -> None:
    """Ends the run where the sum is wrong, naming the host whose device contributed wrongly, or the only host
    that received a wrong sum."""
    wrong = np.argwhere(found != expected(found.shape)).tolist()
    everyone = group.exchange("preflight: a sum over all devices", wrong, SECONDS)
    bad = [rank for rank, places in enumerate(everyone) if places]
    if not bad:
        return
    given = [process for places in everyone for process, _ in places]
    rank, device = everyone[bad[0]][0] if len(bad) > 1 or group.task.size == 1 else (bad[0], None)
    which = "" if device is None else f" (device {device})"
    end_naming(
        group,
        rank,
        f"a sum over all devices is wrong in {len(given)} places{which}, the first by what this host "
        "sends or receives. Test its memory and links "
        "(dcgmi diag, nccl-tests), or leave it out (sbatch --exclude).",
    )


# Speed:


def slowest_rank(speeds: Sequence[float], part: float) -> int | None:
    """The rank of the lowest speed, if that is below `part` of the median; None if it isn't, or with fewer
    than three speeds."""
    slowest = min(range(len(speeds)), key=lambda rank: speeds[rank])
    return slowest if len(speeds) > 2 and speeds[slowest] < part * statistics.median(speeds) else None


def ring(hosts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (sender, receiver) of ranks. With several hosts each sends to the process at its own position on
    the next host, so that all links are of one kind."""
    places: dict[int, list[int]] = {}
    seen: dict[str, int] = {}
    for rank, host in enumerate(hosts):
        place = seen.get(host, 0) if len(set(hosts)) > 1 else 0
        places.setdefault(place, []).append(rank)
        seen[host] = seen.get(host, 0) + 1
    return [(ranks[i], ranks[(i + 1) % len(ranks)]) for ranks in places.values() for i in range(len(ranks))]


def matmul_speed(side: int = MATRIX) -> float:
    """TFLOP/s of this process's slowest device in products of bfloat16 matrices; the best of REPEATS
    measurements."""
    multiply = jax.jit(jnp.matmul)
    slowest = float("inf")
    for device in jax.local_devices():
        matrix = jax.device_put(jnp.ones((side, side), jnp.bfloat16), device)
        multiply(matrix, matrix).block_until_ready()
        seconds = min(
            timed(lambda matrix=matrix: multiply(matrix, matrix).block_until_ready()) for _ in range(REPEATS)
        )
        slowest = min(slowest, 2 * side**3 / seconds / 1e12)
    return slowest


def link_speed(group: Group, size: int = LINK_BYTES) -> float:
    """Gbit/s that all devices of this process together send along `ring`; the best of REPEATS
    measurements."""
    mesh = all_devices_mesh()
    processes = mesh.shape["process"]
    sharding = NamedSharding(mesh, P("process", "device"))
    shape = (processes, mesh.shape["device"], size // 4)
    values = jax.make_array_from_callback(
        shape, sharding, lambda index: np.zeros((1, 1, size // 4), np.float32)
    )

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("process", "device"), out_specs=P("process", "device"))
    def pass_on(values: jax.Array) -> jax.Array:
        return jax.lax.ppermute(values, "process", ring(group.hosts))

    pass_on(values).block_until_ready()
    seconds = float("inf")
    for _ in range(REPEATS):
        group.exchange("preflight: link", None, SECONDS)  # all begin together
        seconds = min(seconds, timed(lambda: pass_on(values).block_until_ready()))
    return 8e-9 * size * jax.local_device_count() / seconds


def timed(action: Any) -> float:
    """The seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
