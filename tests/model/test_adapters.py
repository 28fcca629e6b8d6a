"""Adapters: a step on base and adapter is the step of a dense model whose weights they make together, on any
layout; the weights that get one, and those that can't."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.config_tree import flat
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.model.adapters import AdapterConfig
from llm_jax.model.config import ModelConfig, MoEConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.train.compile import program_options
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel, nested
from tests.plain_model import plain_logits
from tests.training import SMALL, packed_batch

LORA = AdapterConfig(
    rank=4, alpha=6.0, ranks={"blocks.1.mlp.up": 2}, targets=r"query|out|up|down|blocks\.0\.mlp\.gate"
)
DORA = AdapterConfig(rank=3, dora=True, rslora=True, targets=r"blocks\.1\..*|value")
EXPERTS = dataclasses.replace(SMALL, moe=MoEConfig(experts=8, top_k=2, mlp=16))


def program(
    adapter: AdapterConfig, model: ModelConfig = SMALL, layout: str = "single", mesh=None
) -> TrainModel:
    place = MeshPlacement(PRESETS[layout], make_mesh(PRESETS[layout], mesh or {}))
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    return TrainModel(model.resolved(), optimizer, place, adapter=adapter)


def started(own: TrainModel) -> dict[str, np.ndarray]:
    """All arrays of a new model by name, with a B that is not zero any more where the adapter has a rank."""
    plain = own.plain.new_parameters(0)
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
    ("adapter", "model"),
    [(LORA, SMALL), (DORA, SMALL), (dataclasses.replace(LORA, dora=True), EXPERTS)],
    ids=["lora", "dora", "experts"],
)
def test_loss_and_gradients_are_those_of_a_dense_model(adapter, model):
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
