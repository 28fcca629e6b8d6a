"""token_logprobs under every preset: value and gradient equal the plain formula over whole logits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS, preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.logprobs import cross_entropy, hidden_states, token_logprobs
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel
from tests.training import packed_batch

MODEL = ModelConfig(layers=4, embed=32, heads=8, kv_heads=8, head_dim=8, mlp=64, vocab=128, logit_softcap=5.0)


def scalar(logp_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """A loss that is not linear in the log-probabilities."""
    return jnp.sum(jnp.tanh(logp_BT / 3) * weights_BT)


def plain(model, batch):
    """The textbook: whole logits, log-softmax, gather."""
    logits_BTV = model(batch["tokens"], batch["positions"], batch["segments"]).astype(jnp.float32)
    is_target = jax.nn.one_hot(batch["targets"], logits_BTV.shape[-1])
    return jnp.sum(jax.nn.log_softmax(logits_BTV) * is_target, -1)


def chunked(model, batch):
    return token_logprobs(model, hidden_states(model, batch), batch["targets"], chunk=8)


def value_and_gradient(name, logprobs):
    """(loss, log-probabilities, gradient) of a new model under a preset, as numpy."""
    layout = preset(name)
    place = MeshPlacement(layout, make_mesh(layout, {}))
    model = TrainModel(MODEL.resolved(), OptimizerConfig(), place)
    sharding = place.sharding(("batch", "sequence"), "compute")
    batch = {key: jax.device_put(value, sharding) for key, value in packed_batch(0).items()}

    def loss(parameters, batch):
        logp_BT = logprobs(model.model(parameters), batch)
        return scalar(logp_BT, batch["weights"]), logp_BT

    with jax.set_mesh(place.mesh):
        parameters = model.new_state(0).parameters
        (value, logp_BT), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters, batch)
    return float(value), np.asarray(logp_BT), jax.tree.map(np.asarray, gradient)


@functools.cache
def reference():
    return value_and_gradient("single", plain)


SLOW = ("zero1", "hybrid_fsdp", "fsdp", "context_gather", "expert", "pipeline_tensor")
"""They split the vocabulary, the batch or the positions as one of the others does."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in sorted(PRESETS)]
)
def test_value_and_gradient_are_the_plain_formulas(name):
    value, logp_BT, gradient = reference()
    value_, logp_BT_, gradient_ = value_and_gradient(name, chunked)
    np.testing.assert_allclose(logp_BT_, logp_BT, atol=3e-6)  # float32 sums over 128 logits, in another order
    assert value_ == pytest.approx(value, rel=1e-6)
    for theirs, ours in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max() + 1e-7, rtol=1e-4)


def test_cross_entropy_is_minus_the_weighted_sum_of_log_probabilities():
    place = MeshPlacement(preset("single"), make_mesh(preset("single"), {}))
    model = TrainModel(MODEL.resolved(), OptimizerConfig(), place)

    @jax.jit
    def both(parameters, batch):
        policy = model.model(parameters)
        hidden = hidden_states(policy, batch)
        total, entropy = cross_entropy(policy, hidden, batch["targets"], batch["weights"], chunk=8)
        return (
            total,
            entropy,
            -jnp.sum(token_logprobs(policy, hidden, batch["targets"], chunk=8) * batch["weights"]),
        )

    with jax.set_mesh(place.mesh):
        total, entropy, summed = both(model.new_state(0).parameters, packed_batch(0))
    assert float(total) == float(entropy) == pytest.approx(float(summed), rel=1e-6)
