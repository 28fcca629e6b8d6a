"""What MFU is measured against."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.train import peak_flops


@pytest.mark.parametrize("devices", [1, 8])
def test_simulated_devices_of_a_mesh_share_the_whole_cpu(devices, monkeypatch):
    """Or a run on one of eight simulated devices, which has all cores, would show eight times its MFU."""
    monkeypatch.setattr(peak_flops, "measure_matmul", lambda: 8e9)
    mesh = make_mesh(PRESETS["data_parallel"], {"data": devices})
    assert peak_flops.device_peak(mesh, "float32") * mesh.size == 8e9


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("NVIDIA H200", "bfloat16", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 156e12),
        ("NVIDIA GeForce RTX 9999", "bfloat16", None),
    ],
)
def test_a_gpu_has_its_datasheets_peak_and_an_unknown_one_none(kind, dtype, expected):
    device = types.SimpleNamespace(platform="gpu", device_kind=kind)
    mesh = types.SimpleNamespace(devices=np.array([device], object), size=1)
    assert peak_flops.device_peak(mesh, dtype) == expected


def test_the_measured_peak_is_of_a_real_product():
    assert 1e9 < peak_flops.measure_matmul(size=256, rounds=2) < 1e15
    assert jax.default_backend() == "cpu"
