"""Llama 2 and 3."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import BUFFERS, GATED, GATED_NAMES, attention, attention_bias, block_norms, ends, feed_forward, llama_keys
from llm_jax.huggingface.config_reader import Keys
from llm_jax.huggingface.family import Family, Tree
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig


def read(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    return {
        **read_rope(keys, positions=values["positions"]),
        **attention_bias(keys),
        "bias_mlp": keys.take("mlp_bias", False),
        "activation": keys.choice("hidden_act", GATED, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        "attention_bias": model.bias_qkv,
        "mlp_bias": model.bias_mlp,
        "hidden_act": GATED_NAMES.get(model.activation, "silu"),
    }


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    return [*ends(), *block_norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"), *attention(), *feed_forward()]


FAMILY = Family("llama", "LlamaForCausalLM", llama_keys(), read, write, tensors, BUFFERS, "model.", heads_divide=True)
