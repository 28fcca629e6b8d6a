"""Mesh axes of size 1: every preset with all axes at 1 trains like one device, and with each axis at 1 in
turn its step can be traced."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.objective.next_token import NextToken
from llm_jax.train.optimizer import OptimizerConfig, make_schedule
from llm_jax.train.state import TrainModel
from llm_jax.train.step import make_step
from tests.training import BATCH, LENGTH, SMALL, train

MODEL = dataclasses.replace(SMALL, kv_heads=2)


@pytest.mark.parametrize("name", ["hybrid_fsdp", "context_ring"])
def test_a_preset_with_all_axes_at_one_is_one_device(name):
    layout = PRESETS[name]
    (history, _, _), (reference, _, _) = (
        train(PRESETS[n], dict.fromkeys(PRESETS[n].mesh, 1), steps=2, model=MODEL) for n in (name, "single")
    )
    for ours, theirs in zip(history, reference, strict=True):
        # kernels may be fused in another way
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-5)
    assert len(layout.mesh) > 1


@pytest.mark.parametrize(
    ("name", "axis"), [(name, axis) for name, layout in PRESETS.items() for axis in layout.mesh]
)
def test_each_axis_of_a_preset_may_be_one(name, axis):
    layout = PRESETS[name]
    sizes = {a: 1 if a == axis else 2 for a in layout.mesh}
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    place = MeshPlacement(layout, make_mesh(layout, sizes, devices))
    optimizer = OptimizerConfig()
    program = TrainModel(MODEL.resolved(), optimizer, place)
    step = make_step(program, NextToken(chunk=64), make_schedule(optimizer, 10), optimizer.clip_norm)
    sharding = place.sharding((None, "batch", "sequence"), "compute")
    arrays = NextToken().arrays().items()
    batch = {
        key: jax.ShapeDtypeStruct((1, BATCH, LENGTH), spec.dtype, sharding=sharding) for key, spec in arrays
    }
    with jax.set_mesh(place.mesh):
        state, _ = jax.eval_shape(step, program.abstract_state(), batch)
    assert jax.tree.map(lambda x: x.shape, state.parameters) == jax.tree.map(
        lambda x: x.shape, program.abstract
    )
