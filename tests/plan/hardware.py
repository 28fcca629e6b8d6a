"""Hardware with round numbers, and HLO programs written by hand."""

from __future__ import annotations

import jax

from llm_jax.layout import hlo
from llm_jax.layout.hardware import Hardware
from llm_jax.plan.efficiency import Efficiency

ROUND = Hardware(
    name="round", description="a device of round numbers", kinds=(),
    peak_flops={"bfloat16": 1e15, "float32": 5e14}, memory_bytes=10**11, memory_bandwidth=1e12,
    devices_per_node=4, node_bandwidth=1e11, network_bandwidth=1e10, node_latency=1e-6, network_latency=1e-5,
)  # fmt: skip
PERFECT = Efficiency("perfect", 1.0, 1.0, 1.0, memory=1.0, node=1.0, network=1.0, launch=0.0, slowdown=0.0)
"""Efficiencies of 1, so that seconds follow from shapes and the datasheet's rates."""


def mesh(**axes: int) -> jax.sharding.Mesh:
    """A mesh of simulated devices, last axis fastest; `ROUND` has four to a node."""
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (jax.sharding.AxisType.Explicit,) * len(axes))


def program(entry: str, others: str = "", parameters: str = "p: f32[1]") -> hlo.Module:
    """A module whose ENTRY has these lines. Lines are indented here, and types may lack layouts."""

    def indented(lines: str) -> str:
        return "\n".join("  " + line.strip() for line in lines.strip().splitlines())

    computations = "".join(
        _computation(text, indented) for text in others.strip().split("\n\n") if text.strip()
    )
    return hlo.parse(
        f"HloModule by_hand, is_scheduled=true\n\n{computations}ENTRY %main ({parameters}) -> f32[1] "
        f"{{\n{indented(entry)}\n}}\n"
    )


def _computation(text: str, indented) -> str:
    """The HLO text of a computation given as "name:" and its lines."""
    name, _, lines = text.strip().partition(":\n")
    return f"%{name} (p: f32[1]) -> f32[1] {{\n{indented(lines)}\n}}\n\n"
