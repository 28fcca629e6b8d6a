"""Meshes over several nodes: the network is on the first axes, whatever order the devices come in."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest

from llm_jax.layout.mesh import describe_mesh, network_axes, sorted_by_node


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of a device that a mesh reads."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"


def mesh(devices, **axes):
    """The attributes of a mesh that are read; a real mesh needs real devices."""
    return SimpleNamespace(
        devices=np.array(sorted_by_node(devices), object).reshape(tuple(axes.values())),
        axis_names=tuple(axes),
        shape=axes,
    )


def cluster(nodes: int, each: int, *, process_of) -> list[Device]:
    """GPUs in the order of `jax.devices()`, by process. A node's devices have one `slice_index`."""
    devices = [(process_of(node, i), node) for node in range(nodes) for i in range(each)]
    return [
        Device(id=k, process_index=process, slice_index=node)
        for k, (process, node) in enumerate(sorted(devices))
    ]


BY_NODE = {
    "a process to each GPU, node by node": cluster(4, 8, process_of=lambda node, i: 8 * node + i),
    "a process to each GPU, dealt out over the nodes in turn": cluster(
        4, 8, process_of=lambda node, i: 4 * i + node
    ),
    "a process to each node": cluster(4, 8, process_of=lambda node, i: node),
}


@pytest.mark.parametrize("order", BY_NODE)
def test_the_first_axis_is_the_network_whatever_the_order_of_devices(order):
    devices = BY_NODE[order][:]
    random.Random(0).shuffle(devices)
    for m in (mesh(devices, data=4, tensor=8), mesh(devices, data=8, tensor=4)):
        node = np.array([[d.slice_index for d in row] for row in m.devices])
        assert (node == node[:, :1]).all()  # what goes along tensor stays in a node
        assert network_axes(m) == ("data",)
    assert network_axes(mesh(devices, data=32)) == ("data",)
    assert describe_mesh(mesh(devices, node=4, data=8)) == "node=4 (across nodes) x data=8"


def test_an_inner_axis_larger_than_a_node_is_seen_to_cross():
    devices = BY_NODE["a process to each node"]
    assert network_axes(mesh(devices, data=2, tensor=16)) == ("data", "tensor")
    assert (
        describe_mesh(mesh(devices, data=2, tensor=16)) == "data=2 (across nodes) x tensor=16 (across nodes)"
    )


def test_axes_of_size_one_cross_nothing():
    assert network_axes(mesh(BY_NODE["a process to each node"], data=4, stage=1, tensor=8)) == ("data",)


def test_eight_processes_in_one_node_cross_no_network():
    assert network_axes(mesh(cluster(1, 8, process_of=lambda node, i: i), data=8)) == ()


def test_processes_of_a_cpu_are_nodes():
    devices = [Device(id=i, process_index=i // 4, slice_index=0, platform="cpu") for i in range(8)]
    assert network_axes(mesh(devices, data=2, tensor=4)) == ("data",)


@pytest.mark.gpu_compile
def test_absent_gpus_have_their_nodes():
    from llm_jax.core.errors import UserError
    from llm_jax.layout.gpu_compile import topology_devices
    from llm_jax.layout.mesh import make_mesh
    from llm_jax.layout.presets import PRESETS

    try:
        devices = topology_devices("h100", 16)
    except UserError as error:
        pytest.skip(str(error))
    assert (
        describe_mesh(make_mesh(PRESETS["hybrid_fsdp"], {}, devices[::-1]))
        == "node=2 (across nodes) x data=8"
    )
