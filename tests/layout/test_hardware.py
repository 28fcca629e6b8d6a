"""The hardware table is complete and plausible, and its readers find the right row."""

from __future__ import annotations

import re

import pytest

from llm_jax.core.errors import UserError
from llm_jax.layout import gpu_compile
from llm_jax.layout.hardware import TABLE, datasheet_peak, hardware, hardware_names


def test_every_device_that_plans_are_promised_for_is_in_the_table():
    assert {"a40", "a100_40", "a100_80", "h100", "h200", "b200", "mi300x"} <= set(hardware_names())


@pytest.mark.parametrize("name", hardware_names())
def test_figures_are_in_their_units(name):
    gpu = hardware(name)
    assert set(gpu.peak_flops) == {"bfloat16", "float32"}
    assert 1e14 < gpu.peak_flops["bfloat16"] < 1e16
    assert gpu.peak_flops["float32"] <= gpu.peak_flops["bfloat16"] / 2 * 1.001
    assert 30e9 < gpu.memory_bytes < 300e9
    assert 5e11 < gpu.memory_bandwidth < 1e13
    assert gpu.network_bandwidth < gpu.node_bandwidth < gpu.memory_bandwidth
    assert 1e-6 < gpu.node_latency < gpu.network_latency < 1e-4


def test_every_figure_has_its_source_beside_it():
    figures = re.compile(r"^(peak_flops|memory_\w+|devices_per_node|\w+_bandwidth) =")
    without = [
        line
        for line in TABLE.read_text().split("[[peak_only]]")[0].splitlines()
        if figures.match(line) and "#" not in line
    ]
    assert not without


def test_of_several_kinds_that_fit_the_longest_counts():
    assert datasheet_peak("NVIDIA GH200 480GB", "bfloat16") == 989.4e12
    assert datasheet_peak("NVIDIA GB200", "bfloat16") == 2.5e15  # not a B200
    assert datasheet_peak("NVIDIA A100-PCIE-40GB", "bfloat16") == 312e12
    assert datasheet_peak("NVIDIA A4000", "bfloat16") is None  # whole words: not an A40


def test_unknown_hardware_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"^hardware=h10: must be one of a40, .*did you mean 'h100'\?$"):
        hardware("h10")


def test_hardware_that_xla_cannot_compile_for_is_refused_and_the_other_way_named():
    with pytest.raises(UserError, match=r"^hardware=mi300x: .*compiler=cpu"):
        gpu_compile.topology_devices("mi300x", 8)


@pytest.mark.gpu_compile
@pytest.mark.parametrize("name", [name for name in hardware_names() if hardware(name).target])
def test_devices_are_grouped_into_full_nodes(name):
    try:
        gpu_compile.require_cuda()
    except UserError as error:
        pytest.skip(str(error))
    devices = gpu_compile.topology_devices(name, 16)
    assert [d.process_index for d in devices] == [0] * 8 + [1] * 8
    with pytest.raises(UserError, match=r"^devices=12: must be a multiple of the 8 of a node"):
        gpu_compile.topology_devices(name, 12)
