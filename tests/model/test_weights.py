"""Weights and their gradients: against einsum and indexing, in the dtypes and places that were asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.weights import Weight, project


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
    y, pull = jax.vjp(lambda x, w: project(equation, x, Weight(w, dims=(None,) * w.ndim), config, place), x, w)
    expected, expected_pull = jax.vjp(lambda x, w: jnp.einsum(equation, x, w), x, w)
    dy = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    for ours, theirs in zip((y, *pull(dy)), (expected, *expected_pull(dy)), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
