"""Adapters: a step on base and adapter is the step of a dense model whose weights they make together, on any
layout; the weights that get one, and those that can't."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.config_tree import flat
from llm_jax.core.errors import UserError
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.model import adapted_weight
from llm_jax.model.adapters import AdapterConfig, matches
from llm_jax.model.config import ModelConfig, MoEConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.train.optimizer import OptimizerConfig, make_schedule
from llm_jax.train.program_options import program_options
from llm_jax.train.state import Frozen, TrainModel, nested
from llm_jax.train.step import make_step
from tests.plain_model import plain_logits
from tests.training import SMALL, first_state, packed_batch

LORA = AdapterConfig(
    rank=4, alpha=6.0, ranks={"blocks.1.mlp.up": 2}, targets=r"query|out|up|down|blocks\.0\.mlp\.gate"
)
DORA = AdapterConfig(rank=3, dora=True, rslora=True, targets=r"blocks\.1\..*|value")
EXPERTS = dataclasses.replace(SMALL, moe=MoEConfig(experts=8, top_k=2, mlp=16, balance_loss=0.0))


def program(
    adapter: AdapterConfig, model: ModelConfig = SMALL, layout: str = "single", mesh=None
) -> TrainModel:
    place = MeshPlacement(PRESETS[layout], make_mesh(PRESETS[layout], mesh or {}))
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    return TrainModel(model.resolved(), optimizer, place, adapter=adapter)


def started(own: TrainModel) -> dict[str, np.ndarray]:
    """All arrays of a new model by name, with a B that is not zero any more where the adapter has a rank."""
    plain = first_state(own.config, own.optimizer, 0.0).parameters
    with jax.set_mesh(own.place.mesh):
        arrays = flat(jax.tree.map(np.array, jitted(own, own.with_adapter)(plain, jnp.uint32(0))))
    rng = np.random.default_rng(0)
    for name, value in arrays.items():
        if name.endswith("lora_B"):
            A = arrays[name.removesuffix("B") + "A"]
            used = np.moveaxis(np.any(A != 0, tuple(range(1, A.ndim - 1))), 1, -1)  # [layers, rank]
            at = 1 + ("experts" in own.adapted.arrays[name].dims)
            arrays[name] = (rng.normal(size=value.shape) * 0.1).astype(np.float32)
            arrays[name] *= used.reshape(len(used), *[1] * (at - 1), -1, *[1] * (value.ndim - at - 1))
    return arrays


def jitted(own: TrainModel, f):
    """`jax.jit` as a run compiles: on a CPU XLA's own choice of libraries computes a few of such products wrongly."""
    return jax.jit(f, compiler_options=program_options(own))


def placed(own: TrainModel, arrays: dict) -> dict:
    """Arrays by name on the devices of a model, as its layout stores them."""
    at = flat(own.abstract_parameters())
    return {name: jax.device_put(x, at[name].sharding) for name, x in arrays.items()}


def dense(own: TrainModel, arrays: dict) -> dict:
    """The whole weights as plain formulas have them: W + s A B, times m / |W + s A B| with DoRA."""
    found = {}
    for name, w in own.weights.items():
        found[name] = whole = jnp.asarray(arrays[name])
        layers = own.adapted.targets.get(name)
        if layers is None:
            continue
        A, B = (jnp.asarray(arrays[f"{name}.lora_{side}"]) for side in "AB")
        m = arrays.get(f"{name}.magnitude")
        rows = []
        for layer, scaling in enumerate(layers.scalings):
            experts = whole[layer] if "experts" in w.dims else whole[layer][None]
            factors = [x[layer] if "experts" in w.dims else x[layer][None] for x in (A, B)]
            made = []
            for e, W in enumerate(experts):
                one = W + scaling * jnp.tensordot(factors[0][e], factors[1][e], 1)
                if m is not None and scaling:
                    row = m[layer][e] if "experts" in w.dims else m[layer]
                    summed = tuple(range(W.ndim - row.ndim))
                    length = jnp.sqrt(jnp.sum(one**2, summed))
                    one = one * (row / jax.lax.stop_gradient(length))
                made.append(one)
            rows.append(jnp.stack(made) if "experts" in w.dims else made[0])
        found[name] = jnp.stack(rows)
    return nested(found)


