"""Weights in 8 and 4 bits: the codes of published formulas, and how far from the weights they are."""

from __future__ import annotations

from statistics import NormalDist

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.model.dims import Placement
from llm_jax.model.quantized import (
    NF4,
    block_axis,
    dequantize,
    gather_dequantized,
    parts_dims,
    parts_shapes,
    quantize,
)

WEIGHTS = {
    ("embed", "heads", "head_dim"): (96, 3, 64),
    ("heads", "head_dim", "embed"): (3, 64, 96),
    ("experts", "mlp", "embed"): (4, 24, 192),
    ("latent", "heads", "head_dim"): (32, 3, 10),
}


def test_the_table_of_nf4_is_that_of_its_formula():
    """Dettmers et al. 2023, section 3: quantiles of the normal distribution, of 8 positive and 7 negative ones
    and an exact 0, so that the outermost are 1 and -1."""
    ppf, outermost = NormalDist().inv_cdf, 1 - (1 / 32 + 1 / 30) / 2
    positive = [ppf(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    negative = [-ppf(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    values = np.array(sorted([*negative, 0.0, *positive]))
    np.testing.assert_allclose(NF4, values / values.max(), atol=1e-6)
    assert NF4[0] == -1
    assert NF4[-1] == 1


@pytest.mark.parametrize("dims", WEIGHTS)
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_each_weight_is_the_nearest_code_of_its_group(dims, kind):
    shape = WEIGHTS[dims]
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    w[..., 0] = 0  # a group of zeros has no largest magnitude to divide by
    q = quantize(jnp.asarray(w), dims, kind)
    assert (q.codes.shape, q.absmax.shape) == parts_shapes(dims, shape, kind)
    assert all(
        len(part) == len(array.shape)
        for part, array in zip(parts_dims(dims, shape, kind), (q.codes, q.absmax), strict=True)
    )
    found = np.asarray(dequantize(q, dims, "float32"))
    np.testing.assert_array_equal(found, gather_dequantized(q, dims, "float32", Placement()))
    if kind == "int8":
        assert q.codes.dtype == jnp.int8
        inputs = {"heads": (0, 1), "experts": (1,)}.get(dims[0], (0,))
        largest = np.abs(w).max(inputs, keepdims=True)
        allowed = largest / 254
    else:
        assert q.codes.dtype == jnp.uint8
        assert q.codes.size == w.size // 2
        axis, block = block_axis(dims, shape)
        moved = np.moveaxis(w, axis, -1)
        groups = moved.reshape(*moved.shape[:-1], -1, block)
        largest = np.abs(groups).max(-1, keepdims=True)
        nearest = NF4[np.abs(groups[..., None] - NF4 * largest[..., None]).argmin(-1)] * largest
        expected = np.moveaxis(nearest.reshape(moved.shape), -1, axis)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        allowed = np.max(np.diff(NF4)) / 2 * np.abs(w).max()
    assert np.all(np.abs(found - w) <= allowed + 1e-6)
    assert np.all(found[..., 0] == 0)


def test_blocks_divide_a_dim_that_is_whole_in_use():
    assert block_axis(("embed", "heads", "head_dim"), (576, 9, 64)) == (-1, 64)
    assert block_axis(("embed", "mlp"), (576, 1536)) == (-2, 64)
    assert block_axis(("mlp", "embed"), (1536, 96)) == (-1, 32)
    with pytest.raises(
        UserError, match=r"adapter.base=nf4: a weight .* has no even dim to divide into blocks"
    ):
        block_axis(("embed", "mlp"), (33, 64))
