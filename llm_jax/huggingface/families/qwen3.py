"""Qwen 3: norms on each head's queries and keys; windows as in Qwen 2."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import BUFFERS, GATED, GATED_NAMES, attention_bias, llama_keys, qwen_windows, write_qwen_windows
from llm_jax.huggingface.config_reader import Keys
from llm_jax.huggingface.families.llama import tensors
from llm_jax.huggingface.family import Family
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.model.config import ModelConfig

KEYS = llama_keys(vocab_size=151936, intermediate_size=22016, num_key_value_heads=32, head_dim=128, max_position_embeddings=32768)


def read(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    return {
        **read_rope(keys, positions=values["positions"]),
        **qwen_windows(keys, values["layers"]),
        **attention_bias(keys),
        "qk_norm": "head",
        "activation": keys.choice("hidden_act", GATED, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        **write_qwen_windows(model),
        "attention_bias": model.bias_qkv,
        "hidden_act": GATED_NAMES.get(model.activation, "silu"),
    }


FAMILY = Family("qwen3", "Qwen3ForCausalLM", KEYS, read, write, tensors, BUFFERS, "model.")
