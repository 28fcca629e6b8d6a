"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and a window in the upper layers where it is asked for."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import BUFFERS, GATED, GATED_NAMES, llama_keys, qwen_windows, write_qwen_windows
from llm_jax.huggingface.config_reader import Keys
from llm_jax.huggingface.families.llama import tensors
from llm_jax.huggingface.family import Family
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.model.config import ModelConfig

KEYS = llama_keys(vocab_size=151936, intermediate_size=22016, num_key_value_heads=32, max_position_embeddings=32768)


def read(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    return {
        **read_rope(keys, positions=values["positions"]),
        **qwen_windows(keys, values["layers"]),
        "bias_qkv": True,
        "activation": keys.choice("hidden_act", GATED, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {**write_rope(model), **write_qwen_windows(model), "hidden_act": GATED_NAMES.get(model.activation, "silu")}


FAMILY = Family("qwen2", "Qwen2ForCausalLM", KEYS, read, write, tensors, BUFFERS, "model.")
