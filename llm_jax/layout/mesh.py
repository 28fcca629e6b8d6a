"""The mesh of a layout on the devices that are there, with explicit axis types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from llm_jax.core.errors import UserError, nearest
from llm_jax.layout.layout import Layout


def mesh_sizes(layout: Layout, overrides: dict[str, int], devices: int) -> dict[str, int]:
    """The size of every mesh axis: the layout's, then the overrides, with one -1 replaced by the devices that
    are left.

    Without a -1 the mesh may use fewer devices than there are. Any other misfit raises UserError.
    """
    for axis, size in overrides.items():
        if axis not in layout.mesh:
            raise UserError(
                f"mesh.{axis}={size}: layout {layout.name} has no axis {axis!r}; {nearest(axis, layout.mesh)}"
            )
    sizes = {**layout.mesh, **overrides}
    given_sizes = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    for axis, size in sizes.items():
        if size == 0 or size < -1:
            raise UserError(f"mesh.{axis}={size}: must be a number of devices, or -1 for all that are left")
    free = [axis for axis, size in sizes.items() if size == -1]
    given = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise UserError(f"{given_sizes}: only one axis can be -1 (the devices that the others leave)")
    if free:
        if devices % given:
            raise UserError(
                f"{given_sizes}: {devices} devices can't be divided by {given}; divisors of {devices}: "
                f"{divisors(devices)}"
            )
        sizes[free[0]] = devices // given
    elif given > devices:
        raise UserError(
            f"{given_sizes}: needs {given} devices and there are {devices}"
            + (
                ""
                if jax.default_backend() != "cpu"
                else f" (XLA_FLAGS=--xla_force_host_platform_device_count={given} simulates them)"
            )
        )
    return sizes


def make_mesh(layout: Layout, overrides: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a layout on these devices (None: all). The first axis is the slowest: devices are sorted by
    node first."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(layout, overrides, len(devices))
    used = math.prod(sizes.values())
    if used < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"layout {layout.name}: uses {used} of {len(devices)} devices; with several processes all "
            "must be used"
        )
    axis_types = (AxisType.Explicit,) * len(sizes)
    if devices[0].platform == "tpu" and used == len(devices):
        # arranges the axes on the torus
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types, devices=devices)
    return Mesh(
        np.array(sorted_by_node(devices)[:used]).reshape(tuple(sizes.values())),
        tuple(sizes),
        axis_types=axis_types,
    )


def nodes(devices: Sequence[Any]) -> list[int]:
    """The number of each device's node; devices of one node exchange data without the network.

    A GPU that is present has a `slice_index`: its host's number, or that of an NVLink domain of several
    hosts, whatever the processes are. For absent GPUs (`gpu_compile`) it is always 0: there, and on CPUs,
    each process is a node.
    """
    slices = [getattr(device, "slice_index", 0) for device in devices]
    if len(set(slices)) > 1 or (devices[0].platform == "gpu" and not are_absent(devices)):
        return slices
    return [device.process_index for device in devices]


def are_absent(devices: Sequence[Any]) -> bool:
    """True for devices that can be compiled for but not run on."""
    return isinstance(devices[0], jax.Device) and devices[0].client.runtime_type == "compile_only_runtime"


def sorted_by_node(devices: Sequence[Any]) -> list[Any]:
    """The devices sorted by node. `jax.devices()` is sorted by process, and Slurm may distribute processes
    over nodes in turn."""
    order = sorted(
        zip(nodes(devices), devices, strict=True),
        key=lambda pair: (pair[0], pair[1].process_index, pair[1].id),
    )
    return [device for _, device in order]


def network_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which devices are on different nodes, so that collectives over them use the
    network."""
    node = np.array(nodes(list(mesh.devices.flat))).reshape(mesh.devices.shape)
    return tuple(axis for i, axis in enumerate(mesh.axis_names) if (node != np.take(node, [0], i)).any())


def describe_mesh(mesh: Mesh) -> str:
    """The mesh for a run's header: "data=8 (across nodes) x tensor=8"."""
    across = network_axes(mesh)
    return " x ".join(
        f"{axis}={size}" + (" (across nodes)" if axis in across else "") for axis, size in mesh.shape.items()
    )


def divisors(n: int) -> str:
    """The divisors of n, for an error: "1, 2, 4"."""
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
