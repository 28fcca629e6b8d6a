"""Compiling for GPUs that are absent, with XLA's GPU compiler: devices to compile for, and reading a compiled
step.

It needs the CUDA plugin (extra `cuda`) but no driver and no GPU, and leaves the CPU backend of the process
alone. A compiled step has no times, no choices of the autotuner, and no workspaces of cuDNN: those are known
on a device only.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from llm_jax.core.errors import UserError
from llm_jax.core.xla_flags import NO_DRIVER
from llm_jax.layout import hlo
from llm_jax.layout.compilation_cache import no_compilation_cache
from llm_jax.layout.hardware import Hardware, hardware


def target_config(hardware: Hardware) -> str:
    """XLA's `GpuTargetConfigProto` for a device, as text. Raises UserError where XLA can't compile for it."""
    target = hardware.target
    if target is None:
        raise UserError(
            f"hardware={hardware.name}: XLA can compile for it only where one is present; compiler=cpu "
            "plans it on simulated devices"
        )
    major, minor = target.capability.split(".")
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024  threads_per_warp: 32
          threads_per_core_limit: {target.threads_per_core}
          shared_memory_per_block: 49152  shared_memory_per_core: {target.shared_bytes}
          shared_memory_per_block_optin: {target.shared_bytes - 1024}
          core_count: {target.cores}  fpus_per_core: {target.fpus_per_core}
          clock_rate_ghz: {target.clock_ghz}
          block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
          thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
          registers_per_core_limit: 65536  registers_per_block_limit: 65536
          memory_bandwidth: {int(hardware.memory_bandwidth)}  l2_cache_size: {target.l2_bytes}
          device_memory_size: {hardware.memory_bytes}
          cuda_compute_capability {{ major: {major}  minor: {minor} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        device_description_str: "{target.description}"
    """


def require_cuda() -> None:
    """Raises UserError where XLA's GPU compiler is not installed; otherwise sets the environment so that it
    loads without a driver."""
    if importlib.util.find_spec("jax_plugins") is None or not any(
        importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (13, 12)
    ):
        raise UserError(
            "hardware: compiling for a GPU needs XLA's GPU compiler; install the extra, pip install "
            "'llm_jax[cuda]'"
        )
    os.environ.setdefault(NO_DRIVER, "1")


def topology_devices(name: str, devices: int) -> list[Any]:
    """`devices` absent GPUs of the hardware called `name`, sorted by node (`process_index`), for a
    `jax.sharding.Mesh`.

    Raises UserError for unknown hardware, for nodes that are not full, and where the plugin is missing.
    """
    gpu = hardware(name)
    config = target_config(gpu)
    per_node = min(devices, gpu.devices_per_node)
    if devices < 1 or devices % per_node:
        raise UserError(
            f"devices={devices}: must be a multiple of the {gpu.devices_per_node} of a node, or fewer "
            "than those"
        )
    require_cuda()
    return topologies.get_topology_desc(
        name, platform="cuda", target_config=config, topology=f"1x{devices // per_node}x{per_node}"
    ).devices


def topology_mesh(name: str, axes: dict[str, int]) -> jax.sharding.Mesh:
    """An explicit mesh of absent GPUs; the last axes are within a node."""
    devices = topology_devices(name, int(np.prod(list(axes.values()))))
    explicit = (jax.sharding.AxisType.Explicit,) * len(axes)
    return jax.sharding.Mesh(
        np.array(devices).reshape(tuple(axes.values())), tuple(axes), axis_types=explicit
    )


def compile_for(mesh: jax.sharding.Mesh, step: Any, abstract_args: Sequence[Any]) -> CompiledStep:
    """Compiles `step`, a jitted function with its own compiler options, for the devices of `mesh`
    (`topology_mesh`).

    abstract_args: trees of `jax.ShapeDtypeStruct` with shardings on `mesh`. The machine code will not run, so
    it is not optimized: that would take time, and neither text nor memory depends on it.
    """
    with jax.set_mesh(mesh), no_compilation_cache():
        return CompiledStep(
            step.lower(*abstract_args).compile(compiler_options={"xla_backend_optimization_level": 0})
        )


@dataclass(frozen=True)
class WhileLoop:
    """A `while` loop of a compiled step."""

    trips: int | None
    """How often it runs; None where XLA doesn't know."""
    carried: dict[hlo.Shape, int]
    """(dtype, dims) of the arrays that it carries → how many there are. Stacks over all layers are among
    them."""

    def largest(self, count: int = 10) -> list[tuple[int, int, str, tuple[int, ...]]]:
        """(bytes in all, number of arrays, dtype, dims) of the kinds of arrays that take most bytes, largest
        first."""
        return sorted(((n * shape.bytes, n, *shape) for shape, n in self.carried.items()), reverse=True)[
            :count
        ]


class CompiledStep:
    """A compiled step: the memory it allocates and the kernels it calls, read from its memory analysis and
    its scheduled HLO."""

    def __init__(self, compiled: Any):
        self.compiled = compiled
        self.text: str = compiled.as_text()

    def memory_bytes(self) -> dict[str, int]:
        """Bytes per device: arguments, outputs, aliased (outputs in the memory of arguments), temporaries,
        and the total."""
        stats = self.compiled.memory_analysis()
        parts = {
            "arguments": stats.argument_size_in_bytes,
            "outputs": stats.output_size_in_bytes,
            "aliased": stats.alias_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes,
        }
        return parts | {
            "total": parts["arguments"] + parts["outputs"] - parts["aliased"] + parts["temporaries"]
        }

    @functools.cached_property
    def module(self) -> hlo.Module:
        """The scheduled HLO, parsed."""
        return hlo.parse(self.text)

    def loops(self) -> list[WhileLoop]:
        """The loops (scans over layers, chunks, microbatches) in the order of the text, with the arrays that
        they carry."""
        whiles = [
            i for computation in self.module.computations.values() for i in computation if i.opcode == "while"
        ]
        return [WhileLoop(i.trips, Counter(i.shapes)) for i in whiles]

    def custom_calls(self) -> list[str]:
        """The targets of all custom calls, in the order of the text; a call in a loop is listed once."""
        return [
            i.target for computation in self.module.computations.values() for i in computation if i.target
        ]

    def buffer_shapes(self) -> set[hlo.Shape]:
        """(dtype, dims) of every array that is allocated; a tuple counts as its arrays."""
        return {shape for computation in self.module.allocating() for i in computation for shape in i.shapes}

    def buffers_with(self, *sizes: int) -> set[hlo.Shape]:
        """(dtype, dims) of the allocated arrays that have all these dims: `buffers_with(T, T)` finds
        attention scores."""
        return {
            shape
            for shape in self.buffer_shapes()
            if all(shape.dims.count(n) >= sizes.count(n) for n in sizes)
        }
