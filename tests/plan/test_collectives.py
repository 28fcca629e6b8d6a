"""Groups, bytes and seconds of collectives."""

# lines as XLA prints them

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.plan.collectives import Collective, axes_of, collective_of, read_collective
from llm_jax.plan.efficiency import COLLECTIVE_LAUNCH
from tests.plan.hardware import PERFECT, ROUND, mesh, program


def read(line: str, on, others: str = "", parameters: str = "%x = f32[8,100] parameter(0)") -> Collective:
    """The collective in the entry's second line, with four devices to a node."""
    module = program(f"{parameters}\n{line}", others)
    instruction = next(i for i in module.entry if i.opcode != "parameter")
    found = collective_of(module, module.entry, instruction)
    assert found
    return read_collective(found, module, on, ROUND.devices_per_node)


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        ([[0, 1, 2, 3], [4, 5, 6, 7]], "tensor"),
        ([[0, 4], [1, 5], [2, 6], [3, 7]], "data"),
        ([list(range(8))], "data+tensor"),
        ([[0, 2], [1, 3], [4, 6], [5, 7]], "tensor"),
        ([[0], [1]], ""),
    ],
)
def test_axes_are_those_along_which_a_group_differs(groups, axis):
    assert axes_of(np.array(groups), mesh(data=2, tensor=4)) == axis


def test_a_mesh_in_another_order_of_devices_has_other_nodes():
    turned = mesh(data=2, tensor=4)
    turned = type(turned)(
        turned.devices.reshape(4, 2).T, ("data", "tensor"), axis_types=turned.axis_types
    )  # tensor: every other device
    line = (
        "ROOT %r = f32[8,100] all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, "
        "to_apply=%add"
    )
    assert not read(line, mesh(data=2, tensor=4)).crosses_nodes
    assert read(line, turned).crosses_nodes
    assert read(line, turned).axis == "tensor"


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        ("ROOT %r = f32[32,100] all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}", "all-gather", 3200 * 3),
        ("ROOT %r = f32[2,100] reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add", "reduce-scatter", 3200 * 3 / 4),
        ("ROOT %r = f32[8,100] all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add", "all-reduce", 2 * 3200 * 3 / 4),
        ("ROOT %r = f32[8,100] all-to-all(%x), replica_groups=[2,4]<=[8], dimensions={0}", "all-to-all", 3200 * 3 / 4),
        ("ROOT %r = f32[8,100] collective-permute(%x), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", "collective-permute", 3200),
        ("ROOT %r = (f32[8,100], f32[32,100]) all-gather-start(%x), replica_groups=[2,4]<=[8], "
        "dimensions={0}", "all-gather", 3200 * 3),
        ("ROOT %r = ((f32[8,100], f32[8,100]), (f32[2,100], f32[2,100])) reduce-scatter-start(%x, %x), "
        "replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add", "reduce-scatter", 2 * 3200 * 3 / 4),
        ("ROOT %r = ((f32[8,100]), f32[8,100], u32[]) async-start(%x), calls=%wrapped", "all-to-all", 3200 * 3 / 4),
    ],
)  # fmt: skip
def test_bytes_are_what_one_device_sends(line, kind, sent):
    wrapped = (
        "wrapped:\n%y = f32[8,100] parameter(0)\nROOT %a = f32[8,100] all-to-all(%y), "
        "replica_groups=[2,4]<=[8], dimensions={0}"
    )
    found = read(line, mesh(data=2, tensor=4), wrapped)
    assert (found.kind, found.axis, found.crosses_nodes, found.bytes) == (kind, "tensor", False, sent)


def test_a_ring_pays_every_hop_and_what_one_device_sends():
    ring = Collective("all-gather", "data", devices=4, nodes=1, bytes=3e9, array_bytes=4e9)
    assert ring.seconds(ROUND, PERFECT) == pytest.approx(COLLECTIVE_LAUNCH + 3 * 1e-6 + 3e9 / 1e11)


def test_a_ring_over_nodes_uses_the_network_cards_of_all_its_devices_in_a_node():
    one_each = Collective("reduce-scatter", "data", devices=2, nodes=2, bytes=1e9, array_bytes=2e9)
    assert one_each.seconds(ROUND, PERFECT) == pytest.approx(COLLECTIVE_LAUNCH + 1e-5 + 1e9 / 1e10)
    four_each = Collective("reduce-scatter", "data", devices=8, nodes=2, bytes=7e9, array_bytes=8e9)
    assert four_each.seconds(ROUND, PERFECT) == pytest.approx(COLLECTIVE_LAUNCH + 6e-6 + 1e-5 + 7e9 / 4e10)


def test_a_small_all_reduce_over_many_nodes_takes_the_tree():
    tree = Collective("all-reduce", "data", devices=64, nodes=16, bytes=0, array_bytes=0)
    assert tree.seconds(ROUND, PERFECT) == pytest.approx(COLLECTIVE_LAUNCH + 2 * (3e-6 + 4 * 1e-5))


def test_all_to_all_across_nodes_sends_on_both_networks_at_once():
    exchange = Collective("all-to-all", "data", devices=8, nodes=2, bytes=7e9, array_bytes=8e9)
    assert exchange.seconds(ROUND, PERFECT) == pytest.approx(
        COLLECTIVE_LAUNCH + 1e-5 + 4e9 / 1e10
    )  # three parts within, four across


def test_a_permute_is_as_slow_as_its_slowest_link():
    near = read(
        "ROOT %r = f32[8,100] collective-permute(%x), source_target_pairs={{0,1},{1,0}}", mesh(data=8)
    )
    far = read("ROOT %r = f32[8,100] collective-permute(%x), source_target_pairs={{0,1},{3,4}}", mesh(data=8))
    assert (near.crosses_nodes, far.crosses_nodes) == (False, True)
    assert near.seconds(ROUND, PERFECT) == pytest.approx(COLLECTIVE_LAUNCH + 1e-6 + 3200 / 1e11)
    assert far.seconds(ROUND, PERFECT) == pytest.approx(COLLECTIVE_LAUNCH + 1e-5 + 3200 / 1e10)
