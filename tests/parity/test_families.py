"""The features of open families give the losses of one device under every kind of layout; `test_layouts.py`
explains the tolerance."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest

from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.model.config import LatentConfig, ModelConfig, MoEConfig, RopeScaling
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel
from tests.parity.test_layouts import GROUPED, assert_same
from tests.training import train

STEPS = 5
LATENT = dataclasses.replace(
    GROUPED, kv_heads=None, head_dim=None, latent=LatentConfig(query_rank=24, kv_rank=16, nope_dim=8, rope_dim=4, value_dim=6),
    norm_placement="both", norm_centred=True, parallel_blocks=True, layers=3, window=7, window_layers=(0, 2),
    rope_scaling=RopeScaling(kind="yarn", factor=4, original_positions=8, attention_factor=1.1), remat="full", bias_qkv=True, bias_out=True,
)  # fmt: skip
GEMMA = dataclasses.replace(
    GROUPED, norm_placement="both", norm_centred=True, qk_norm="head", embedding_scale=5.5, attention_scale=0.5, attention_softcap=1.0, layers=4,
    window=7, window_layers=(0, 2), rope_theta_window=100.0, rope_scaling=RopeScaling(kind="linear", factor=8), rope_fraction=0.5,
)  # fmt: skip
MODELS = {
    "latent": LATENT,
    "gemma": GEMMA,
    "gemma without cap": dataclasses.replace(GEMMA, attention_softcap=0.0, attention="blocked"),
    "latent, experts": dataclasses.replace(
        LATENT, layers=1, window_layers=None, remat="none",
        moe=MoEConfig(experts=8, top_k=2, groups=4, top_groups=2, mlp=16, shared_mlp=16, scores="sigmoid", bias=True),
    ),
}  # fmt: skip

RUNS: list[tuple[str, str, dict[str, int]]] = [
    ("latent", "fsdp_tensor", {"data": 4, "tensor": 2}),
    ("latent", "context_gather", {"context": 4}),
    ("gemma", "fsdp_tensor_sequence", {"data": 2, "tensor": 4}),
    ("gemma", "context_ulysses", {"context": 4}),
    ("gemma without cap", "context_ring", {"context": 4}),
    ("gemma", "pipeline_tensor", {}),
    ("latent, experts", "expert_tensor", {}),
]


def run(model: ModelConfig, layout: str, mesh: dict[str, int]) -> Any:
    # at 3e-3 Gemma's scales make rounding grow to 2e-4
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
    return train(PRESETS[layout], mesh, steps=STEPS, model=model, optimizer=config)[0]


@functools.cache
def one_device(model: str) -> Any:
    return run(MODELS[model], "single", {})


# half a minute of compilation each; tests/parity has both layouts
SLOW = ("gemma on context_ulysses", "gemma on fsdp_tensor_sequence", "latent, experts on expert_tensor")


@pytest.mark.parametrize(
    ("model", "layout", "mesh"),
    [
        pytest.param(
            *case, id=(name := f"{case[0]} on {case[1]}"), marks=[pytest.mark.slow] if name in SLOW else []
        )
        for case in RUNS
    ],
)
def test_layouts_agree_with_one_device(model, layout, mesh):
    assert_same(run(MODELS[model], layout, mesh), one_device(model))


@pytest.mark.parametrize(
    ("data", "parts"),
    [(8, {"query_down": 8, "query_up": 8, "kv_down": 8, "kv_up": 8}), (3, {"query_up": 3, "kv_up": 1})],
)
def test_latents_are_split_at_rest_as_the_stream_is_where_they_divide(data, parts):
    layout = PRESETS["fsdp"]
    model = dataclasses.replace(LATENT, embed=48, heads=6).resolved()
    state = TrainModel(
        model, OptimizerConfig(), MeshPlacement(layout, make_mesh(layout, {"data": data}))
    ).abstract_state()
    for name, number in parts.items():
        w = state.parameters["blocks"]["attention"][name]
        assert w.sharding.shard_shape(w.shape)[1] * number == w.shape[1], name
