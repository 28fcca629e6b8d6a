"""Mixtral: Mistral with a mixture of experts in every layer, weighted by a softmax over the chosen ones."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import (
    BUFFERS,
    GATED_ACTIVATION_NAMES,
    GATED_ACTIVATIONS,
    attention,
    block_norms,
    embedding_and_head,
    experts,
    llama_keys,
)
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.family import Family, Key, Tree
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

KEYS = (
    *(
        key
        for key in llama_keys(num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5)
        if key.field != "mlp"
    ),
    Key("intermediate_size", "moe.mlp", 14336),
    Key("num_local_experts", "moe.experts", 8, aliases=("num_experts",)),
    Key("num_experts_per_tok", "moe.top_k", 2),
)


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    reader.positive("num_local_experts", 8, "num_experts")
    return {
        **read_rope(reader, theta=1e6, positions=values["positions"]),
        "mlp": values["moe.mlp"],
        "moe.normalise": True,
        "window": reader.number("sliding_window", whole=True),
        "activation": reader.choice("hidden_act", GATED_ACTIVATIONS, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        "sliding_window": model.window,
        "hidden_act": GATED_ACTIVATION_NAMES.get(model.activation, "silu"),
    }


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    return [
        *embedding_and_head(),
        *block_norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention(),
        *experts("block_sparse_moe", "w1", "w3", "w2"),
    ]


FAMILY = Family(
    "mixtral",
    "MixtralForCausalLM",
    KEYS,
    read,
    write,
    tensors,
    classifier="MixtralForSequenceClassification",
    rank=80,
    buffers=BUFFERS,
    prefix="model.",
    adapter_targets=("q_proj", "v_proj"),
)
