"""From a layout and the devices that are there to a mesh with explicit axis types."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from llm_jax.errors import UserError, nearest
from llm_jax.layout.layout import Layout


def mesh_sizes(layout: Layout, overrides: dict[str, int], devices: int) -> dict[str, int]:
    """The size of every mesh axis: the layout's own, overridden, with one -1 filled up to `devices`.

    Sizes that are all given may use fewer devices than there are. Anything else that doesn't fit raises UserError.
    """
    for axis, size in overrides.items():
        if axis not in layout.mesh:
            raise UserError(f"mesh.{axis}={size}: layout {layout.name} has no axis {axis!r}; {nearest(axis, layout.mesh)}")
    sizes = {**layout.mesh, **overrides}
    said = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    for axis, size in sizes.items():
        if size == 0 or size < -1:
            raise UserError(f"mesh.{axis}={size}: must be a number of devices, or -1 for all that are left")
    free = [axis for axis, size in sizes.items() if size == -1]
    given = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise UserError(f"{said}: only one axis can be -1 (the devices that the others leave)")
    if free:
        if devices % given:
            raise UserError(f"{said}: {devices} devices can't be divided by {given}; divisors of {devices}: {divisors(devices)}")
        sizes[free[0]] = devices // given
    elif given > devices:
        raise UserError(
            f"{said}: needs {given} devices and there are {devices}"
            + ("" if jax.default_backend() != "cpu" else f" (XLA_FLAGS=--xla_force_host_platform_device_count={given} simulates them)")
        )
    return sizes


def make_mesh(layout: Layout, overrides: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh for a layout on these devices (default: all), first axis slowest."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(layout, overrides, len(devices))
    used = math.prod(sizes.values())
    if used < len(devices) and jax.process_count() > 1:
        raise UserError(f"layout {layout.name}: uses {used} of {len(devices)} devices; with several processes all must be used")
    axis_types = (AxisType.Explicit,) * len(sizes)
    if used == len(jax.devices()) and devices == jax.devices():
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types)  # knows the network between devices
    return Mesh(np.array(devices[:used]).reshape(tuple(sizes.values())), tuple(sizes), axis_types=axis_types)


def divisors(n: int) -> str:
    """The divisors of n, as text for an error."""
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
