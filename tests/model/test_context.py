"""Attention of a sequence that is split over devices, by every schedule and kernel, equals dense attention in
float64, forward and backward."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm_jax.core.errors import UserError
from llm_jax.layout.layout import Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS, TENSOR
from llm_jax.model import attention
from llm_jax.model import attention_context as context
from llm_jax.model.attention import Attention
from llm_jax.model.config import ModelConfig
from llm_jax.model.kernels import blocked, cudnn
from llm_jax.model.transformer import Transformer
from tests.cudnn_contract import kernel_by_contract
from tests.dense_attention import dense_float64

# float32 against float64: sums of up to 64 products of numbers of size 1, each rounded to 6e-8
TOLERANCE = 2e-5
B, T, K = 2, 64, 8

SPLIT = {"batch": "data", "sequence": "context"}
RING = {"keys": "context"}
LAYOUTS = {
    "gather": Layout("gather", {"data": 2, "context": 4}, SPLIT),
    "ring": Layout("ring", {"data": 2, "context": 4}, SPLIT, attention=RING),
    "ring of two": Layout("ring of two", {"data": 2, "context": 2}, SPLIT, attention=RING),
    "ring of eight": Layout("ring of eight", {"context": 8}, {"sequence": "context"}, attention=RING),
    "all-to-all": Layout(
        "all-to-all",
        {"data": 2, "context": 4},
        SPLIT,
        attention={"sequence": "", "heads": "context", "kv_heads": "context"},
    ),
    "ring over tensor": Layout(
        "ring over tensor", {"context": 2, "tensor": 4}, {"sequence": "context"} | TENSOR, attention=RING
    ),
    "ring and all-to-all": Layout(
        "ring and all-to-all",
        {"ring": 2, "all": 2, "tensor": 2},
        {"sequence": "ring,all"} | TENSOR,
        attention={"sequence": "ring", "keys": "ring", "heads": "tensor,all", "kv_heads": "tensor,all"},
    ),
    "tensor": Layout("tensor", {"tensor": 4}, TENSOR),
}
UNEQUAL = ("ring over tensor", "ring and all-to-all", "tensor", "all-to-all")
"""Layouts that split the query heads into more parts than there are key/value heads."""


def placement(layout: Layout) -> MeshPlacement:
    return MeshPlacement(layout, make_mesh(layout, {}))


def inputs(heads: int, kv_heads: int, packed: bool, length: int = T):
    """(q, k, v, dout, segments): some documents span several chunks, some end at a chunk's edge, one row has
    padding."""
    rng = np.random.default_rng(length + heads)
    q, k, v, dout = (rng.normal(size=(B, length, n, K)) for n in (heads, kv_heads, kv_heads, heads))
    segments = np.ones((B, length), np.int32)
    segments[0] += np.cumsum(np.isin(np.arange(length), (3, 4, length // 4, length // 2 + 5)))
    segments[1, -length // 8 :] = 0
    return q, k, v, dout, segments if packed else None


def split_attention(place: MeshPlacement, config: ModelConfig, q, k, v, dout, segments) -> list[np.ndarray]:
    """(output, gradients of q, k, v) of `Attention.attend`, in the natural order of positions."""
    module = nnx.eval_shape(lambda: Attention(config, nnx.Rngs(0), None, place))

    def attend(q, k, v):
        return context.restore(
            module.attend(*(context.arrange(x, place) for x in (q, k, v)), segments), place
        )

    @jax.jit
    def run(q, k, v, dout):
        out, pull = jax.vjp(attend, q, k, v)
        return (out, *pull(jax.sharding.reshard(dout, jax.typeof(out).sharding)))

    dtype = jnp.dtype(config.compute_dtype)
    with jax.set_mesh(place.mesh):
        return [np.asarray(x, np.float32) for x in run(*(jnp.asarray(x, dtype) for x in (q, k, v, dout)))]


def settings(kernel: str, window: int | None, heads: int = 4, kv_heads: int = 2, **more) -> ModelConfig:
    return ModelConfig(
        embed=8,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=K,
        mlp=8,
        vocab=8,
        attention=kernel,
        window=window,
        **more,
    ).resolved()  # type: ignore[arg-type]


def compare(name: str, kernel: str, packed: bool, window: int | None) -> None:
    heads, kv_heads = (8, 2) if name in UNEQUAL else (4, 2)
    q, k, v, dout, segments = inputs(heads, kv_heads, packed)
    expected = dense_float64(q, k, v, dout, segments, window)
    found = split_attention(
        placement(LAYOUTS[name]), settings(kernel, window, heads, kv_heads), q, k, v, dout, segments
    )
    for which, ours, theirs in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE, err_msg=which)


@pytest.mark.parametrize(
    ("packed", "window"), [(True, None), (True, 11), pytest.param(False, 3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_output_and_gradients_equal_dense_float64(name, packed, window):
    compare(name, "xla", packed, window)


@pytest.mark.parametrize(("packed", "window"), [(True, 20), (False, None)])
@pytest.mark.parametrize("name", ["gather", "ring"])
def test_blocks_of_queries_equal_dense_float64(monkeypatch, name, packed, window):
    monkeypatch.setattr(blocked, "LEAST_BLOCK", 3)  # three blocks a chunk of 8
    compare(name, "blocked", packed, window)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["gather", "ring", "ring of two"])
def test_operands_for_cudnn_give_the_right_attention(monkeypatch, name, packed):
    """The kernel is replaced by a NumPy model of its contract: everything but the kernel itself is tested."""
    kernel_by_contract(monkeypatch)
    monkeypatch.setattr(cudnn, "check_platform", lambda *_: None)
    q, k, v, dout, segments = inputs(4, 2, packed)
    expected = dense_float64(
        *(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (q, k, v, dout)), segments, None
    )
    config = settings("cudnn", None, compute_dtype="bfloat16", max_segments=6)
    found = split_attention(placement(LAYOUTS[name]), config, q, k, v, dout, segments)
    # bfloat16 has 8 bits: 2**-8 of each tensor's scale, times a few for sums of rounded products
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


# --- the order of positions ---


@pytest.mark.parametrize("P", [2, 3, 4])
def test_each_part_has_an_early_chunk_and_the_late_one_that_evens_it_out(P):
    x = jnp.arange(2 * P)[None].repeat(3, 1)  # chunks of three positions, each with its number
    order = context.zigzag(x, P)
    assert order.reshape(P, 2, 3)[:, :, 0].tolist() == [[i, 2 * P - 1 - i] for i in range(P)]
    assert (context.unzigzag(order, P) == x).all()


@pytest.mark.parametrize("name", ["gather", "ring", "all-to-all"])
def test_the_library_takes_and_gives_the_natural_order(name):
    config = dataclasses.replace(settings("xla", None), vocab=16, position="learned", positions=T)
    tokens = np.random.default_rng(0).integers(0, 16, (B, T))
    expected = Transformer(config, rngs=nnx.Rngs(0))(jnp.asarray(tokens))
    place = placement(LAYOUTS[name])
    with jax.set_mesh(place.mesh):
        logits = jax.jit(lambda tokens: Transformer(config, rngs=nnx.Rngs(0), place=place)(tokens))(tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-5)  # logits of size 0.1, in float32


# --- work and what is kept ---


def lowered(name: str, gradient: bool, length: int = 1024):
    """One device's attention over a sequence without documents, compiled alone, with 2 heads of 64."""
    place, config = placement(LAYOUTS[name]), dataclasses.replace(settings("xla", None, 2, 2), head_dim=64)
    q = jax.ShapeDtypeStruct(
        (2, length, 2, 64),
        jnp.float32,
        sharding=place.sharding(("batch", "sequence", "heads", "head_dim"), "compute"),
    )
    module = nnx.eval_shape(lambda: Attention(config, nnx.Rngs(0), None, place))

    def attend(q, k, v):
        out, pull = jax.vjp(lambda *x: module.attend(*x, None), q, k, v)
        return pull(out) if gradient else out

    with jax.set_mesh(place.mesh):
        return jax.jit(attend).lower(q, q, q).compile()


