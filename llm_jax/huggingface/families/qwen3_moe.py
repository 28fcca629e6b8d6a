"""Qwen 3 MoE: a mixture of experts in all layers, or in all but some that the config.json names."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import (
    BUFFERS,
    GATED_ACTIVATION_NAMES,
    GATED_ACTIVATIONS,
    attention,
    attention_bias,
    block_norms,
    embedding_and_head,
    experts,
    feed_forward,
    llama_keys,
)  # fmt: skip
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.family import Family, Key, Tree
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

KEYS = (
    *llama_keys(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=24,
        num_key_value_heads=4,
        max_position_embeddings=32768,
    ),
    Key("num_experts", "moe.experts", 128, aliases=("num_local_experts",)),
    Key("num_experts_per_tok", "moe.top_k", 8),
    Key("moe_intermediate_size", "moe.mlp", 768),
    Key("norm_topk_prob", "moe.normalise", False),
)


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    rope = read_rope(reader, positions=values["positions"])
    only, every = reader.array("mlp_only_layers") or [], reader.positive("decoder_sparse_step", 1)
    dense = tuple(layer for layer in range(values["layers"]) if layer in only or (layer + 1) % every)
    none = len(dense) == values["layers"] or not values["moe.experts"]
    window, slides = reader.take("sliding_window", 4096), reader.take("use_sliding_window", False)
    reader.take("max_window_layers", None)  # in files on the Hub; transformers ignores it
    return {
        **rope,
        **attention_bias(reader),
        **({"moe.experts": 0} if none else {"moe.dense_layers": dense}),
        "window": window if slides else None,
        "qk_norm": "head",
        "activation": reader.choice("hidden_act", GATED_ACTIVATIONS, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        "attention_bias": model.bias_qkv,
        "mlp_only_layers": list(model.moe.dense_layers),
        "decoder_sparse_step": 1,
        "use_sliding_window": model.window is not None,
        "sliding_window": model.window,
        "hidden_act": GATED_ACTIVATION_NAMES.get(model.activation, "silu"),
    }


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    return [
        *embedding_and_head(),
        *block_norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention(),
        *feed_forward(),
        *experts("mlp", "gate_proj", "up_proj", "down_proj"),
    ]


FAMILY = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    KEYS,
    read,
    write,
    tensors,
    classifier="Qwen3MoeForSequenceClassification",
    rank=70,
    buffers=BUFFERS,
    prefix="model.",
)
