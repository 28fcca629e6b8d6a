"""The features of open families, each by itself and all together: logits and gradients equal the papers'
formulas in float64."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm_jax.core.errors import UserError
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model import transformer
from llm_jax.model.config import LatentConfig, ModelConfig, MoEConfig, RopeScaling
from llm_jax.model.transformer import Transformer, as_scans
from tests.plain_model import plain_logits

TOLERANCE = 2e-5
"""Relative to the largest number: float32's rounding, 6e-8, over a few layers with sums of some ten
numbers."""
SMALL = ModelConfig(layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=24, vocab=40)
LATENT = LatentConfig(query_rank=12, kv_rank=8, nope_dim=6, rope_dim=4, value_dim=7)
MLA: dict[str, Any] = {"latent": LATENT, "kv_heads": None, "head_dim": None}
YARN = RopeScaling(kind="yarn", factor=4, original_positions=16, attention_factor=1.3)
GEMMA3: dict[str, Any] = {
    "layers": 5, "norm_placement": "both", "norm_centred": True, "qk_norm": "head", "embedding_scale": 4.0, "attention_scale": 0.2, "window": 5,
    "window_layers": (0, 2, 4), "rope_theta_window": 100.0, "rope_scaling": RopeScaling(kind="linear", factor=8),
}  # fmt: skip

FEATURES: dict[str, dict[str, Any]] = {
    "norms before and after": {"norm_placement": "both"},
    "centred norms": {"norm_centred": True, "qk_norm": "head"},
    "parallel blocks": {"parallel_blocks": True},
    "attention scale": {"attention_scale": 0.9},
    "scaled embedding": {"embedding_scale": 4.0},
    "a quarter rotated": {"rope_fraction": 0.25},
    "linear rope scaling": {"rope_scaling": RopeScaling(kind="linear", factor=4)},
    "yarn with a factor of its own": {"rope_scaling": YARN},
    "soft cap": {"attention_softcap": 0.5},
    "soft cap, in blocks": {"attention_softcap": 0.5, "attention": "blocked", "window": 9},
    "windows in some layers, in blocks": {"layers": 4, "window": 4, "window_layers": (2, 3), "attention": "blocked"},
    "another base in windows": {"window": 4, "window_layers": (1,), "rope_theta_window": 50.0, "rope_scaling": YARN},
    "yarn to the fraction of a pair": {"rope_scaling": dataclasses.replace(YARN, beta_fast=2.0, beta_slow=0.001, truncate=False)},
    "latent attention": {**MLA, "bias_qkv": True},
    "latent attention, queries from the stream": {**MLA, "latent": dataclasses.replace(LATENT, query_rank=0), "attention": "blocked"},
    "latent attention like DeepSeek's": {**MLA, "rope_scaling": YARN, "attention_scale": 0.5, "window": 6, "attention_softcap": 3.0},
    "Gemma 3, unrolled, remat": {**GEMMA3, "scan_layers": False, "remat": "full"},
    "Gemma 3, remat": {**GEMMA3, "remat": "attention,mlp_up"},
}  # fmt: skip


def tokens_and_segments() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    segments = np.ones((2, 24), np.int32)
    segments[0] += np.arange(24) >= 15
    return rng.integers(0, 40, (2, 24)), segments


def random_weights(model: Transformer) -> dict:
    """Random weights of the model, norms and biases too, so that each has an effect."""
    leaves, structure = jax.tree.flatten(nnx.to_pure_dict(nnx.state(model)))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        structure, [0.3 * rng.normal(size=x.shape).astype(np.float32) + (x == 1) for x in leaves]
    )


def with_weights(model: Transformer, weights: dict) -> Transformer:
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


def score(logits: jax.Array) -> jax.Array:
    """A number that depends on each logit with another weight."""
    return jnp.sum(jnp.sin(logits + jnp.arange(logits.shape[-1])))


def ours(config: ModelConfig) -> tuple[dict, jax.Array, dict]:
    """(weights, logits, gradients of `score`) of the model."""
    tokens, segments = tokens_and_segments()
    model = Transformer(config, rngs=nnx.Rngs(0))
    weights = random_weights(model)

    def run(weights):
        logits = with_weights(model, weights)(tokens, segments=segments)
        return score(logits), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(weights)
    return weights, logits, gradients


def assert_close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * float(np.abs(theirs).max()))


@pytest.mark.parametrize("feature", FEATURES)
def test_logits_and_gradients_equal_the_formula_in_float64(feature):
    config = dataclasses.replace(SMALL, **FEATURES[feature]).resolved()
    weights, logits, gradients = ours(config)
    tokens, segments = tokens_and_segments()
    with jax.enable_x64(True):
        run = lambda w, c=config: (score(logits := plain_logits(c, w, tokens, segments)), logits)  # noqa: E731
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), weights)
        (_, expected), slopes = jax.jit(jax.value_and_grad(run, has_aux=True))(wide)
    assert_close(logits, expected)
    # a gradient is a sum of many numbers of both signs, and a deep model's weights at random give large ones
    assert_close(gradients, slopes, 20 * TOLERANCE)


PLAIN = {
    "norm_placement": "before", "norm_centred": False, "parallel_blocks": False, "attention_scale": None, "embedding_scale": 1.0,
    "rope_fraction": 1.0, "rope_scaling": RopeScaling(), "attention_softcap": 0.0, "window_layers": None, "rope_theta_window": None,
}  # fmt: skip


@pytest.mark.parametrize("key", PLAIN)
def test_each_feature_changes_the_logits(key):
    """Comparing with the formula would not notice a feature that both sides lack."""
    tokens, _ = tokens_and_segments()
    with_it = {
        **GEMMA3, "layers": 3, "window_layers": (0, 1), "parallel_blocks": True, "rope_fraction": 0.5, "attention_softcap": 0.5,
    }  # fmt: skip
    config = dataclasses.replace(SMALL, **with_it).resolved()
    other = dataclasses.replace(config, **{key: PLAIN[key]}).resolved()
    weights = random_weights(Transformer(config, rngs=nnx.Rngs(0)))
    model, without = (Transformer(c, rngs=nnx.Rngs(0)) for c in (config, other))
    fewer = jax.tree.map(lambda path: path, weights)
    if key == "norm_placement":
        fewer["blocks"] = {name: w for name, w in weights["blocks"].items() if "_out_" not in name}
    run = jax.jit(lambda: with_weights(model, weights)(tokens) - with_weights(without, fewer)(tokens))
    difference = run()
    assert np.abs(difference).max() > 0.01


def test_layers_in_order_are_the_model():
    config = dataclasses.replace(
        SMALL, **{**GEMMA3, "moe": MoEConfig(experts=4, dense_layers=(0, 1))}
    ).resolved()
    tokens, segments = tokens_and_segments()
    model = Transformer(config, rngs=nnx.Rngs(0))
    model = with_weights(model, random_weights(model))
    positions = jnp.broadcast_to(jnp.arange(24), (2, 24))
    seen = []

    @jax.jit
    def one_by_one():
        x = model.embed(jnp.asarray(tokens), positions)
        for number, block, window in model.layers_in_order():
            rope = block.attention.rope(positions)
            x, _ = block(x, functools.partial(block.attention, rope=rope, segments_BT=jnp.asarray(segments)))
            seen.append((number, window, type(block.mlp).__name__))
        return model.logits(model.finish(x))

    assert_close(one_by_one(), jax.jit(lambda: model(tokens, segments=segments))())
    assert seen == [(i, (5, None)[i % 2], "FeedForward" if i < 2 else "MoE") for i in range(5)]


def test_a_scan_over_periods_computes_and_counts_what_unrolled_layers_do():
    """Also the routing of a mixture of experts, which is stacked by layer."""
    tokens, segments = tokens_and_segments()
    found = []
    for scan in (True, False):
        more = {
            "layers": 5,
            "window": 4,
            "window_layers": (0, 2, 4),
            "scan_layers": scan,
            "moe": MoEConfig(experts=4),
        }
        model = Transformer(dataclasses.replace(SMALL, **more).resolved(), rngs=nnx.Rngs(0))
        model = with_weights(model, random_weights(model))
        positions = jnp.broadcast_to(jnp.arange(24), (2, 24))
        found.append(
            jax.jit(lambda m=model, p=positions: m.stream(jnp.asarray(tokens), p, jnp.asarray(segments)))()
        )
    assert found[0][1].load_PE.shape[0] == 5
    assert_close(found[0], found[1])


def test_the_program_of_a_period_does_not_grow_with_the_layers():
    def products(layers: int) -> int:
        more = {"layers": layers, "window": 4, "window_layers": tuple(range(0, layers, 2))}
        model = Transformer(dataclasses.replace(SMALL, **more).resolved(), rngs=nnx.Rngs(0))
        return str(jax.make_jaxpr(lambda t: model(t))(tokens_and_segments()[0])).count("dot_general")

    assert products(12) == products(4)


@pytest.mark.parametrize(
    ("kinds", "scans"),
    [
        ("aaaa", [(4, "a")]),
        ("a", [(1, "a")]),
        ("ababa", [(2, "ab"), (1, "a")]),
        ("aabaabaa", [(2, "aab"), (2, "a")]),
        ("aabbb", [(2, "a"), (3, "b")]),
    ],
)
def test_a_sequence_of_kinds_as_scans(kinds, scans):
    assert as_scans(kinds) == scans


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "window_layers": (
        {"window_layers": (0,)},
        "model.window_layers=(0,): must be null where model.window is null",
    ),
    "no such layer": (
        {"window": 4, "window_layers": (2,)},
        "model.window_layers=(2,): must be layers from 0 to 1",
    ),
    "rope_theta_window": (
        {"rope_theta_window": 1e4},
        "model.rope_theta_window=10000.0: must be null where model.window is null",
    ),
    "norm_centred": (
        {"norm": "layer", "norm_centred": True},
        "model.norm_centred=True: must be false with model.norm=layer",
    ),
    "rope_fraction": (
        {"rope_fraction": 0.4},
        "model.rope_fraction=0.4: must be a part of model.head_dim=8 that is an even number",
    ),
    "attention_factor": (
        {"rope_scaling": RopeScaling(attention_factor=1.0)},
        "model.rope_scaling.attention_factor=1.0: must be null with kind=none",
    ),
    "truncate": (
        {"rope_scaling": RopeScaling(truncate=False)},
        "model.rope_scaling.truncate=False: must be true with kind=none",
    ),
    "latent without a rank": (
        {"latent": LatentConfig(rope_dim=4)},
        "model.latent.rope_dim=4: must be 0 where model.latent.kv_rank=0",
    ),
    "latent, grouped": ({**MLA, "kv_heads": 2}, "model.kv_heads=2: must be model.heads=4 with model.latent"),
    "latent, head_dim": (
        {**MLA, "head_dim": 8},
        "model.head_dim=8: must be model.latent's nope_dim + rope_dim = 10",
    ),
    "latent, norms": ({**MLA, "qk_norm": "head"}, "model.qk_norm=head: must be none with model.latent"),
    "wide values": (
        {**MLA, "latent": dataclasses.replace(LATENT, value_dim=11)},
        "model.latent.value_dim=11: must be at most",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_impossible_model_is_refused_in_a_line(mistake):
    change, line = MISTAKES[mistake]
    with pytest.raises(
        UserError, match="^" + line.replace("(", r"\(").replace(")", r"\)").replace("+", r"\+")
    ):
        dataclasses.replace(SMALL, **change).resolved()


REFUSED: dict[str, tuple[str, dict[str, int], dict[str, Any], str]] = {
    "soft cap, split sequence": (
        "context_ring",
        {},
        {"attention_softcap": 5.0},
        "model.attention_softcap=5: there is none over a sequence",
    ),
    "windows, stages": (
        "pipeline",
        {"stage": 2},
        {"layers": 4, "window": 4, "window_layers": (0, 1)},
        r"model.window_layers=\(0, 1\): the layout's",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_a_layout_cannot_run_is_refused_in_a_line(case):
    name, mesh, change, line = REFUSED[case]
    layout = preset(name)
    with pytest.raises(UserError, match="^" + line):
        transformer.check(
            dataclasses.replace(SMALL, **change).resolved(),
            MeshPlacement(layout, make_mesh(layout, mesh)),
            32,
        )


def test_the_fused_kernel_has_no_soft_cap(monkeypatch):
    monkeypatch.setattr("llm_jax.model.kernels.cudnn.check_platform", lambda *_: None)
    with pytest.raises(
        UserError, match=r"^model.attention_softcap=5: attention=cudnn has none; use model.attention=blocked"
    ):
        transformer.check(
            dataclasses.replace(SMALL, attention="cudnn", attention_softcap=5.0).resolved(),
            transformer.Placement(),
            32,
        )
