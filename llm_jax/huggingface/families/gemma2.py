"""Gemma 2: norms on both sides of each block, softcaps, a scaled embedding, a window in every other layer."""

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
    layer_type_names,
    layer_types,
    llama_keys,
    window_fields,
)  # fmt: skip
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.family import Family, Tree
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

SIZES = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True,
}  # fmt: skip

WINDOW = 4096
"""Default of `sliding_window`. transformers builds a mask from it even if no layer has a window."""


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    rope = read_rope(reader, positions=values["positions"])
    sliding = layer_types(reader, values["layers"], [layer % 2 == 0 for layer in range(values["layers"])])
    return {
        **rope,
        **window_fields(reader, reader.take("sliding_window", WINDOW, "sliding_window_size"), sliding),
        **read_gemma(reader, values, logit_softcap=30.0),
        "attention_softcap": reader.number("attn_logit_softcapping", 50.0) or 0.0,
    }


def read_gemma(reader: ConfigReader, values: dict[str, Any], logit_softcap: float | None) -> dict[str, Any]:
    """The fields that Gemma 2 and 3 have in common; `logit_softcap` is the default of the class."""
    activation = reader.choice("hidden_activation", GATED_ACTIVATIONS, "gelu_pytorch_tanh")
    if reader.has("hidden_act"):  # in files on the Hub; transformers ignores it
        reader.choice("hidden_act", GATED_ACTIVATIONS, "gelu_pytorch_tanh")
    return {
        **attention_bias(reader),
        "logit_softcap": reader.number("final_logit_softcapping", logit_softcap) or 0.0,
        "attention_scale": float(reader.positive("query_pre_attn_scalar", 256.0)) ** -0.5,
        "embedding_scale": float(values["embed"]) ** 0.5,
        "norm_placement": "both",
        "norm_centred": True,
        "activation": activation,
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_rope(model),
        **write_gemma(model),
        "attn_logit_softcapping": model.attention_softcap or None,
    }


def write_gemma(model: ModelConfig) -> dict[str, Any]:
    """The keys that Gemma 2 and 3 have in common, for a model."""
    scalar = (model.attention_scale or (model.head_dim or 1) ** -0.5) ** -2
    return {
        "attention_bias": model.bias_qkv,
        "final_logit_softcapping": model.logit_softcap or None,
        "query_pre_attn_scalar": round(scalar),
        "hidden_activation": GATED_ACTIVATION_NAMES.get(model.activation, "gelu_pytorch_tanh"),
        "sliding_window": model.window or WINDOW,
        "layer_types": layer_type_names(model),
    }


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    norms = block_norms(
        attention_norm="input_layernorm",
        attention_out_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_out_norm="post_feedforward_layernorm",
    )
    return [*embedding_and_head(), *norms, *attention(), *feed_forward()]


KEYS = llama_keys(**SIZES, vocab_size=256000, max_position_embeddings=8192)
FAMILY = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    KEYS,
    read,
    write,
    tensors,
    classifier="Gemma2ForSequenceClassification",
    rank=100,
    buffers=BUFFERS,
    prefix="model.",
    heads_divide=True,
    adapter_targets=("q_proj", "v_proj"),
)
