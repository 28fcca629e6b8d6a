"""The tensors of `model.offload` are copied to the host's memory and back while kernels run."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from llm_jax.layout.gpu_compile import CompiledStep
from llm_jax.run.compile import compile_absent
from tests.gpu_compile.test_layouts import BATCH, MODEL, T, experiment

pytestmark = pytest.mark.gpu_compile

DEVICES = 8
KEPT = "query,key,value,attention_out,mlp_gate"
OFFLOADED = "attention,mlp_up"
HOST = "S(5)"  # XLA's memory space of the host


@functools.cache
def compiled(offload: bool) -> CompiledStep:
    model = (
        dataclasses.replace(MODEL, remat=KEPT, offload=OFFLOADED)
        if offload
        else dataclasses.replace(MODEL, remat=f"{KEPT},{OFFLOADED}")
    )
    return compile_absent(dataclasses.replace(experiment("fsdp"), model=model), "h100", DEVICES)


def test_device_memory_falls_by_the_bytes_on_the_host():
    m, tokens = MODEL, BATCH // DEVICES * T
    assert m.head_dim
    assert m.mlp
    # with attention goes its softmax's statistic
    kept = m.layers * tokens * 2 * (m.heads * m.head_dim + m.mlp) + 4 * m.layers * tokens * m.heads
    stats = compiled(True).compiled.memory_analysis()
    assert kept <= stats.host_temp_size_in_bytes < 1.01 * kept
    layer = kept / m.layers
    saved = compiled(False).memory_bytes()["temporaries"] - compiled(True).memory_bytes()["temporaries"]
    assert kept - 3 * layer < saved < kept + layer  # up to three layers' are on their way


def test_copies_run_beside_kernels():
    started = 0
    for computation in compiled(True).module.allocating():
        for instruction in computation:
            touches = HOST in instruction.type_text or any(
                HOST in operand.type_text for operand in computation.operands_of(instruction)
            )
            assert not touches or instruction.opcode not in (
                "copy",
                "fusion",
                "dynamic-slice",
                "dynamic-update-slice",
            ), instruction.name
            started += touches and instruction.opcode.endswith("-start")
    assert started >= 4


def test_without_offload_no_array_is_on_the_host():
    assert HOST not in compiled(False).text
