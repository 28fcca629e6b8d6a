"""OLMo 2: norms on the outputs of blocks, and on the queries and keys of all heads together."""

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
        "norm_placement": "after",
        "qk_norm": "projection",
        "activation": reader.choice("hidden_act", GATED_ACTIVATIONS, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        "attention_bias": model.bias_qkv,
        "hidden_act": GATED_ACTIVATION_NAMES.get(model.activation, "silu"),
    }


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    return [
        *embedding_and_head(),
        *block_norms(attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
        *attention(qk_norm="(h k) -> h k"),
        *feed_forward(),
    ]


KEYS = llama_keys(vocab_size=50304, rms_norm_eps=1e-5)
FAMILY = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    KEYS,
    read,
    write,
    tensors,
    classifier="Olmo2ForSequenceClassification",
    rank=90,
    buffers=BUFFERS,
    prefix="model.",
)
