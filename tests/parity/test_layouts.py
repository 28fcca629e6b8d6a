"""Every layout computes what one device computes: loss and gradient norm of 20 steps, float32.

The tolerance, 1e-5 relative, is the order in which float32 sums are taken: what is seen is 1e-7 to 2e-6.
(Adam divides small gradients by their own size, so rounding grows with the learning rate: at 1e-2, 7e-5 in
the gradient norm.)
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from llm_jax.layout.layout import Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import CONTEXT, PRESETS, STAGES, TENSOR
from llm_jax.model.config import ModelConfig
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel
from tests.training import SMALL, placed_state, train

STEPS, TOLERANCE = 20, 1e-5
GROUPED = dataclasses.replace(SMALL, kv_heads=2)

LAYOUTS = {
    "data_parallel": (PRESETS["data_parallel"], {}),
    "fsdp": (PRESETS["fsdp"], {}),
    "zero1": (PRESETS["zero1"], {}),
    "hybrid_fsdp": (PRESETS["hybrid_fsdp"], {"data": 4}),
    "tensor": (PRESETS["tensor"], {"tensor": 2}),
    "fsdp_tensor": (PRESETS["fsdp_tensor"], {"data": 4, "tensor": 2}),
    # of a model without experts here, where the axis is one more of data; see test_experts.py
    "expert": (PRESETS["expert"], {}),
    "expert_tensor": (PRESETS["expert_tensor"], {}),
    "fsdp_tensor_sequence": (PRESETS["fsdp_tensor_sequence"], {}),
    "context_gather": (PRESETS["context_gather"], {"context": 4}),
    "context_ring": (PRESETS["context_ring"], {"context": 4}),
    "context_ulysses": (PRESETS["context_ulysses"], {"context": 4}),
    # layouts that an experiment file would define: the five tables do more than the presets
    # axes that split the batch may be given to weights too: they are gathered over them for use
    "vocab_over_batch": (
        Layout("vocab_over_batch", {"data": -1}, compute={"batch": "data", "vocab": "data", "mlp": "data"}),
        {},
    ),
    "ring_fsdp_tensor_sequence": (
        Layout(
            "ring_fsdp_tensor_sequence",
            {"data": 2, "context": 2, "tensor": 2},
            compute={**CONTEXT, **TENSOR},
            stored={"embed": "data,context"},
            residual={"sequence": "context,tensor"},
            attention={"keys": "context"},
        ),
        {},
    ),
    "ulysses_fsdp_tensor": (
        Layout(
            "ulysses_fsdp_tensor",
            {"data": 2, "context": 2, "tensor": 2},
            compute={**CONTEXT, **TENSOR},
            stored={"embed": "data"},
            attention={"sequence": "", "heads": "tensor,context", "kv_heads": "tensor,context"},
        ),
        {},
    ),
    # two key/value heads: each device takes the one that its query head needs
    "tensor_over_kv_heads": (PRESETS["tensor"], {"tensor": 8}),
    "fsdp_tensor_over_kv_heads": (PRESETS["fsdp_tensor_sequence"], {"data": 2, "tensor": 4}),
    "pipeline": (PRESETS["pipeline"], {"stage": 2}),
    "pipeline_tensor": (PRESETS["pipeline_tensor"], {}),
    "pipeline_fsdp_tensor": (
        Layout(
            "pipeline_fsdp_tensor",
            {"stage": 2, "data": -1, "tensor": 2},
            compute={**STAGES, **TENSOR},
            stored={"embed": "data", "vocab": "tensor, stage"},
        ),
        {},
    ),
    "pipeline_ring": (
        Layout(
            "pipeline_ring",
            {"stage": 2, "data": 2, "context": 2},
            compute={**STAGES, "sequence": "context"},
            optimizer={"embed": "data"},
            attention={"keys": "context"},
        ),
        {},
    ),
    "ring_of_one": (PRESETS["context_ring"], {"data": 8, "context": 1}),
    "only_mlp": (
        Layout("only_mlp", {"data": -1, "tensor": 2}, compute={"batch": "data", "mlp": "tensor"}),
        {},
    ),
}


@functools.cache
def single(model: ModelConfig, microbatches: int = 1, optimizer: str = "adamw"):
    return train(
        PRESETS["single"], {}, steps=STEPS, model=model, microbatches=microbatches,
        optimizer=OptimizerConfig(name=optimizer, learning_rate=3e-3, warmup_steps=2),
    )[0]  # fmt: skip


def assert_same(history, reference):
    for name in ("train_loss", "gradient_norm"):
        ours, theirs = ([m[name] for m in h] for h in (history, reference))
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, err_msg=name)


SLOW = ("expert", "ulysses_fsdp_tensor", "pipeline_fsdp_tensor", "hybrid_fsdp")
"""Each splits as others do, by other names or together."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in LAYOUTS]
)
def test_layout_agrees_with_one_device(name):
    layout, mesh = LAYOUTS[name]
    history, _, _ = train(layout, mesh, steps=STEPS, model=GROUPED)
    assert_same(history, single(GROUPED))
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.3


