"""Products with weights and their gradients equal einsum and indexing, in the configured dtypes and
placements."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement, Table
from llm_jax.model.weights import ShardedParam, Weight, add_bias, lookup, project
from llm_jax.objective.next_token import NextToken
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel
from llm_jax.train.step import make_evaluation
from tests.training import SMALL, packed_batch, train


@pytest.mark.parametrize(
    ("equation", "x", "w"),
    [
        ("BTD,DHK->BTHK", (2, 5, 6), (6, 3, 4)),
        ("BTHK,HKD->BTD", (2, 5, 3, 4), (3, 4, 6)),
        ("BTD,DF->BTF", (2, 5, 6), (6, 9)),
        ("BTF,FD->BTD", (2, 5, 9), (9, 6)),
    ],
)
def test_project_has_the_gradients_of_einsum(equation, x, w):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x, w))
    config, place = ModelConfig(), Placement()
    y, pull = jax.vjp(
        lambda x, w: project(equation, x, Weight(w, dims=(None,) * w.ndim), config, place), x, w
    )
    expected, expected_pull = jax.vjp(lambda x, w: jnp.einsum(equation, x, w), x, w)
    dy = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    for ours, theirs in zip((y, *pull(dy)), (expected, *expected_pull(dy)), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- in bfloat16, gradients are float32, wherever they are summed ---

STREAM = ("batch", "sequence", "embed")
ROWS = 4096
EACH = 1 + 2**-7  # a bfloat16 number; bfloat16 holds no sum of more than 256 of them, and not 129 of them
MESHES = {"hybrid_fsdp": {"data": 4}}


def gradients(place: Placement, table: Table = "stored", **config: str) -> dict[str, jax.Array]:
    """The gradient of every kind of use, with masters placed by `table`: each used entry is a sum of ROWS
    times EACH."""
    model = ModelConfig(compute_dtype="bfloat16", **config)
    ones = place.move(jnp.ones((8, ROWS // 8, 8), jnp.bfloat16), STREAM)
    ids = place.move(jnp.ones((8, ROWS // 8), jnp.int32), STREAM[:2])
    uses = {
        "matrix": (
            jnp.ones((8, 16)),
            ("embed", "mlp"),
            lambda w: project("BTD,DF->BTF", ones, w, model, place),
        ),
        "bias": (jnp.zeros(8), ("embed",), lambda w: add_bias(ones, w, model, place)),
        "table": (
            jnp.ones((16, 8)),
            ("vocab", "embed"),
            lambda w: lookup(w, ids, model, place, place.spec(STREAM, "residual")),
        ),
    }

    def total(master, stored, dims, use):
        return jnp.sum(
            use(Weight(ShardedParam(master, stored), dims=dims, stacked=False)).astype(jnp.float32)
            * jnp.float32(EACH)
        )

    found = {}
    for name, (value, dims, use) in uses.items():
        master, stored = (place.move(value, dims, t) for t in (table, "stored"))
        found[name] = jax.jit(jax.grad(functools.partial(total, dims=dims, use=use)))(master, stored)
        assert found[name].sharding == master.sharding
    return found


def used(found: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """The entries of gradients that are used: all, but of a table only row 1."""
    return {name: np.asarray(dw)[1 if name == "table" else ...] for name, dw in found.items()}


def test_gradients_are_summed_in_float32():
    for name, dw in used(gradients(Placement())).items():
        np.testing.assert_array_equal(dw, np.full(dw.shape, ROWS * EACH), err_msg=name)


@pytest.mark.parametrize(
    ("layout", "table"),
    [("fsdp", "stored"), ("zero1", "optimizer"), ("hybrid_fsdp", "stored"), ("fsdp_tensor", "stored")],
)
def test_gradients_are_summed_over_devices_in_float32_and_placed_as_masters(layout, table):
    place = MeshPlacement(PRESETS[layout], make_mesh(PRESETS[layout], MESHES.get(layout, {})))
    with jax.set_mesh(place.mesh):
        found = used(gradients(place, table))
    for name, dw in found.items():
        np.testing.assert_array_equal(dw, np.full(dw.shape, ROWS * EACH), err_msg=name)


def test_gradient_dtype_bfloat16_sums_in_bfloat16():
    for name, dw in used(gradients(Placement(), gradient_dtype="bfloat16")).items():
        np.testing.assert_array_equal(dw, dw.astype(jnp.bfloat16).astype(np.float32), err_msg=name)


def test_gradients_narrower_than_the_products_are_refused():
    with pytest.raises(UserError, match=r"model.gradient_dtype=bfloat16: .* model.compute_dtype=float32"):
        ModelConfig(gradient_dtype="bfloat16").resolved()


# --- ZeRO-1 ---


def test_zero1_keeps_weights_whole_and_splits_moments():
    _, state, _ = train(PRESETS["zero1"], {}, steps=1)
    w = state.parameters["blocks"]["attention"]["query"]
    moments = [x for x in jax.tree.leaves(state.moments) if x.shape == w.shape]
    assert w.addressable_shards[0].data.size == w.size
    assert moments
    assert all(8 * x.addressable_shards[0].data.size == w.size for x in moments)


# --- vocabularies that do not divide ---


@pytest.mark.parametrize("tied", [True, False])
def test_an_uneven_vocabulary_has_the_logits_and_losses_of_one_device(tied):
    model = dataclasses.replace(SMALL, vocab=131, tied_embeddings=tied, logit_softcap=3.0).resolved()
    batch = packed_batch(0)
    found = []
    for layout, mesh in (("single", {}), ("fsdp_tensor", {"data": 1, "tensor": 4})):
        place = MeshPlacement(PRESETS[layout], make_mesh(PRESETS[layout], mesh))
        program = TrainModel(model, OptimizerConfig(), place)
        with jax.set_mesh(place.mesh):
            arrays = {
                name: jax.device_put(x, place.sharding(STREAM[:2], "compute")) for name, x in batch.items()
            }
            parameters = jax.jit(lambda program=program: program.init(jnp.uint32(0)).parameters)()
            logits = jax.jit(lambda p, tokens, program=program: program.model(p)(tokens))(
                parameters, arrays["tokens"]
            )
            losses = jax.jit(make_evaluation(program, NextToken()))(parameters, arrays, jnp.ones(131))
        assert parameters["embedding"].addressable_shards[0].data.shape[0] == 131  # whole at rest
        found.append((logits, losses["cross_entropy"]))
    assert found[0][0].shape == (8, 32, 131)
    for ours, theirs in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # the order of float32 sums
