"""A mixture of experts computes on every layout what it computes on one device: losses of the router, drops
and biases too.

The tolerance is that of test_layouts.py, at a third of its learning rate: at 3e-3 single steps have gradients
of five times the norm, and rounding grows to 4e-5 there. The router's choices are discrete: that none differs
in 20 steps is what a fixed seed gives.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.layout.layout import Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import CONTEXT, PRESETS, STAGES, TENSOR
from llm_jax.model import moe
from llm_jax.model.config import ModelConfig, MoEConfig
from llm_jax.train.optimizer import OptimizerConfig
from tests.parity.test_layouts import GROUPED, STEPS, TOLERANCE
from tests.training import train

MOE = MoEConfig(experts=8, top_k=2, mlp=16, shared_mlp=16, bias=True, bias_rate=0.01)
DROPLESS = dataclasses.replace(GROUPED, moe=MOE)
CAPACITY = dataclasses.replace(
    GROUPED, moe=dataclasses.replace(MOE, dispatch="capacity", balance_over="sequence")
)

OVER_CONTEXT = dataclasses.replace(
    PRESETS["context_ring"], name="over_context", compute={**CONTEXT, "experts": "context"}
)
WITHOUT_MLP = {dim: axes for dim, axes in TENSOR.items() if dim != "mlp"}
LAYOUTS = {
    "expert": (PRESETS["expert"], {}),
    "expert over all": (PRESETS["expert"], {"data": 1, "expert": 8}),
    "expert_tensor": (PRESETS["expert_tensor"], {}),
    "fsdp_tensor": (PRESETS["fsdp_tensor"], {"data": 4, "tensor": 2}),
    "experts over the sequence's axis, in a ring's order": (OVER_CONTEXT, {"context": 4}),
    "pipeline_tensor": (PRESETS["pipeline_tensor"], {}),
    "experts within a pipeline's stages": (
        dataclasses.replace(
            PRESETS["pipeline"],
            mesh={"stage": 2, "data": 2, "expert": 2},
            compute={**STAGES, "batch": "stage, data, expert", "experts": "expert"},
        ),
        {},
    ),
    "experts where tokens are whole": (
        Layout(
            "whole",
            {"data": -1, "tensor": 2},
            compute={"batch": "data", "experts": "tensor", **WITHOUT_MLP},
            stored={"embed": "data"},
        ),
        {},
    ),
}
NAMES = (
    "train_loss",
    "gradient_norm",
    "cross_entropy",
    "balance_loss",
    "router_z_loss",
    "expert_load_max",
    "expert_dropped",
)


@functools.cache
def run(layout: str, model: ModelConfig, steps: int = STEPS, optimizer: str = "adamw"):
    tables, mesh = (PRESETS["single"], {}) if layout == "single" else LAYOUTS[layout]
    config = OptimizerConfig(name=optimizer, learning_rate=1e-3, warmup_steps=2)
    history, state, _ = train(tables, mesh, steps=steps, model=model, optimizer=config)
    return history, state


def assert_same(ours, theirs):
    for name in NAMES:
        np.testing.assert_allclose(
            [m[name] for m in ours[0]], [m[name] for m in theirs[0]], rtol=TOLERANCE, err_msg=name
        )
    biases = (np.asarray(state.parameters["blocks"]["mlp"]["bias"]) for _, state in (ours, theirs))
    np.testing.assert_allclose(*biases, atol=1e-6)  # sums of 20 steps of 0.01


SLOW = (
    "expert over all",
    "fsdp_tensor",
    "pipeline_tensor",
    "experts over the sequence's axis, in a ring's order",
)
"""Each splits experts, tokens or layers as one of the others does."""


@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in LAYOUTS]
)
def test_dropless_experts_on_a_layout_agree_with_one_device(layout):
    ours = run(layout, DROPLESS)
    assert_same(ours, run("single", DROPLESS))
    assert ours[0][-1]["train_loss"] < ours[0][0]["train_loss"] - 0.3
    assert ours[0][-1]["expert_dropped"] == 0


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("expert", marks=pytest.mark.slow),
        "expert_tensor",
        pytest.param("experts where tokens are whole", marks=pytest.mark.slow),
    ],
)
def test_experts_with_capacity_on_a_layout_agree_with_one_device(layout):
    """Equal tokens are dropped: an expert's capacity is for a row, which no layout splits here."""
    ours = run(layout, CAPACITY)
    assert_same(ours, run("single", CAPACITY))
    assert ours[0][-1]["expert_dropped"] > 0


def test_microbatches_on_a_mesh_agree_with_one_device():
    model = dataclasses.replace(DROPLESS, moe=dataclasses.replace(MOE, balance_over="sequence"))
    layout = {"data": 2, "expert": 2}
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
    ours = train(PRESETS["expert"], layout, steps=4, model=model, microbatches=2, optimizer=config)
    assert_same(ours[:2], run("single", model, steps=4))


def test_muon_agrees_with_one_device():
    assert_same(run("expert_tensor", DROPLESS, 4, "muon"), run("single", DROPLESS, 4, "muon"))


def test_dense_layers_unrolled_and_recomputed_agree_with_one_device():
    model = dataclasses.replace(
        DROPLESS,
        layers=3,
        moe=dataclasses.replace(MOE, dense_layers=(1,)),
        scan_layers=False,
        remat="mlp_up,attention",
    )
    assert_same(run("expert_tensor", model, 4), run("single", model, 4))


def test_experts_are_really_split():
    _, state = run("expert_tensor", DROPLESS)
    up = state.parameters["blocks"]["mlp"]["up"]
    for array in (up, *(x for x in jax.tree.leaves(state.moments) if x.shape == up.shape)):
        # of [2 layers, 8 experts, 32, 16] over expert, data and tensor
        assert array.addressable_shards[0].data.shape == (2, 4, 16, 8)


def test_layouts_under_which_experts_cannot_run_are_refused():
    sequence = Layout(
        "split",
        {"data": -1, "expert": 2},
        compute={"batch": "data", "sequence": "expert", "experts": "expert"},
    )
    both = Layout("both", {"data": -1, "tensor": 2}, compute={"batch": "data", "experts": "data, tensor"})
    embed = Layout("embed", {"data": -1, "tensor": 2}, compute={"batch": "data", "embed": "tensor"})
    dense = dataclasses.replace(DROPLESS, moe=dataclasses.replace(MOE, dense_layers=(0,)))
    for layout, model, says in (
        (sequence, CAPACITY, "model.moe.dispatch=capacity: .* splits dim 'sequence' over expert"),
        (both, DROPLESS, "layout.compute.experts=data, tensor: either all of these axes"),
        (embed, DROPLESS, "layout.compute.embed=tensor"),
        (
            PRESETS["pipeline"],
            dense,
            r"model.moe.dense_layers=\(0,\): the layout splits dim 'layers' over stage",
        ),
    ):
        with pytest.raises(UserError, match=says):
            moe.check(model.resolved(), MeshPlacement(layout, make_mesh(layout, {})))