@pytest.mark.parametrize(("name", "pairs"), [("ring of two", 2 + 1 + 2), ("gather", 2 + 3 + 7)])
def test_every_device_computes_little_more_than_the_scores_that_causal_attention_needs(name, pairs):
    """pairs: of chunks that are multiplied, each with itself and with those before it (gather: before it on
    some device)."""
    length, chunks = 1024, 2 * LAYOUTS[name].mesh["context"]
    of_all_pairs = 2 * 2 * length**2 * (2 * 64)  # scores, and sums of values
    found = lowered(name, gradient=False, length=length).cost_analysis()["flops"]
    assert found == pytest.approx(of_all_pairs * pairs / chunks**2, rel=0.05)  # and the softmax


# --- what can't be ---


NOT_SPLIT = {"sequence": "", "heads": "context"}


@pytest.mark.parametrize(
    ("layout", "model", "length", "said"),
    [
        ({"attention": {"keys": "data"}}, {}, T, r"layout\.attention\.keys=data: .* split over context=4"),
        (
            {"compute": {}, "attention": {"keys": "context"}},
            {},
            T,
            r"layout\.attention\.keys=context: .* split over nothing",
        ),
        (
            {"compute": {}, "attention": {"sequence": "context"}},
            {},
            T,
            r"layout\.attention\.sequence=context: layout\.compute\.sequence is empty",
        ),
        ({}, {}, 60, r"train\.sequence_length=60: .* 'sequence' over context=4.* not a multiple of 8"),
        ({}, {"softmax_dtype": "bfloat16"}, T, r"model\.softmax_dtype=bfloat16: .*context_ulysses"),
        (
            {"attention": NOT_SPLIT},
            {"heads": 6},
            T,
            r"model\.heads=6: .* 'heads' over context=4, and 6 is not a multiple of 4",
        ),
        (
            {"attention": NOT_SPLIT},
            {"heads": 12, "kv_heads": 6},
            T,
            r"model\.kv_heads=6: .*context=4.* as with 1, 2, 4, 12$",
        ),
        (
            {"attention": {"kv_heads": "context"}, "compute": {}},
            {},
            T,
            r"layout\.attention\.kv_heads=context: .* split over nothing",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(layout, model, length, said):
    place = placement(dataclasses.replace(LAYOUTS["gather"], **layout))
    with pytest.raises(UserError, match=said):
        attention.check(dataclasses.replace(settings("xla", None), **model), place, length)


def test_a_window_with_fused_attention_is_refused_where_the_sequence_is_split(monkeypatch):
    monkeypatch.setattr(cudnn, "check_platform", lambda *_: None)
    with pytest.raises(UserError, match=r"model\.window=8: attention=cudnn .*context_ulysses"):
        attention.check(settings("cudnn", 8), placement(LAYOUTS["ring"]), T)
    attention.check(settings("cudnn", 8), placement(LAYOUTS["all-to-all"]), T)


def test_presets_of_context_parallelism_differ_only_while_they_attend():
    gather, ring, ulysses = (PRESETS[f"context_{kind}"] for kind in ("gather", "ring", "ulysses"))
    for other in (ring, ulysses):
        assert dataclasses.replace(other, name=gather.name, attention={}) == gather
