"""Mixtral: Mistral with a mixture of experts in every layer, whose weights are a softmax over the chosen ones."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import BUFFERS, GATED, GATED_NAMES, attention, block_norms, ends, experts, llama_keys
from llm_jax.huggingface.config_reader import Keys
from llm_jax.huggingface.family import Family, Key, Tree
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

KEYS = (
    *(key for key in llama_keys(num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5) if key.ours != "mlp"),
    Key("intermediate_size", "moe.mlp", 14336),
    Key("num_local_experts", "moe.experts", 8, also=("num_experts",)),
    Key("num_experts_per_tok", "moe.top_k", 2),
)


def read(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    keys.above_zero("num_local_experts", 8, "num_experts")
    return {
        **read_rope(keys, theta=1e6, positions=values["positions"]),
        "mlp": values["moe.mlp"],
        "moe.normalise": True,
        "window": keys.number("sliding_window", whole=True),
        "activation": keys.choice("hidden_act", GATED, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {**write_rope(model), "sliding_window": model.window, "hidden_act": GATED_NAMES.get(model.activation, "silu")}


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    return [
        *ends(),
        *block_norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention(),
        *experts("block_sparse_moe", "w1", "w3", "w2"),
    ]


FAMILY = Family("mixtral", "MixtralForCausalLM", KEYS, read, write, tensors, BUFFERS, "model.")
