"""Pipelines, compiled for absent H100s: the collectives between stages, and the residuals of the backward
pass."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest

from llm_jax.experiment import Experiment, resolved
from llm_jax.layout import gpu_compile
from llm_jax.layout.gpu_compile import CompiledStep
from llm_jax.layout.hardware import hardware
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import PipelineConfig
from llm_jax.plan.analysis import analyse
from llm_jax.run.compile import compile_absent
from llm_jax.train.config import TrainConfig

pytestmark = pytest.mark.gpu_compile
MODEL = ModelConfig(
    layers=8,
    embed=512,
    heads=8,
    kv_heads=4,
    mlp=1024,
    vocab=4096,
    attention="cudnn",
    max_segments=4,
    compute_dtype="bfloat16",
    remat="full",
)
BATCH, LENGTH, STAGES = 64, 2048, 4


@functools.cache
def compiled(microbatches: int) -> tuple[Experiment, CompiledStep]:
    """The step of the preset on 4 stages x 2, for one size of batch."""
    layout = dataclasses.replace(PRESETS["pipeline"], pipeline=PipelineConfig(microbatches=microbatches))
    train = TrainConfig(batch_size=BATCH, sequence_length=LENGTH)
    experiment = resolved(
        Experiment(
            name="pipeline", model=MODEL, layout=layout, mesh={"stage": STAGES, "data": 2}, train=train
        )
    )
    return experiment, compile_absent(experiment, "h100", 8)


@pytest.mark.parametrize("microbatches", [8, 32])
def test_only_the_stream_travels_in_each_tick_and_gradients_travel_once(microbatches):
    experiment, step = compiled(microbatches)
    mesh = make_mesh(experiment.layout, experiment.mesh, gpu_compile.topology_devices("h100", 8))
    rows = {(row.kind, row.axis): row for row in analyse(step, mesh, hardware("h100")).collectives}
    ticks = microbatches + STAGES - 1
    permutes = rows["collective-permute", "stage"]
    # forward and backward: to the next stage, and the ring; the last microbatch's way home
    assert permutes.count == 2 * (2 * ticks + 1)
    assert permutes.bytes == permutes.count * 2 * BATCH // (2 * microbatches) * LENGTH * MODEL.embed
    weights = 9  # of a block, stacked
    assert rows["reduce-scatter", "data"].count <= weights + 1  # and the embedding; several may be combined
    assert rows["all-gather", "data"].count <= weights + 1
    # nothing else in a loop
    assert all(row.count < 20 for key, row in rows.items() if key != ("collective-permute", "stage"))
    waited_for = step.text.count(" collective-permute(")
    # JAX 0.11: the last microbatch's way home, beside which there is nothing to do; in loops all are
    # asynchronous
    assert waited_for <= 2


def test_memory_does_not_grow_with_microbatches_and_is_what_enters_each_tick():
    temporaries = {m: compiled(m)[1].memory_bytes()["temporaries"] for m in (8, 32)}
    assert temporaries[32] < temporaries[8]
    rows = BATCH // 2  # on a stage's devices, all ticks together
    inputs = {m: 2 * rows * LENGTH * MODEL.embed * (m + STAGES - 1) / m for m in temporaries}
    kept = [
        math.prod(shape) * 2
        for m in temporaries
        for _, shape in compiled(m)[1].buffer_shapes()
        if shape[:1] == (m + STAGES - 1,)
    ]
    # one row of inputs a tick, not one for each layer
    assert sorted(set(kept))[-2:] == sorted(inputs.values())
