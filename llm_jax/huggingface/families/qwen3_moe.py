"""Qwen 3 with a mixture of experts in all layers but some."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import (
    BUFFERS,
    GATED,
    GATED_NAMES,
    attention,
    attention_bias,
    block_norms,
    ends,
    experts,
    feed_forward,
    llama_keys,
)  # fmt: skip
from llm_jax.huggingface.config_reader import Keys
from llm_jax.huggingface.family import Family, Key, Tree
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

KEYS = (
    *llama_keys(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=24, num_key_value_heads=4, max_position_embeddings=32768
    ),
    Key("num_experts", "moe.experts", 128, also=("num_local_experts",)),
    Key("num_experts_per_tok", "moe.top_k", 8),
    Key("moe_intermediate_size", "moe.mlp", 768),
    Key("norm_topk_prob", "moe.normalise", False),
)


def read(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    rope = read_rope(keys, positions=values["positions"])
    only, every = keys.array("mlp_only_layers") or [], keys.above_zero("decoder_sparse_step", 1)
    dense = tuple(layer for layer in range(values["layers"]) if layer in only or (layer + 1) % every)
    none = len(dense) == values["layers"] or not values["moe.experts"]
    window, slides = keys.take("sliding_window", 4096), keys.take("use_sliding_window", False)
    keys.take("max_window_layers", None)  # in files on the Hub; this family's code never looks at it
    return {
        **rope,
        **attention_bias(keys),
        **({"moe.experts": 0} if none else {"moe.dense_layers": dense}),
        "window": window if slides else None,
        "qk_norm": "head",
        "activation": keys.choice("hidden_act", GATED, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        "attention_bias": model.bias_qkv,
        "mlp_only_layers": list(model.moe.dense_layers),
        "decoder_sparse_step": 1,
        "use_sliding_window": model.window is not None,
        "sliding_window": model.window,
        "hidden_act": GATED_NAMES.get(model.activation, "silu"),
    }


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    return [
        *ends(),
        *block_norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention(),
        *feed_forward(),
        *experts("mlp", "gate_proj", "up_proj", "down_proj"),
    ]


FAMILY = Family("qwen3_moe", "Qwen3MoeForCausalLM", KEYS, read, write, tensors, BUFFERS, "model.")
