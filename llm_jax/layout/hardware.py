"""The GPUs that are known: `hardware.toml` as dataclasses, with the source of each figure there."""

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
"""The part of a device's memory that a program can have: XLA_PYTHON_CLIENT_MEM_FRACTION must be set so (JAX takes 0.75 by
itself). The rest is for CUDA's context and NCCL's buffers; NVIDIA's MaxText recipe for Llama 3 70B goes to 0.94."""


@dataclass(frozen=True)
class Target:
    """What XLA's GPU compiler wants to know of a device, beside its memory."""

    description: str
    """What the driver calls it."""
    capability: str
    """CUDA compute capability, "9.0"."""
    cores: int
    """Streaming multiprocessors."""
    clock_ghz: float
    """Boost clock."""
    l2_bytes: int
    """Second-level cache."""
    shared_bytes: int
    """Shared memory of a core; a block can have 1 KiB less."""
    threads_per_core: int
    """Threads that a core holds at a time."""
    fpus_per_core: int
    """float32 units of a core."""


@dataclass(frozen=True)
class Hardware:
    """A kind of device and the systems that it comes in. Bandwidths are bytes/s that one device sends, one direction."""

    name: str
    """What users call it: "h100"."""
    description: str
    """What its maker calls it."""
    kinds: tuple[str, ...]
    """Parts of JAX's `device_kind`."""
    peak_flops: dict[str, float]
    """FLOP/s of dense matrix products by dtype: "bfloat16", and "float32" as JAX's default precision computes it (TF32 on NVIDIA's)."""
    memory_bytes: int
    """Device memory that the driver reports."""
    memory_bandwidth: float
    """Bytes/s to device memory."""
    devices_per_node: int
    """Devices that the fast links join."""
    node_bandwidth: float
    """To the other devices of a node."""
    network_bandwidth: float
    """Across nodes."""
    node_latency: float
    """Seconds of a hop within the node."""
    network_latency: float
    """Seconds of a hop across nodes."""
    target: Target | None = None
    """None where XLA can't compile for it without one being here."""


def hardware(name: str) -> Hardware:
    """The device of that name; UserError with the nearest one if there is none."""
    check_choice("hardware", name, hardware_names())
    row = dict(_table()[name])
    target = row.pop("target", None)
    return Hardware(name=name, kinds=tuple(row.pop("kinds")), target=Target(**target) if target else None, **row)


def hardware_names() -> list[str]:
    """Every device that can be planned with, in the order of the table."""
    return [name for name, row in _table().items() if isinstance(row, dict)]


def datasheet_peak(device_kind: str, dtype: str) -> float | None:
    """FLOP/s of a device in products of `dtype`, by what JAX calls it; None where it isn't known."""
    rows = [*_table()["peak_only"], *(_table()[name] for name in hardware_names())]
    words = lambda kind: re.search(rf"(?<!\w){re.escape(kind)}(?!\w)", device_kind)  # noqa: E731  # an RTX A4000 is no A40
    fitting = [(len(kind), row["peak_flops"][dtype]) for row in rows for kind in row["kinds"] if words(kind)]
    return max(fitting)[1] if fitting else None


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text())
