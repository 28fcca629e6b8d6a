"""Gemma 3 (text): Gemma 2 with query and key norms, and a separate rotary embedding in windowed layers."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import BUFFERS, FULL, SLIDING, layer_types, llama_keys, window_fields
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.families.gemma2 import SIZES, WINDOW, read_gemma, tensors, write_gemma
from llm_jax.huggingface.family import Family
from llm_jax.huggingface.rope import rope_fields, scaling_parameters
from llm_jax.model.config import ModelConfig

THETA, THETA_WINDOW = 1e6, 1e4


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    layers, every = values["layers"], reader.positive("sliding_window_pattern", 6, "_sliding_window_pattern")
    sliding = layer_types(reader, layers, [(layer + 1) % every != 0 for layer in range(layers)])
    window = window_fields(reader, reader.take("sliding_window", WINDOW), sliding)
    reader.require("attn_logit_softcapping", None)  # transformers reads it but caps nothing
    return {
        **read_ropes(reader, values["positions"], window["window"]),
        **window,
        **read_gemma(reader, values, logit_softcap=None),
        "qk_norm": "head",
    }


def read_ropes(reader: ConfigReader, positions: int, window: int | None) -> dict[str, Any]:
    """The fields of both rotary embeddings.

    `rope_theta` and `rope_scaling` are about layers without a window, `rope_local_base_freq` about those with
    one.
    """
    given = reader.group("rope_parameters")
    for name, value in given.items():
        if name not in (FULL, SLIDING) or not isinstance(value, dict | None):
            raise reader.error(
                f"rope_parameters.{name}: must be {FULL} or {SLIDING}, each with its own values"
            )
    parts = {name: dict(given.get(name) or {}) for name in (FULL, SLIDING)}
    scaling = reader.group("rope_scaling")
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    top_level = {
        FULL: {**scaling, "rope_theta": reader.take("rope_theta", None)},
        SLIDING: {"rope_theta": reader.take("rope_local_base_freq", None)},
    }
    for name, values in top_level.items():
        for key, value in values.items():
            if value is not None and parts[name].setdefault(key, value) != value:
                raise reader.error(
                    f"{key} of {name} is {parts[name][key]} in rope_parameters and {value} outside"
                )
    rope = rope_fields(reader, parts[FULL], THETA, 1.0, positions)
    local = rope_fields(reader, parts[SLIDING], THETA_WINDOW, 1.0, positions)
    if local["rope_scaling"].kind != "none":
        raise reader.error(
            f"rope_parameters.{SLIDING}: rope_type={parts[SLIDING]['rope_type']} is not supported; must "
            "be default"
        )
    return {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": rope["rope_scaling"],
        "rope_theta_window": None if window is None else local["rope_theta"],
    }


def write(model: ModelConfig) -> dict[str, Any]:
    scaling = scaling_parameters(model.rope_scaling)
    local = THETA_WINDOW if model.window is None else model.rope_theta_window or model.rope_theta
    return {
        **write_gemma(model),
        "attn_logit_softcapping": None,
        "rope_parameters": {
            FULL: {**scaling, "rope_theta": model.rope_theta},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
        "rope_theta": model.rope_theta,
        "rope_local_base_freq": local,
        "rope_scaling": None if model.rope_scaling.kind == "none" else scaling,
    }


KEYS = llama_keys(**SIZES, vocab_size=262208, max_position_embeddings=131072)
FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    KEYS,
    read,
    write,
    tensors,
    classifier="Gemma3TextForSequenceClassification",
    rank=110,
    buffers=BUFFERS,
    prefix="model.",
    heads_divide=True,
    adapter_targets=("q_proj", "v_proj"),
)
