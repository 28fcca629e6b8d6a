"""What the compiled step does for frozen parameters: nothing but read them."""

from __future__ import annotations

import re

import jax
import pytest

from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model.adapters import NO_ADAPTER, AdapterConfig
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.train.compile import abstract_batch, jit_step
from llm_jax.train.config import EVERYTHING, TrainConfig
from llm_jax.train.flops import flops_per_token
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import Frozen, TrainModel

MODEL = ModelConfig(layers=2, embed=32, heads=4, kv_heads=4, head_dim=8, mlp=48, vocab=128)
GRADIENT_OF_MLP = re.compile(r"= \(?f32\[(?:32,48|48,32|1,32,48|1,48,32)\]\S* (?:dot|custom-call)\(")


def compiled(
    trainable: tuple[str, ...],
    layout: str,
    mesh: dict[str, int],
    adapter: AdapterConfig = NO_ADAPTER,
    shape: tuple[int, int] = (8, 16),
) -> tuple[str, TrainModel]:
    """The optimised HLO of the step on a batch of this shape."""
    place = MeshPlacement(preset(layout), make_mesh(preset(layout), mesh))
    optimizer = OptimizerConfig()
    model = TrainModel(MODEL.resolved(), optimizer, place, trainable=trainable, adapter=adapter)
    batch = abstract_batch(NextToken(), TrainConfig(batch_size=shape[0], sequence_length=shape[1]), place)
    with jax.set_mesh(place.mesh):
        step = jit_step(model, NextToken(chunk=16), optimizer, 10)
        frozen = Frozen(model.rest(model.abstract_parameters()))
        return step.lower(model.abstract_state(), batch, frozen).compile().as_text(), model


def test_there_is_no_gradient_product_master_or_moment_of_frozen_parameters():
    whole, all_trained = compiled(EVERYTHING, "single", {})
    half, attention = compiled(("blocks.attention.*",), "single", {})
    assert len(GRADIENT_OF_MLP.findall(whole)) >= 3, (
        "the pattern finds the gradients of gate, up and down where they are trained"
    )
    assert GRADIENT_OF_MLP.findall(half) == []
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    trained = count(attention.trainable(attention.abstract))
    state = attention.abstract_state()
    assert count(state.parameters) == trained < count(all_trained.abstract) / 2
    assert count(state.moments) == pytest.approx(2 * trained, abs=8)  # Adam's two, and counters


def test_beside_an_adapter_nothing_is_made_for_the_weights_that_it_is_on():
    few = (2, 8)  # of more rows A B would be added to the weight, a product of this shape too
    whole, all_trained = compiled(EVERYTHING, "single", {}, shape=few)
    lora, adapted = compiled(EVERYTHING, "single", {}, AdapterConfig(rank=4), few)
    of_weights = re.compile(
        r"= \(?f32\[(?:1,)?(?:32,48|48,32|32,32|32,128|128,32)\]\S* (?:dot|custom-call)\("
    )
    assert len(of_weights.findall(whole)) >= 8, "of q, k, v, out, gate, up, down and of the head"
    assert of_weights.findall(lora) == []
    attention, mlp = 4 * (32 + 32), 3 * (32 + 48)
    trained = MODEL.layers * 4 * (attention + mlp)
    state = adapted.abstract_state()
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    assert count(state.parameters) == adapted.trained_count() == trained
    assert count(state.moments) == pytest.approx(2 * trained, abs=8)
    assert adapted.parameter_count() == trained + all_trained.parameter_count()
    saved, added = 2 * (2 * (4 * 32 * 32 + 3 * 32 * 48) + 128 * 32), 6 * 2 * 4 * (attention + mlp)
    flops = [flops_per_token(NextToken(), model, 16, {}) for model in (all_trained, adapted)]
    assert flops[1] == flops[0] - saved + added


def test_there_is_no_sum_over_devices_of_frozen_parameters_gradients():
    whole, _ = compiled(EVERYTHING, "fsdp", {"data": 8})
    half, _ = compiled(("blocks.attention.*",), "fsdp", {"data": 8})
    sums = re.compile(
        r"^.* = (.*?) (?:reduce-scatter|all-reduce)(?:-start)?\(", re.M
    )  # what comes out of each
    of_mlp = re.compile(r"\[(?:32,48|48,32|4,48|48,4|32,6|6,32)\]")
    assert any(of_mlp.search(out) for out in sums.findall(whole)), (
        "the pattern finds the sums of gate, up and down where they are trained"
    )
    assert not any(of_mlp.search(out) for out in sums.findall(half))
