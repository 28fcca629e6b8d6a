"""The chunked cross-entropy and its own gradient against the formula over whole logits, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.model.config import ModelConfig
from llm_jax.model.weights import Weight
from llm_jax.objective.cross_entropy import linear_cross_entropy

B, T, D, V = 3, 10, 8, 23


def head(w_VD):
    """The array as a model has it."""
    return Weight(w_VD, dims=("vocab", "embed"), stacked=False)


def direct(x, w, targets, weights, softcap, z_loss):
    """(loss, cross-entropy, dloss/dx, dloss/dw) by the textbook, over whole logits, float64 NumPy."""
    raw = x @ w.T
    logits = softcap * np.tanh(raw / softcap) if softcap else raw
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    entropy = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    p = np.exp(logits - log_z[..., None])
    d = p * (1 + 2 * z_loss * log_z)[..., None] - np.eye(w.shape[0])[targets]
    if softcap:
        d = d * (1 - (logits / softcap) ** 2)
    d = d * weights[..., None]
    return (
        ((entropy + z_loss * log_z**2) * weights).sum(),
        (entropy * weights).sum(),
        d @ w,
        np.einsum("btv,btd->vd", d, x),
    )


@pytest.mark.parametrize("chunk", [1, 7, 10, 1000])
@pytest.mark.parametrize(("softcap", "z_loss"), [(0.0, 0.0), (2.0, 0.0), (0.0, 0.1), (2.0, 0.1)])
def test_loss_and_gradient_are_the_formulas(chunk, softcap, z_loss):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(B, T, D)), rng.normal(size=(V, D))
    targets, weights = rng.integers(0, V, (B, T)), rng.choice([0.0, 1.0, 0.5], (B, T))

    def loss(x, w):
        config = ModelConfig(logit_softcap=softcap)
        return linear_cross_entropy(
            x,
            head(w),
            jnp.asarray(targets, jnp.int32),
            jnp.asarray(weights, jnp.float32),
            config,
            z_loss=z_loss,
            chunk=chunk,
        )

    args = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    (total, entropy), (dx, dw) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*args)
    without_gradient = loss(*args)
    expected = direct(x, w, targets, weights, softcap, z_loss)
    for found, right in zip((total, entropy, dx, dw), expected, strict=True):
        np.testing.assert_allclose(
            found, right, rtol=2e-5, atol=2e-5
        )  # float32 against float64, sums of 30 rows
    np.testing.assert_allclose(without_gradient, expected[:2], rtol=1e-5)


def test_huge_logits_stay_finite():
    x, w = jnp.full((1, 2, 4), 100.0), jnp.full((5, 4), 100.0)
    total, _ = linear_cross_entropy(x, head(w), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2)), ModelConfig())
    assert float(total) == pytest.approx(
        2 * np.log(5), abs=0.008
    )  # logits of 40,000 have a float32 spacing of 0.004


def test_whole_batch_without_targets_gives_zero_and_no_gradient():
    x, w = jnp.ones((1, 4, 4)), jnp.ones((5, 4))
    loss = lambda x: linear_cross_entropy(  # noqa: E731
        x, head(w), jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4)), ModelConfig()
    )[0]
    assert float(loss(x)) == 0
    assert not np.any(jax.grad(loss)(x))
