"""muP and CompleteP: one table says what a weight's scale and learning rate are, and it is right.

The proof of the table: a model in which every unit is there twice, with halved weights from each, is the same
function as the narrow one. It must stay so while it learns. That holds exactly if, and only if, every
learning rate, epsilon, decay and multiplier is muP's.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.model import parametrization
from llm_jax.model.config import LatentConfig, ModelConfig, MoEConfig
from llm_jax.model.parametrization import multipliers, of_width, role
from llm_jax.objective.next_token import NextToken
from llm_jax.train.optimizer import MATRIX_SIDES, OptimizerConfig, make_schedule
from llm_jax.train.state import TrainModel
from llm_jax.train.step import make_step
from tests.training import packed_batch, train

NARROW = ModelConfig(
    layers=1, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24, vocab=64, init_std=0.25, qk_norm="projection",
    bias_qkv=True, bias_out=True, bias_mlp=True, parametrization="mup", base_embed=16, scan_layers=False,
).resolved()  # fmt: skip
LEARNED = dataclasses.replace(
    NARROW,
    position="learned",
    positions=32,
    qk_norm="none",
    base_head_dim=4,
    norm="layer",
    tied_embeddings=False,
)
EXPERTS = dataclasses.replace(NARROW, bias_mlp=False, moe=MoEConfig(experts=4, top_k=2, mlp=8, shared_mlp=8))
SCALED = dataclasses.replace(LEARNED, attention_scale=0.7, embedding_scale=2.0)
LATENT = dataclasses.replace(
    NARROW, kv_heads=4, head_dim=None, qk_norm="none", bias_qkv=False, norm_placement="both", norm_centred=True,
    latent=LatentConfig(query_rank=12, kv_rank=8, nope_dim=4, rope_dim=2, value_dim=4),
).resolved()  # fmt: skip
# A large epsilon and decay, so that they matter; no clipping, since the norm of all gradients together is
# another.
ADAMW = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, epsilon=1e-3, weight_decay=1.0, clip_norm=0)
LION = dataclasses.replace(ADAMW, name="lion", learning_rate=1e-3)
# A key's rotated part is the same for all heads, so its gradients do not shrink as those of other hidden
# units do: epsilon must not matter there.
SMALL_EPSILON = dataclasses.replace(ADAMW, epsilon=1e-8)
STEPS = 6


@functools.cache
def narrow_run(model: ModelConfig, optimizer: OptimizerConfig) -> tuple[list[float], Any, Any]:
    """The result of `trained` for a new model, computed once for all tests."""
    return trained(model, optimizer)


def trained(
    model: ModelConfig, optimizer: OptimizerConfig, parameters: Any = None
) -> tuple[list[float], Any, Any]:
    """(losses, the initial parameters, their dims)."""
    program = TrainModel(model, optimizer, MeshPlacement(PRESETS["single"], make_mesh(PRESETS["single"], {})))
    step = jax.jit(make_step(program, NextToken(), make_schedule(optimizer, STEPS), optimizer.clip_norm))
    state = program.new_state(0)
    if parameters is not None:
        placed = jax.tree.map(
            lambda new, old: jax.device_put(new, old.sharding), parameters, state.parameters
        )
        state = dataclasses.replace(state, parameters=placed)
    start, losses = jax.device_get(state.parameters), []
    with jax.set_mesh(program.place.mesh):
        for i in range(STEPS):
            state, metrics = step(
                state, {name: value[None] for name, value in packed_batch(i, vocab=64).items()}
            )
            losses.append(float(metrics["train_loss"]))
    return losses, start, program.dims


def twice(w: np.ndarray, dims: tuple[str | None, ...], grows: tuple[str, ...], latent: int) -> np.ndarray:
    """The weight with every unit of these dims there twice: the same at the output, half at each of the
    doubled inputs.

    latent: the entries of that dim that are of a key's rotated part, which does not grow.
    """
    for axis, dim in enumerate(dims):
        if dim in grows:
            fixed = latent if dim == "latent" else 0
            own, rest = np.split(w, [w.shape[axis] - fixed], axis)
            w = np.concatenate([own, own, rest], axis)
    inside = tuple(dim for dim in dims if dim != "layers")
    return w / 2 if role(inside) in ("hidden", "router") else w


def narrow_and_wide(
    narrow: ModelConfig, optimizer: OptimizerConfig, heads: str
) -> tuple[list[float], list[float]]:
    """Losses of the narrow and of the wide model. heads: the dim of attention that doubles, "heads" or
    "head_dim"."""
    wide = of_width(narrow, 32)
    if heads == "head_dim":
        wide = dataclasses.replace(wide, heads=narrow.heads, kv_heads=narrow.kv_heads, head_dim=8)
    grows = ("embed", "mlp", "latent", *(("heads", "kv_heads") if heads == "heads" else ("head_dim",)))
    losses, start, dims = narrow_run(narrow, optimizer)
    fixed = lambda path: narrow.latent.rope_dim if path[-1].key == "kv_down" else 0  # noqa: E731
    doubled = jax.tree_util.tree_map_with_path(
        lambda path, w, leaf: twice(w, leaf.value, grows, fixed(path)), start, dims
    )
    return losses, trained(wide, optimizer, doubled)[0]


SAME = 1e-6
"""For float32 sums in another order: 1e-7 was measured."""


@pytest.mark.parametrize(
    ("narrow", "optimizer", "heads"),
    [
        (NARROW, ADAMW, "heads"),
        pytest.param(NARROW, LION, "heads", marks=pytest.mark.slow),
        (LEARNED, ADAMW, "head_dim"),
        (EXPERTS, ADAMW, "heads"),
        pytest.param(SCALED, ADAMW, "head_dim", marks=pytest.mark.slow),
        (LATENT, SMALL_EPSILON, "heads"),
    ],
    ids=["dense", "lion", "head_dim", "experts", "attention_scale", "latent"],
)
def test_a_model_with_every_unit_twice_learns_as_the_narrow_one(narrow, optimizer, heads):
    losses, wide = narrow_and_wide(narrow, optimizer, heads)
    np.testing.assert_allclose(wide, losses, rtol=SAME)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("power", ["rate", pytest.param("epsilon", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["hidden", "table", "vector", "router"])
def test_with_another_power_in_the_table_it_does_not(kind, power, monkeypatch):
    row = dataclasses.replace(
        parametrization.WEIGHTS[kind], **{power: getattr(parametrization.WEIGHTS[kind], power) + 0.5}
    )
    monkeypatch.setitem(parametrization.WEIGHTS, kind, row)
    losses, wide = narrow_and_wide(EXPERTS if kind == "router" else NARROW, ADAMW, "heads")
    assert np.max(np.abs(np.subtract(wide, losses) / losses)) > 10 * SAME


@pytest.mark.parametrize("name", ["mup", "completep"])
@pytest.mark.parametrize("model", [NARROW, EXPERTS], ids=["dense", "experts"])
def test_at_the_base_shape_every_parametrization_is_the_standard_one(model, name):
    based = dataclasses.replace(model, parametrization=name, base_embed=16, base_layers=1, base_head_dim=4)
    assert (
        trained(based, ADAMW)[0] == trained(dataclasses.replace(model, parametrization="standard"), ADAMW)[0]
    )


def test_rates_and_epsilons_are_those_of_completeps_table():
    """Dey et al. 2025, table 1 and equation 40, with alpha 1, four times as wide and three times as deep."""
    model = dataclasses.replace(of_width(NARROW, 64), layers=6, parametrization="completep", base_layers=2)
    of = lambda *dims, block=True: dataclasses.astuple(multipliers(model, dims, block))  # noqa: E731
    assert of("vocab", "embed", block=False) == of("embed", block=False) == (1, 1 / 4)
    assert (
        of("embed", "heads", "head_dim")
        == of("mlp", "embed")
        == of("experts", "embed", "mlp")
        == (1 / 4, 1 / 4 / 3)
    )
    assert of("embed") == of("mlp") == of("heads", "head_dim") == (1, 1 / 4 / 3)
    assert parametrization.residual_multiplier(model) == 1 / 3
    assert parametrization.readout_multiplier(model) == 1 / 4
    assert all(role(dims) in ("hidden", "router") for dims in MATRIX_SIDES)


def test_initial_scales_are_those_of_the_table():
    """Hidden matrices shrink with the root of the width, projections into the stream by no more in a deeper
    model; tables stay."""
    model = dataclasses.replace(
        of_width(NARROW, 256), layers=8, parametrization="completep", base_layers=2, scan_layers=True
    )
    start = (
        TrainModel(model, ADAMW, MeshPlacement(PRESETS["single"], make_mesh(PRESETS["single"], {})))
        .new_state(0)
        .parameters
    )
    std = (
        {"embedding": start["embedding"]}
        | {k: start["blocks"]["attention"][k] for k in ("query", "out")}
        | {"down": start["blocks"]["mlp"]["down"]}
    )
    expected = {"embedding": 0.25, "query": 0.25 / 4, "out": 0.25 / 4 / 2, "down": 0.25 / 4 / 2}
    for name, w in std.items():
        # of 16,384 numbers or more: four times their error
        assert np.std(w) == pytest.approx(expected[name], rel=0.02), name


@pytest.mark.parametrize(
    ("layout", "mesh"), [("fsdp_tensor_sequence", {"data": 2, "tensor": 4}), ("zero1", {"data": 8})]
)
def test_layouts_agree_in_mup(layout, mesh):
    model = ModelConfig(layers=2, embed=64, heads=8, kv_heads=8, head_dim=8, mlp=64, vocab=128, parametrization="completep",
                        base_embed=32, base_layers=1, base_head_dim=16)  # fmt: skip
    one, _, _ = train(PRESETS["single"], {}, steps=4, model=model)
    many, _, _ = train(PRESETS[layout], mesh, steps=4, model=dataclasses.replace(model, scan_layers=False))
    # float32 sums in another order
    np.testing.assert_allclose([m["train_loss"] for m in many], [m["train_loss"] for m in one], rtol=1e-5)


def test_a_proportion_that_is_not_whole_is_refused():
    with pytest.raises(
        UserError,
        match=r"model.heads=3: is for model.embed=16, and for a width of 24 it would be 4.5, not whole",
    ):
        of_width(dataclasses.replace(NARROW, heads=3, kv_heads=3), 24)
