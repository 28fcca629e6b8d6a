"""Blocked attention against dense attention in float64, forward and backward, and the products with weights
against autodiff's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.model.kernels import blocked
from tests.dense_attention import dense, dense_float64

# float32 against float64: sums of up to 300 products of numbers of size 1, each rounded to 6e-8
TOLERANCE = 2e-5


def inputs(length: int, heads: int, kv_heads: int, packed: bool):
    rng = np.random.default_rng(length)
    q, k, v, dout = (rng.normal(size=(2, length, n, 16)) for n in (heads, kv_heads, kv_heads, heads))
    segments = np.cumsum(rng.random((2, length)) < 0.03, 1).astype(np.int32) if packed else None
    return q, k, v, dout, segments


@pytest.mark.parametrize("window", [None, 1, 50])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("length", [7, 128, 300])
def test_output_and_gradients_equal_dense_float64(length, heads, kv_heads, packed, window):
    q, k, v, dout, segments = inputs(length, heads, kv_heads, packed)
    expected = dense_float64(q, k, v, dout, segments, window)
    q, k, v, dout = (jnp.asarray(x, jnp.float32) for x in (q, k, v, dout))
    out, pull = jax.vjp(lambda q, k, v: blocked.blocked_attention(q, k, v, segments, window), q, k, v)
    for name, ours, theirs in zip(("out", "dq", "dk", "dv"), (out, *pull(dout)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


def test_blocks_cover_every_query_once_and_every_key_that_it_may_see():
    for length, window in ((1, None), (128, None), (1000, None), (1000, 10), (5000, 700)):
        cut = blocked.blocks(length, window)
        assert [i for queries, _ in cut for i in range(length)[queries]] == list(range(length))
        assert len(cut) <= blocked.MOST_BLOCKS
        for queries, keys in cut:
            assert keys.stop == queries.stop
            assert keys.start == (0 if window is None else max(0, queries.start - window + 1))


def test_no_residual_of_the_backward_pass_has_size_sequence_squared():
    q, k, v, _, segments = inputs(300, 4, 2, True)
    _, saved = blocked._forward(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), segments, None, 0.0)
    assert max(x.size for x in jax.tree.leaves(saved)) == q.size


def test_the_scores_of_later_keys_are_not_computed():
    """Blocks compute little more than half of the products."""
    flops = []
    for window in (None, 100):
        x = jnp.ones((1, 2048, 1, 16))
        step = (
            jax.jit(lambda q, window=window: blocked.blocked_attention(q, q, q, None, window))
            .lower(x)
            .compile()
        )
        flops.append(step.cost_analysis()["flops"])
    full = 2 * 2 * 2048**2 * 16
    assert flops[0] < 0.75 * full  # 56 % of the products, and the softmax's own operations
    assert flops[1] < 0.30 * full


def test_bfloat16_stays_bfloat16_and_close():
    q, k, v, _, segments = inputs(300, 4, 2, True)
    out = blocked.blocked_attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), segments, None)
    assert out.dtype == jnp.bfloat16
    expected = dense(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), segments, None)
    # bfloat16 has 8 bits: 0.4 % of values up to 4
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.05)
