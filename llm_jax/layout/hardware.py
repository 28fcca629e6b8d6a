"""The known GPUs: `hardware.toml` as dataclasses. The file has the source of each figure."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.errors import check_choice

TABLE = Path(__file__).with_suffix(".toml")
USABLE_MEMORY = 0.92
"""The fraction of a device's memory that a program can have, with XLA_PYTHON_CLIENT_MEM_FRACTION set to it
(JAX's default is 0.75). The rest is for CUDA's context and NCCL's buffers; NVIDIA's MaxText recipe for Llama
3 70B uses 0.94."""


@dataclass(frozen=True)
class Target:
    """The properties of a device that XLA's GPU compiler needs, beside its memory."""

    description: str
    """The device's name in the driver."""
    capability: str
    """CUDA compute capability, "9.0"."""
    cores: int
    """The number of streaming multiprocessors."""
    clock_ghz: float
    """Boost clock, GHz."""
    l2_bytes: int
    """Size of the second-level cache."""
    shared_bytes: int
    """Shared memory of a multiprocessor, bytes; a block can have 1 KiB less."""
    threads_per_core: int
    """Resident threads of a multiprocessor, at most."""
    fpus_per_core: int
    """float32 units of a multiprocessor."""


@dataclass(frozen=True)
class Hardware:
    """A device and the systems that it is built into. Bandwidths are bytes/s that one device sends, in one
    direction."""

    name: str
    """The name for `hardware=`: "h100"."""
    description: str
    """The maker's name for it."""
    kinds: tuple[str, ...]
    """Words of JAX's `device_kind` that identify it."""
    peak_flops: dict[str, float]
    """FLOP/s of dense matrix products by dtype: "bfloat16", and "float32" in JAX's default precision (TF32 on
    NVIDIA GPUs)."""
    memory_bytes: int
    """Device memory as the driver reports it."""
    memory_bandwidth: float
    """Bytes/s between device and its memory."""
    devices_per_node: int
    """Devices that are joined by the fast links."""
    node_bandwidth: float
    """Bytes/s to the other devices of a node."""
    network_bandwidth: float
    """Bytes/s to devices of other nodes."""
    node_latency: float
    """Seconds for one hop within the node."""
    network_latency: float
    """Seconds for one hop across nodes."""
    target: Target | None = None
    """None where XLA can't compile for the device unless one is present."""


def hardware(name: str) -> Hardware:
    """The device of this name; an unknown name raises UserError with the nearest one."""
    check_choice("hardware", name, hardware_names())
    row = dict(_table()[name])
    target = row.pop("target", None)
    return Hardware(
        name=name, kinds=tuple(row.pop("kinds")), target=Target(**target) if target else None, **row
    )


def hardware_names() -> list[str]:
    """The names of all devices, in the order of the table."""
    return [name for name, row in _table().items() if isinstance(row, dict)]


def datasheet_peak(device_kind: str, dtype: str) -> float | None:
    """Datasheet FLOP/s in products of `dtype` of the device that JAX calls `device_kind`; None for an unknown
    one."""
    rows = [*_table()["peak_only"], *(_table()[name] for name in hardware_names())]
    words = lambda kind: re.search(rf"(?<!\w){re.escape(kind)}(?!\w)", device_kind)  # an RTX A4000 is no A40  # noqa: E731
    fitting = [(len(kind), row["peak_flops"][dtype]) for row in rows for kind in row["kinds"] if words(kind)]
    return max(fitting)[1] if fitting else None


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text())
