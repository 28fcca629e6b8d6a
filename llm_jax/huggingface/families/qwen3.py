"""Qwen 3: Qwen 2's optional window in the upper layers, and norms on each head's queries and keys."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import (
    BUFFERS,
    GATED_ACTIVATION_NAMES,
    GATED_ACTIVATIONS,
    attention_bias,
    llama_keys,
    qwen_window_fields,
    qwen_window_keys,
)
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.families.llama import tensors
from llm_jax.huggingface.family import Family
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.model.config import ModelConfig

KEYS = llama_keys(
    vocab_size=151936,
    intermediate_size=22016,
    num_key_value_heads=32,
    head_dim=128,
    max_position_embeddings=32768,
)


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    return {
        **read_rope(reader, positions=values["positions"]),
        **qwen_window_fields(reader, values["layers"]),
        **attention_bias(reader),
        "qk_norm": "head",
        "activation": reader.choice("hidden_act", GATED_ACTIVATIONS, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        **qwen_window_keys(model),
        "attention_bias": model.bias_qkv,
        "hidden_act": GATED_ACTIVATION_NAMES.get(model.activation, "silu"),
    }


FAMILY = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    KEYS,
    read,
    write,
    tensors,
    classifier="Qwen3ForSequenceClassification",
    rank=60,
    buffers=BUFFERS,
    prefix="model.",
    adapter_targets=("q_proj", "v_proj"),
)
