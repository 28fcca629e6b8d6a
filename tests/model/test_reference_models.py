"""By configuration alone the transformer is GPT-2, Llama 3, Mistral, Qwen 3, dense and with experts, and OLMo 2.

Compared with logits that Hugging Face transformers computed (float32, random weights, tiny sizes).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm_jax.model.config import ModelConfig, MoEConfig, RopeScaling
from llm_jax.model.transformer import Transformer

# Reference float32 logits differ from their own float64 ones by up to 3e-5, at a standard deviation of 1.7 to 4.2.
TOLERANCE = 1e-4


def config_of(family: str, c: dict) -> ModelConfig:
    if family == "gpt2":
        return ModelConfig(
            layers=c["n_layer"], embed=c["n_embd"], heads=c["n_head"], mlp=c["n_inner"], vocab=c["vocab_size"], norm="layer",
            norm_epsilon=c["layer_norm_epsilon"], activation="gelu", bias_qkv=True, bias_out=True, bias_mlp=True,
            position="learned", positions=c["n_positions"],
        )  # fmt: skip
    scaling = RopeScaling()
    if s := c.get("rope_scaling"):
        scaling = RopeScaling(
            kind=s["rope_type"], factor=s["factor"], original_positions=s["original_max_position_embeddings"],
            low_frequency_factor=s.get("low_freq_factor", 1.0), high_frequency_factor=s.get("high_freq_factor", 4.0),
        )  # fmt: skip
    return ModelConfig(
        layers=c["num_hidden_layers"], embed=c["hidden_size"], heads=c["num_attention_heads"], kv_heads=c["num_key_value_heads"],
        head_dim=c.get("head_dim"), mlp=c["intermediate_size"], vocab=c["vocab_size"], norm_epsilon=c["rms_norm_eps"],
        rope_theta=c["rope_theta"], rope_scaling=scaling, window=c.get("sliding_window"), tied_embeddings=False,
        norm_placement="after" if family == "olmo2" else "before",
        qk_norm={"olmo2": "projection", "qwen3": "head", "qwen3_moe": "head"}.get(family, "none"),
        moe=MoEConfig(
            experts=c["num_experts"], top_k=c["num_experts_per_tok"], mlp=c["moe_intermediate_size"], normalise=c["norm_topk_prob"],
            dense_layers=tuple(c["mlp_only_layers"]),
        ) if family == "qwen3_moe" else MoEConfig(),
    )  # fmt: skip


def weights_of(family: str, w: dict[str, np.ndarray], c: ModelConfig) -> dict:
    """Their weights under our names and in our shapes."""
    D, H, G, K, L = c.embed, c.heads, c.kv_heads, c.head_dim, range(c.layers)
    stack = lambda name, f: np.stack([f(w[name.format(i)]) for i in L])  # noqa: E731
    same = lambda x: x  # noqa: E731
    if family == "gpt2":
        part = lambda i, shape: lambda x: np.split(x, 3, -1)[i].reshape(shape)  # noqa: E731
        h = "transformer.h.{}."
        attention = {n: stack(h + "attn.c_attn.weight", part(i, (D, H, K))) for i, n in enumerate(("query", "key", "value"))}
        attention |= {f"{n}_bias": stack(h + "attn.c_attn.bias", part(i, (H, K))) for i, n in enumerate(("query", "key", "value"))}
        attention |= {"out": stack(h + "attn.c_proj.weight", lambda x: x.reshape(H, K, D)), "out_bias": stack(h + "attn.c_proj.bias", same)}
        mlp = {
            "up": stack(h + "mlp.c_fc.weight", same), "up_bias": stack(h + "mlp.c_fc.bias", same),
            "down": stack(h + "mlp.c_proj.weight", same), "down_bias": stack(h + "mlp.c_proj.bias", same),
        }  # fmt: skip
        norm = lambda name, f=stack: {"scale": f(name + ".weight", same), "bias": f(name + ".bias", same)}  # noqa: E731
        return {
            "embedding": w["transformer.wte.weight"], "positions": w["transformer.wpe.weight"],
            "final_norm": norm("transformer.ln_f", lambda n, f: w[n]),
            "blocks": {"attention": attention, "mlp": mlp, "attention_norm": norm(h + "ln_1"), "mlp_norm": norm(h + "ln_2")},
        }  # fmt: skip
    if c.sparse_layers:
        return sparse_weights_of(w, c)
    m = "model.layers.{}."
    attention = {
        "query": stack(m + "self_attn.q_proj.weight", lambda x: x.T.reshape(D, H, K)),
        "key": stack(m + "self_attn.k_proj.weight", lambda x: x.T.reshape(D, G, K)),
        "value": stack(m + "self_attn.v_proj.weight", lambda x: x.T.reshape(D, G, K)),
        "out": stack(m + "self_attn.o_proj.weight", lambda x: x.T.reshape(H, K, D)),
    }
    if c.qk_norm != "none":
        shapes = [(K,), (K,)] if c.qk_norm == "head" else [(H, K), (G, K)]
        attention["query_norm"] = {"scale": stack(m + "self_attn.q_norm.weight", lambda x: x.reshape(shapes[0]))}
        attention["key_norm"] = {"scale": stack(m + "self_attn.k_norm.weight", lambda x: x.reshape(shapes[1]))}
    first, second = (
        ("post_attention_layernorm", "post_feedforward_layernorm") if family == "olmo2" else ("input_layernorm", "post_attention_layernorm")
    )
    return {
        "embedding": w["model.embed_tokens.weight"], "head": w["lm_head.weight"], "final_norm": {"scale": w["model.norm.weight"]},
        "blocks": {
            "attention": attention,
            "attention_norm": {"scale": stack(m + first + ".weight", same)},
            "mlp_norm": {"scale": stack(m + second + ".weight", same)},
            "mlp": {n: stack(m + f"mlp.{n}_proj.weight", np.transpose) for n in ("gate", "up", "down")},
        },
    }  # fmt: skip


def sparse_weights_of(w: dict[str, np.ndarray], c: ModelConfig) -> dict:
    """Two stacks: the layers with experts, and those without."""
    parts = {}
    for name, layers in (("blocks", c.sparse_layers), ("dense_blocks", c.moe.dense_layers)):
        own = {key: value for key, value in w.items() if not key.startswith("model.layers.")}
        for i, layer in enumerate(layers):
            old, new = f"model.layers.{layer}.", f"model.layers.{i}."
            own |= {new + key.removeprefix(old): value for key, value in w.items() if key.startswith(old)}
            for part in ("gate", "up", "down") if name == "blocks" else ():
                experts = [own[f"{new}mlp.experts.{e}.{part}_proj.weight"] for e in range(c.moe.experts)]
                own[f"{new}mlp.{part}_proj.weight"] = np.stack(experts).transpose(0, 2, 1).T  # weights_of turns it once more
        stack = dataclasses.replace(c, layers=len(layers), moe=MoEConfig())
        parts[name] = weights_of("qwen3", own, stack)
        if name == "blocks":
            parts[name]["blocks"]["mlp"]["router"] = np.stack([w[f"model.layers.{i}.mlp.gate.weight"].T for i in layers])
    return {**parts["blocks"], "dense_blocks": parts["dense_blocks"]["blocks"]}


@pytest.fixture(params=["gpt2", "llama", "mistral", "qwen3", "qwen3_moe", "olmo2"])
def reference(request, shared):
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is in the dev extra")
    folder: Path = shared / "huggingface" / "reference" / request.param
    config = config_of(request.param, json.loads((folder / "config.hub.json").read_text())).resolved()
    model = Transformer(config, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    weights = weights_of(request.param, safetensors.load_file(folder / "model.safetensors"), config)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, weights))
    nnx.update(model, state)
    return model, np.load(folder / "ref.npz")


def test_logits_equal_those_of_hugging_face(reference):
    model, expected = reference
    logits = model(jnp.asarray(expected["full_input_ids"]))
    np.testing.assert_allclose(logits, expected["full_logits"], atol=TOLERANCE, rtol=0)


def test_packed_documents_equal_each_document_alone_in_hugging_face(reference):
    model, expected = reference
    logits = model(
        jnp.asarray(expected["packed_input_ids"]),
        positions=jnp.asarray(expected["packed_position_ids"]),
        segments=jnp.asarray(expected["packed_segment_ids"]),
    )
    np.testing.assert_allclose(logits, expected["packed_logits"], atol=TOLERANCE, rtol=0)
