"""Mistral: Llama with a sliding window in every layer, and without biases."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import BUFFERS, GATED_ACTIVATION_NAMES, GATED_ACTIVATIONS, llama_keys
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.families.llama import tensors
from llm_jax.huggingface.family import Family
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.model.config import ModelConfig

KEYS = llama_keys(intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072)


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    return {
        **read_rope(reader, positions=values["positions"]),
        "window": reader.take("sliding_window", 4096),
        "activation": reader.choice("hidden_act", GATED_ACTIVATIONS, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        "sliding_window": model.window,
        "hidden_act": GATED_ACTIVATION_NAMES.get(model.activation, "silu"),
    }


FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    KEYS,
    read,
    write,
    tensors,
    classifier="MistralForSequenceClassification",
    rank=40,
    buffers=BUFFERS,
    prefix="model.",
    adapter_targets=("q_proj", "v_proj"),
)