@pytest.mark.parametrize(
    "name",
    [
        "zero1",
        pytest.param("hybrid_fsdp", marks=pytest.mark.slow),
        "fsdp_tensor_sequence",
        pytest.param("context_ring", marks=pytest.mark.slow),
        pytest.param("expert_tensor", marks=pytest.mark.slow),
        pytest.param("vocab_over_batch", marks=pytest.mark.slow),
        "pipeline_fsdp_tensor",
    ],
)
def test_a_run_begins_with_the_state_of_one_device_bit_for_bit(name):
    """One layout of each family; the other tests here begin with the state of one device, put onto the layout."""
    layout, mesh = LAYOUTS[name]
    config = OptimizerConfig()
    program = TrainModel(GROUPED.resolved(), config, MeshPlacement(layout, make_mesh(layout, mesh)), 0.9)
    begun, placed = program.new_state(0), placed_state(program, config, 0.9)
    for ours, theirs in zip(jax.tree.leaves(begun), jax.tree.leaves(placed), strict=True):
        assert ours.sharding == theirs.sharding
        np.testing.assert_array_equal(ours, theirs)


def test_every_preset_is_compared():
    assert set(PRESETS) - {"single"} <= set(LAYOUTS)


def test_microbatches_agree_with_the_whole_batch():
    for microbatches in (2, 4):
        history, _, _ = train(PRESETS["single"], {}, steps=STEPS, model=GROUPED, microbatches=microbatches)
        assert_same(history, single(GROUPED))


def test_microbatches_on_a_mesh_agree_with_one_device():
    history, _, _ = train(
        PRESETS["fsdp_tensor"], {"data": 4, "tensor": 2}, steps=STEPS, model=GROUPED, microbatches=2
    )
    assert_same(history, single(GROUPED))


@pytest.mark.parametrize("optimizer", ["muon", "adafactor", pytest.param("lion", marks=pytest.mark.slow)])
def test_other_optimizers_agree_with_one_device(optimizer):
    config = OptimizerConfig(
        name=optimizer, learning_rate=3e-3 if optimizer != "lion" else 3e-4, warmup_steps=2
    )
    runs = [
        train(PRESETS[n], {}, steps=8, model=GROUPED, optimizer=config)[0] for n in ("single", "fsdp_tensor")
    ]
    assert_same(*runs)


VARIANTS = {
    "gpt2": ModelConfig(
        layers=2, embed=32, heads=8, mlp=64, vocab=128, norm="layer", activation="gelu", position="learned", positions=64,
        bias_qkv=True, bias_out=True, bias_mlp=True,
    ),
    "unrolled, untied, uneven vocabulary, qk norm, soft cap, window": dataclasses.replace(
        GROUPED, scan_layers=False, tied_embeddings=False, vocab=131, qk_norm="head", logit_softcap=5.0, window=7
    ),
    "attention in blocks, window": dataclasses.replace(GROUPED, attention="blocked", scan_layers=False, window=20),
    "norm after, projection norm, remat by name": dataclasses.replace(
        GROUPED, norm_placement="after", qk_norm="projection", remat="attention,mlp_up"
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_variants_agree_with_one_device_on_fsdp_tensor(variant):
    model = VARIANTS[variant]
    history, _, _ = train(PRESETS["fsdp_tensor"], {"data": 4, "tensor": 2}, steps=8, model=model)
    assert_same(history, train(PRESETS["single"], {}, steps=8, model=model)[0])


@pytest.mark.parametrize(
    ("layout", "weight", "parts"),
    [
        ("data_parallel", "query", 1),
        ("fsdp", "query", 8),
        ("tensor", "query", 2),
        ("fsdp_tensor", "query", 8),
        ("pipeline_fsdp_tensor", "query", 8),
    ],
)
def test_weights_and_moments_are_really_split(layout, weight, parts):
    tables, mesh = LAYOUTS[layout]
    _, state, _ = train(tables, mesh, steps=1, model=GROUPED)
    w = state.parameters["blocks"]["attention"][weight]
    moments = [x for x in jax.tree.leaves(state.moments) if x.shape == w.shape]
    assert len(moments) == 2
    for array in (w, *moments):
        assert array.addressable_shards[0].data.size * parts == array.size
