"""OLMo 2: norms on what blocks add to the stream, and on all queries and all keys of a token together."""

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
        "norm_placement": "after",
        "qk_norm": "projection",
        "activation": keys.choice("hidden_act", GATED, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {**write_rope(model), "attention_bias": model.bias_qkv, "hidden_act": GATED_NAMES.get(model.activation, "silu")}


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    return [
        *ends(),
        *block_norms(attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
        *attention(qk_norm="(h k) -> h k"),
        *feed_forward(),
    ]


KEYS = llama_keys(vocab_size=50304, rms_norm_eps=1e-5)
FAMILY = Family("olmo2", "Olmo2ForCausalLM", KEYS, read, write, tensors, BUFFERS, "model.")
