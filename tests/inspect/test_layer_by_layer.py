"""What is recorded layer by layer is what the model computes: its logits, its kernels' outputs, its experts,
under any layout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.inspect import layer_by_layer
from llm_jax.inspect.attention import apply_weights, attention_weights
from llm_jax.inspect.layer_by_layer import LayerByLayer
from llm_jax.inspect.logit_lens import Readout
from llm_jax.model.config import LatentConfig, ModelConfig, MoEConfig, RopeScaling
from llm_jax.model.kernels import find_kernel
from llm_jax.pretrained.model import open_model
from tests.huggingface.expected import FIXTURES, TOLERANCE
from tests.inspect.conftest import SMALL, logits_of, opened_with

TOKENS = np.random.default_rng(1).integers(0, 96, (8, 24))
MOE = MoEConfig(experts=4, top_k=2, mlp=32, dense_layers=(0,))
MODELS = {
    "grouped": SMALL,
    "window": dataclasses.replace(
        SMALL, window=5, qk_norm="head",
        rope_scaling=RopeScaling(kind="yarn", factor=4, original_positions=16),
    ),
    "gpt2": ModelConfig(
        layers=2, embed=32, heads=4, mlp=48, vocab=96, norm="layer", activation="gelu",
        bias_qkv=True, bias_out=True, bias_mlp=True, position="learned", positions=24,
    ),
    "norms after": dataclasses.replace(
        SMALL, norm_placement="after", qk_norm="projection", scan_layers=False, tied_embeddings=False,
    ),
    "experts": dataclasses.replace(SMALL, layers=3, moe=MOE),
    "gemma": dataclasses.replace(
        SMALL, layers=3, norm_placement="both", norm_centred=True, embedding_scale=32**0.5,
        window=5, window_layers=(0, 2), rope_theta_window=100.0,
        attention_scale=0.5, attention_softcap=2.0, logit_softcap=5.0,
    ),
    "neox": dataclasses.replace(
        SMALL, norm="layer", parallel_blocks=True, rope_fraction=0.5, bias_qkv=True, attention="blocked",
    ),
    "latent": dataclasses.replace(
        SMALL, kv_heads=4, head_dim=12, attention_scale=0.4,
        latent=LatentConfig(query_rank=16, kv_rank=12, nope_dim=8, rope_dim=4, value_dim=6),
    ),
    "sigmoid experts": dataclasses.replace(
        SMALL,
        moe=MoEConfig(
            experts=8, top_k=2, mlp=32, shared_mlp=32, scores="sigmoid", bias=True, groups=4, top_groups=2
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_is_recorded_is_what_the_model_computes(name, monkeypatch):
    """The logits are those of the forward pass; the attention weights, with each layer's window, reproduce
    the output of the kernels."""
    errors = []

    def capture_and_compare(block):
        captured, kernel = capture(block), block.attention.attend

        def attend(q, k, v, segments):
            out = kernel(q, k, v, segments)
            mine = apply_weights(attention_weights(q, k, block.attention.config, block.attention.window), v)
            jax.debug.callback(
                lambda e: errors.append(float(e)), jnp.abs(mine - out).max() / jnp.abs(out).max()
            )
            return out

        block.attention.attend = attend
        return captured

    capture = layer_by_layer.capture
    monkeypatch.setattr(layer_by_layer, "capture", capture_and_compare)
    opened = opened_with(MODELS[name])
    layers = list(LayerByLayer(opened)(TOKENS))
    assert [layer.number for layer in layers] == list(range(-1, MODELS[name].layers))
    jax.effects_barrier()
    assert len(errors) == MODELS[name].layers
    assert max(errors) < 1e-5  # float32, sums in another order
    logits = np.stack([Readout(opened).all_logits(row) for row in layers[-1].stream])
    want = logits_of(opened, TOKENS)
    np.testing.assert_allclose(
        logits, want, atol=2e-5 * np.abs(want).max(), rtol=0
    )  # float32, compiled in other parts


LAYOUTS = {
    "fsdp_tensor": {"data": 2, "tensor": 2},
    "context_ring": {"data": 2, "context": 4},
    "context_ulysses": {"data": 2, "context": 2},
    "pipeline": {"stage": 2, "data": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_records_what_one_device_does(layout):
    first_row = lambda weights_BHTS: weights_BHTS[0]  # noqa: E731
    tokens = TOKENS[:1, :21]  # neither a multiple of the devices nor of their chunks
    model = dataclasses.replace(SMALL, kv_heads=4)
    one, many = opened_with(model), opened_with(model, layout, LAYOUTS[layout])
    assert many.place.mesh.size > 1
    for a, b in zip(LayerByLayer(one, first_row)(tokens), LayerByLayer(many, first_row)(tokens), strict=True):
        np.testing.assert_allclose(b.stream, a.stream, atol=1e-4, rtol=0)  # float32, sums in another order
        if a.attention is not None:
            np.testing.assert_allclose(b.attention[:, :21, :21], a.attention, atol=1e-4, rtol=0)
    a, b = (
        Readout(opened).all_logits(list(LayerByLayer(opened)(tokens))[-1].stream[0]) for opened in (one, many)
    )
    np.testing.assert_allclose(b, a, atol=1e-4 * np.abs(a).max(), rtol=0)


def test_recorded_experts_are_those_the_router_chose():
    opened = opened_with(MODELS["experts"])
    layers = list(LayerByLayer(opened)(TOKENS))[1:]
    assert [layer.experts is not None for layer in layers] == [False, True, True]
    with jax.set_mesh(opened.place.mesh):
        batch = [
            jax.device_put(a.astype(np.int32), opened.place.sharding(("batch", "sequence"), "compute"))
            for a in (TOKENS, np.arange(24) + 0 * TOKENS)
        ]
        _, routing = jax.jit(lambda p, t, at: opened.program.model(p).stream(t, at, None))(
            opened.parameters, *batch
        )
    for layer, load_E in zip(layers[1:], np.asarray(routing.load_PE).sum(1), strict=True):
        np.testing.assert_array_equal(
            np.bincount(layer.experts.reshape(-1), minlength=4), load_E
        )  # as the model itself counts them
        np.testing.assert_allclose(layer.shares.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("kernel", ["xla", "blocked"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_attention_weights_sum_to_one_and_give_the_kernels_output(kernel, window, packed, softcap):
    config = dataclasses.replace(SMALL, window=window, attention=kernel, attention_softcap=softcap).resolved()
    random = np.random.default_rng(2)
    q, k, v = (jnp.asarray(random.normal(0, 1, (2, 16, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    segments = jnp.asarray([[1] * 6 + [2] * 10, [1] * 16]) if packed else None
    weights = attention_weights(q, k, config, window, segments)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=2e-6)
    assert float(jnp.triu(weights, 1).max()) == 0
    np.testing.assert_allclose(
        apply_weights(weights, v), find_kernel(kernel).attend(q, k, v, segments, config), atol=2e-6
    )


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma2"])
def test_layer_by_layer_a_loaded_model_computes_what_transformers_does(family):
    expected = np.load(FIXTURES / family / "expected.npz")
    opened = open_model(FIXTURES / family, dtype="float32")
    last = list(LayerByLayer(opened)(expected["full_input_ids"]))[-1]
    logits = np.stack([Readout(opened).all_logits(row) for row in last.stream])
    assert np.abs(logits - expected["full_logits"]).max() < TOLERANCE