@pytest.mark.parametrize(
    ("adapter", "model", "whole_products"),
    [
        (LORA, SMALL, True),
        (LORA, SMALL, False),
        pytest.param(DORA, SMALL, True, marks=pytest.mark.slow),
        pytest.param(dataclasses.replace(LORA, dora=True), EXPERTS, True, marks=pytest.mark.slow),
    ],
    ids=["lora", "apart", "dora", "experts"],
)
def test_loss_and_gradients_are_those_of_a_dense_model(adapter, model, whole_products, monkeypatch):
    """Whether W + scaling A B is made for a product (`is_cheaper_whole`), or rows are multiplied with each."""
    monkeypatch.setattr(adapted_weight, "is_cheaper_whole", lambda *_: whole_products)
    own = program(adapter, model)
    arrays = started(own)
    trained = {name: arrays.pop(name) for name in sorted(own.trained)}
    at = own.place.sharding(("batch", "sequence"), "compute")
    objective, batch = NextToken(chunk=64), packed_batch(0)

    def on_mesh(f, trained, arrays):
        with jax.set_mesh(own.place.mesh):
            run = jitted(own, jax.value_and_grad(f))
            return run(placed(own, trained), placed(own, arrays), jax.device_put(batch, at))

    def ours(trained, arrays, batch):
        return objective.loss(own.model(nested(trained), rest=nested(arrays)), {}, batch).total

    def whole(trained, arrays, batch):  # the plain model has no experts: ours with whole weights
        return objective.loss(own.plain.model(dense(own, {**arrays, **trained})), {}, batch).total

    def plain(trained):
        logits = plain_logits(
            own.config, dense(own, {**arrays, **trained}), batch["tokens"], batch["segments"]
        )
        log_p = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
        return -jnp.sum(chosen * batch["weights"])

    loss, grads = on_mesh(ours, trained, arrays)
    expected, expected_grads = (
        on_mesh(whole, trained, arrays)
        if model is EXPERTS
        else jitted(own, jax.value_and_grad(plain))(trained)
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for name in trained:
        scale = float(jnp.max(jnp.abs(expected_grads[name])))
        np.testing.assert_allclose(grads[name], expected_grads[name], atol=1e-5 * scale, err_msg=name)
        unused = np.broadcast_to(trained[name] == 0, grads[name].shape)
        if not name.endswith("magnitude"):
            assert scale > 0
            assert not np.any(np.asarray(grads[name])[unused]), "what fills up a smaller rank stays zero"


def steps(own: TrainModel, arrays: dict, microbatches: int = 1, count: int = 2) -> np.ndarray:
    """[steps, 2]: loss and gradient norm of each."""
    whole = nested(placed(own, arrays))
    frozen, state = Frozen(own.rest(whole)), own.state_with(own.trainable(whole))
    step = jitted(own, make_step(own, NextToken(chunk=64), make_schedule(own.optimizer, count), 1.0))
    at, found = own.place.sharding((None, "batch", "sequence"), "compute"), []
    with jax.set_mesh(own.place.mesh):
        for number in range(count):
            cut = {
                name: jax.device_put(x.reshape(microbatches, -1, x.shape[-1]), at)
                for name, x in packed_batch(number).items()
            }
            state, metrics = step(state, cut, frozen)
            found.append([float(metrics[name]) for name in ("train_loss", "gradient_norm")])
    return np.array(found)


BOTH = dataclasses.replace(LORA, dora=True)
LAYOUTS = [
    (BOTH, EXPERTS, "fsdp_tensor", {"data": 4, "tensor": 2}, 2),
    (dataclasses.replace(DORA, base="int8"), SMALL, "pipeline_tensor", {}, 1),
    (BOTH, EXPERTS, "expert_tensor", {}, 1),
    (dataclasses.replace(LORA, base="nf4"), SMALL, "fsdp_tensor_sequence", {"data": 2, "tensor": 4}, 4),
    (LORA, SMALL, "context_ring", {"context": 4}, 2),
    (LORA, SMALL, "data_parallel", {}, 1),
    (dataclasses.replace(DORA, base="bfloat16"), SMALL, "zero1", {}, 1),
    (LORA, SMALL, "tensor", {"tensor": 8}, 4),
]


@pytest.mark.parametrize(
    ("adapter", "model", "layout", "mesh", "microbatches"),
    [case if i < 1 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(LAYOUTS)],
    ids=[case[2] for case in LAYOUTS],
)
def test_every_layout_trains_an_adapter_as_one_device(
    adapter, model, layout, mesh, microbatches, monkeypatch
):
    one = program(adapter, model)
    arrays = started(one)
    if layout in ("tensor", "fsdp_tensor_sequence"):  # rows are multiplied with each
        monkeypatch.setattr(adapted_weight, "is_cheaper_whole", lambda *_: False)
    expected = steps(one, arrays)
    assert expected[1, 0] != expected[0, 0]
    found = steps(program(adapter, model, layout, mesh), arrays, microbatches)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_patterns_are_of_a_weight_or_of_one_of_its_layers():
    assert matches("query|value", "blocks.attention.query", "blocks.1.attention.query")
    assert matches(r"1\.attention\..*", "blocks.attention.query", "blocks.1.attention.query")
    assert not matches(r"1\.attention\..*", "blocks.attention.query", "blocks.11.attention.query")
    targets = program(LORA).adapted.targets
    assert targets["blocks.mlp.up"].ranks == (4, 2)
    assert targets["blocks.mlp.up"].scalings == (1.5, 3.0)
    assert targets["blocks.mlp.gate"].ranks == (4, 0)
    assert "blocks.attention.key" not in targets
    scalings = program(DORA).adapted.targets["blocks.mlp.down"].scalings
    assert scalings == (0.0, 3 / math.sqrt(3))
    by_group = {
        group: {
            name.split(".")[1]
            for name in program(AdapterConfig(rank=1, targets=group), EXPERTS).adapted.targets
        }
        for group in ("all", "attention", "mlp")
    }
    assert by_group == {"all": {"attention", "mlp"}, "attention": {"attention"}, "mlp": {"mlp"}}
    assert "blocks.mlp.router" not in program(AdapterConfig(rank=1), EXPERTS).adapted.targets


@pytest.mark.parametrize(
    ("adapter", "trainable", "error"),
    [
        (AdapterConfig(rank=2, targets="qurey"), ["*"], "adapter.targets=qurey: matches no linear map of the blocks; they are"),
        (AdapterConfig(rank=2, targets="embedding"), ["*"], "adapter.targets=embedding: matches embedding, .* and it is the head too. Train it whole"),
        (AdapterConfig(rank=2, ranks={"nope": 3}), ["*"], "adapter.ranks.nope: matches none of the weights with an adapter"),
        (AdapterConfig(rank=99_999), ["*"], "adapter.rank=99999: more than the "),
        (AdapterConfig(rank=33, start="pissa", targets="query"), ["*"], "adapter.rank=33: with adapter.start=pissa blocks.attention.query allows at most 32"),
        (AdapterConfig(rank=2), ["blocks.mlp.*"], "train.trainable: blocks.mlp.down has an adapter, and is frozen"),
    ],
    ids=["unknown", "tied", "ranks", "too large", "pissa", "both"],
)  # fmt: skip
def test_an_adapter_that_a_model_cant_have_is_refused_in_one_line(adapter, trainable, error):
    place = MeshPlacement(PRESETS["single"], make_mesh(PRESETS["single"], {}))
    with pytest.raises(UserError, match=error):
        TrainModel(SMALL.resolved(), OptimizerConfig(), place, trainable=trainable, adapter=adapter)


@pytest.mark.parametrize(
    ("key", "adapter"),
    [
        ("adapter.rank=-1", AdapterConfig(rank=-1)),
        ("adapter.alpha=0", AdapterConfig(rank=1, alpha=0)),
        (r"adapter.targets=\(: must be all, attention, mlp or a regular expression", AdapterConfig(rank=1, targets="(")),
        ("adapter.ranks.x=0", AdapterConfig(rank=1, ranks={"x": 0})),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(key, adapter):
    with pytest.raises(UserError, match=key):
        adapter.check()


@pytest.mark.parametrize(
    "start", ["kaiming", pytest.param("gaussian", marks=pytest.mark.slow), "pissa", "olora"]
)
@pytest.mark.parametrize(
    "model", [SMALL, pytest.param(EXPERTS, marks=pytest.mark.slow)], ids=["dense", "experts"]
)
def test_at_the_start_base_and_adapter_are_the_weights(start, model):
    adapter = AdapterConfig(rank=4, alpha=6.0, start=start, dora=start == "kaiming", targets="query|out|up")
    own = program(adapter, model)
    plain = first_state(own.config, own.optimizer, 0.0).parameters
    with jax.set_mesh(own.place.mesh):
        arrays = jitted(own, own.with_adapter)(plain, jnp.uint32(0))
        merged = flat(jax.tree.map(np.array, jitted(own, own.merged)(arrays)))
    arrays, plain = flat(jax.tree.map(np.array, arrays)), flat(plain)
    reduced = start in ("pissa", "olora")
    for name, w in plain.items():
        np.testing.assert_allclose(merged[name], w, atol=1e-6 if reduced or adapter.dora else 0, err_msg=name)
        if name in own.adapted.targets:
            assert (np.abs(arrays[name] - w).max() > 1e-3) == reduced
            assert np.any(arrays[f"{name}.lora_B"]) == reduced
    A, B = arrays["blocks.attention.query.lora_A"][0], arrays["blocks.attention.query.lora_B"][0]
    if start == "kaiming":
        assert np.abs(A).max() == pytest.approx(32**-0.5, rel=0.05)
        assert np.abs(A).max() <= 32**-0.5
    elif start == "gaussian":
        assert A.std() == pytest.approx(1 / 4, rel=0.2)
    elif start == "pissa":  # the four largest singular values, split evenly
        U, S, V = np.linalg.svd(plain["blocks.attention.query"][0].reshape(32, -1))
        best = (U[:, :4] * S[:4]) @ V[:4]
        np.testing.assert_allclose(1.5 * A @ B.reshape(4, -1), best, atol=1e-5)
    else:
        Q = B.reshape(4, -1)
        np.testing.assert_allclose(Q @ Q.T, np.eye(4), atol=1e-5)


def test_the_logits_of_a_new_adapter_are_the_bases_bit_for_bit(monkeypatch):
    """Of DoRA to 1e-6: m / |W| is 1 but for rounding."""
    ids = jnp.asarray(packed_batch(0)["tokens"][:2])

    def logits(own, parameters):
        with jax.set_mesh(own.place.mesh):
            return np.asarray(jitted(own, lambda p: own.model(p)(ids))(parameters))

    plain = program(AdapterConfig())
    weights = first_state(plain.config, plain.optimizer, 0.0).parameters
    base = logits(plain, nested(placed(plain, flat(weights))))
    for dora, whole_products in ((False, True), (False, False), (True, False)):
        monkeypatch.setattr(adapted_weight, "is_cheaper_whole", lambda *_, whole=whole_products: whole)
        own = program(AdapterConfig(rank=4, alpha=3.0, dora=dora))
        with jax.set_mesh(own.place.mesh):
            parameters = jitted(own, own.with_adapter)(weights, jnp.uint32(0))
        found = logits(own, parameters)
        if dora:
            np.testing.assert_allclose(found, base, atol=1e-6)
        else:
            np.testing.assert_array_equal(found, base)
