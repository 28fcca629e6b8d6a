"""Llama 2 and 3: RMSNorm, SwiGLU, rotary embeddings, grouped queries. Most other families derive from it."""

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
    feed_forward,
    llama_keys,
)
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.family import Family, Tree
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    return {
        **read_rope(reader, positions=values["positions"]),
        **attention_bias(reader),
        "bias_mlp": reader.take("mlp_bias", False),
        "activation": reader.choice("hidden_act", GATED_ACTIVATIONS, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        "attention_bias": model.bias_qkv,
        "mlp_bias": model.bias_mlp,
        "hidden_act": GATED_ACTIVATION_NAMES.get(model.activation, "silu"),
    }


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    return [
        *embedding_and_head(),
        *block_norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention(),
        *feed_forward(),
    ]


FAMILY = Family(
    "llama",
    "LlamaForCausalLM",
    llama_keys(),
    read,
    write,
    tensors,
    classifier="LlamaForSequenceClassification",
    rank=30,
    buffers=BUFFERS,
    prefix="model.",
    heads_divide=True,
    adapter_targets=("q_proj", "v_proj"),
)
