"""The collectives of a compiled step: their groups, mesh axes, bytes and predicted seconds.

Bytes are what one device sends. Of an array of S bytes (gathered, or before it is scattered) among n devices:

| kind | sent | as |
| --- | --- | --- |
| all-gather, reduce-scatter | S (n-1) / n | a ring: n-1 hops |
| all-reduce | 2 S (n-1) / n | a ring twice, or a tree where its latency is less |
| all-to-all, ragged-all-to-all | S (n-1) / n | to each device its part; ragged ones count as balanced |
| collective-permute | S | to one device |

Seconds = launch + hops x latency + bytes / bandwidth. A ring over several nodes with m devices of the group
in each passes m network cards at a time, so its bandwidth is the lesser of a device's link and m cards
(NCCL's rings, and its model of them: src/graph/tuning.cc).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import numpy as np

from llm_jax.layout.hardware import Hardware
from llm_jax.layout.hlo import Computation, Instruction, Module, item_bytes
from llm_jax.plan.cost import dtype_before_widening, fused_parts
from llm_jax.plan.efficiency import COLLECTIVE_LAUNCH, Efficiency

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclass(frozen=True)
class Collective:
    """One run of one collective."""

    kind: str
    """One of KINDS."""
    axis: str
    """Mesh axes along which the members of a group differ, joined by "+"."""
    devices: int
    """Number of devices in a group."""
    nodes: int
    """Number of nodes that the most scattered group spans."""
    bytes: float
    """Bytes that one device sends, by the table in this module's docstring."""
    array_bytes: float
    """Bytes of the whole array: S in that table."""

    @property
    def crosses_nodes(self) -> bool:
        """True if a group spans nodes."""
        return self.nodes > 1

    def seconds(self, hardware: Hardware, efficiency: Efficiency) -> float:
        """Predicted duration, with the links to itself."""
        n, nodes, per_node = self.devices, self.nodes, math.ceil(self.devices / self.nodes)
        near, far = hardware.node_bandwidth * efficiency.node, hardware.network_bandwidth * efficiency.network
        hop, far_hop = hardware.node_latency, hardware.network_latency
        if self.kind == "collective-permute":
            return COLLECTIVE_LAUNCH + (
                far_hop + self.bytes / far if self.crosses_nodes else hop + self.bytes / near
            )
        if self.kind in ("all-to-all", "ragged-all-to-all"):
            part = self.array_bytes / n
            within, across = part * (per_node - 1) / near, part * (n - per_node) / far
            return COLLECTIVE_LAUNCH + (far_hop if self.crosses_nodes else hop) + max(within, across)
        ring = (n - nodes) * hop + (nodes - 1) * far_hop
        if self.kind == "all-reduce":
            ring = 2 * min(ring, (per_node - 1) * hop + math.ceil(math.log2(nodes)) * far_hop)
        return (
            COLLECTIVE_LAUNCH
            + ring
            + self.bytes / (min(near, per_node * far) if self.crosses_nodes else near)
        )


def collective_of(
    module: Module, computation: Computation, instruction: Instruction
) -> tuple[Computation, Instruction, str] | None:
    """(computation, instruction, kind) of the collective that an instruction is, starts or contains; None if
    there is none."""
    if instruction.opcode.endswith(("-done", "-update")):
        return None
    for inside, part in fused_parts(module, computation, instruction):
        kind = part.opcode.removesuffix("-start")
        if kind in KINDS:
            return inside, part, kind
    return None


def read_collective(
    found: tuple[Computation, Instruction, str],
    module: Module,
    mesh: jax.sharding.Mesh,
    devices_per_node: int,
) -> Collective:
    """The groups, mesh axes and bytes of a collective found by `collective_of`.

    The program numbers devices in the order of `mesh.devices`. Node i has the devices with ids from i *
    devices_per_node on.
    """
    computation, instruction, kind = found
    size = mesh.devices.size
    nodes = np.array([device.id for device in mesh.devices.flat]) // devices_per_node
    operands = computation.operands_of(instruction)
    if kind == "ragged-all-to-all":
        operands = operands[:1]  # the others are the output and the tables of offsets and sizes
    sent = float(sum(_sent_bytes(module, mesh, computation, operand) for operand in operands))
    if kind == "collective-permute":
        pairs = np.array(
            [pair for pair in instruction.source_target_pairs if pair[0] != pair[1]], int
        ).reshape(-1, 2)
        spread = int(np.any(nodes[pairs[:, 0]] != nodes[pairs[:, 1]])) + 1
        return Collective(kind, axes_of(pairs, mesh), 2, spread, sent if len(pairs) else 0.0, sent)
    groups = instruction.replica_groups(size)
    n = groups.shape[1]
    spread = max(len(set(nodes[group])) for group in groups)
    whole = sent * n if kind == "all-gather" else sent
    times = 2 if kind == "all-reduce" else 1
    return Collective(kind, axes_of(groups, mesh), n, spread, whole * times * (n - 1) / n, whole)


def _sent_bytes(
    module: Module, mesh: jax.sharding.Mesh, computation: Computation, operand: Instruction
) -> float:
    """Bytes of an operand. On simulated devices, in the dtype that it had before XLA's CPU compiler widened
    it."""
    if mesh.devices.flat[0].platform != "cpu":
        return operand.bytes
    before = item_bytes(dtype_before_widening(module, computation, operand))
    return sum(shape.elements * min(before, item_bytes(shape.dtype)) for shape in operand.shapes)


def axes_of(groups: np.ndarray, mesh: jax.sharding.Mesh) -> str:
    """Mesh axes along which the members of a group differ, in the mesh's order: "data+tensor". "" if every
    group is one device.

    `groups`: int [groups, size], positions in the order of `mesh.devices`.
    """
    coordinates = np.unravel_index(groups, mesh.devices.shape)
    differ = [np.any(along != along[:, :1]) for along in coordinates]
    return "+".join(name for name, yes in zip(mesh.axis_names, differ, strict=True) if yes)
