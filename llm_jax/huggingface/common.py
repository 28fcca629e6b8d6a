"""Parts of config.json and of tensor tables that several families share; most follow Llama's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.family import Key
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

GATED_ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu",
    "gelu_new": "geglu",
    "gelu_fast": "geglu",
}
"""`hidden_act` of a gated feed-forward block → `activation` of ModelConfig."""
GATED_ACTIVATION_NAMES = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
"""`activation` of ModelConfig → the `hidden_act` that is written for a gated block."""
PLAIN_ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
}
"""`hidden_act` of a feed-forward block without a gate → `activation` of ModelConfig."""
PLAIN_ACTIVATION_NAMES = {"gelu_exact": "gelu", "gelu": "gelu_new"}
"""`activation` of ModelConfig → the `hidden_act` that is written for a block without a gate."""
BUFFERS = (r".*\.rotary_emb\.inv_freq",)
"""Patterns of the names of tensors that hold no weights, in old files."""
FULL, SLIDING = "full_attention", "sliding_attention"


def llama_keys(**defaults: Any) -> tuple[Key, ...]:
    """The keys of a config.json that is like Llama's; `defaults`, by key, are those of the family's class
    that differ from Llama's.
    """
    return tuple(
        Key(name, field, defaults.get(name, default))
        for name, field, default in (
            ("vocab_size", "vocab", 32000), ("hidden_size", "embed", 4096),
            ("intermediate_size", "mlp", 11008), ("num_hidden_layers", "layers", 32),
            ("num_attention_heads", "heads", 32), ("num_key_value_heads", "kv_heads", None),
            ("head_dim", "head_dim", None), ("rms_norm_eps", "norm_epsilon", 1e-6),
            ("tie_word_embeddings", "tied_embeddings", False), ("max_position_embeddings", "positions", 2048),
        )
    )  # fmt: skip


def attention_bias(reader: ConfigReader) -> dict[str, bool]:
    """The fields that `attention_bias` sets: it is about all four projections."""
    biased = reader.take("attention_bias", False)
    return {"bias_qkv": biased, "bias_out": biased}


def window_fields(reader: ConfigReader, window: int | None, sliding: Sequence[bool]) -> dict[str, Any]:
    """The fields of the window and its layers; `sliding` has for each layer whether it has the window.

    Raises UserError if a layer has a window and there is none.
    """
    if window is None and any(sliding):
        layers = [i for i, slides in enumerate(sliding) if slides]
        raise reader.error(f"layers {layers} are {SLIDING}, but no sliding_window is set or used")
    if not any(sliding):
        return {"window": None, "window_layers": None}
    return {
        "window": window,
        "window_layers": None if all(sliding) else tuple(i for i, slides in enumerate(sliding) if slides),
    }


def layer_types(reader: ConfigReader, layers: int, default: Sequence[bool]) -> list[bool]:
    """For each layer, whether it has the window, by the key `layer_types`, or `default` if the
    key is absent.
    """
    kinds = reader.array("layer_types")
    if kinds is None:
        return list(default)
    if len(kinds) != layers or any(kind not in (FULL, SLIDING) for kind in kinds):
        raise reader.error(f"layer_types={kinds}: must be {FULL} or {SLIDING} for each of {layers} layers")
    return [kind == SLIDING for kind in kinds]


def sliding_layers(model: ModelConfig) -> list[bool]:
    """For each layer of a model, whether it has the window."""
    return [model.of_layer(layer).window is not None for layer in range(model.layers)]


def layer_type_names(model: ModelConfig) -> list[str]:
    """The value of the key `layer_types` for a model."""
    return [SLIDING if slides else FULL for slides in sliding_layers(model)]


def qwen_window_fields(reader: ConfigReader, layers: int) -> dict[str, Any]:
    """The fields of the window in Qwen 2 and 3: with `use_sliding_window`, the layers from
    `max_window_layers` on have it.
    """
    used, window, first = (
        reader.take("use_sliding_window", False),
        reader.take("sliding_window", 4096),
        reader.take("max_window_layers", 28),
    )
    window = window if used else None
    default = [window is not None and layer >= first for layer in range(layers)]
    return window_fields(reader, window, layer_types(reader, layers, default))


def qwen_window_keys(model: ModelConfig) -> dict[str, Any]:
    """The keys of the window in Qwen 2 and 3 for a model."""
    sliding = sliding_layers(model)
    first = sliding.index(True) if any(sliding) else model.layers
    return {
        "use_sliding_window": any(sliding),
        "sliding_window": model.window,
        "max_window_layers": first,
        "layer_types": layer_type_names(model),
    }


def norm(tensor: str, array: str, bias: bool = False) -> list[Entry]:
    """The table's lines for a norm's weight and, if `bias`, its bias."""
    weight = Entry(f"{tensor}.weight", f"{array}.scale", "d -> d")
    return [weight, Entry(f"{tensor}.bias", f"{array}.bias", "d -> d")] if bias else [weight]


def embedding_and_head() -> list[Entry]:
    """The table's lines for the arrays outside of the layers: embedding, final norm and head."""
    return [
        Entry("model.embed_tokens.weight", "embedding", "v d -> v d"),
        *norm("model.norm", "final_norm"),
        Entry("lm_head.weight", "head", "v d -> v d"),
    ]


def block_norms(**names: str) -> list[Entry]:
    """The table's lines for the norms of a layer; `names` are array=tensor."""
    return [
        entry for array, tensor in names.items() for entry in norm(f"model.layers.{{layer}}.{tensor}", array)
    ]


def linear(
    tensor: str, array: str, weight: str = "o i -> i o", bias: str = "o -> o", only: str = ""
) -> list[Entry]:
    """The table's lines for a matrix and its bias, with the patterns `weight` and `bias`."""
    return [
        Entry(f"{tensor}.weight", array, weight, only=only),
        Entry(f"{tensor}.bias", f"{array}_bias", bias, only=only),
    ]


def fused_qkv(tensor: str, weight: str, bias: str) -> list[Entry]:
    """The table's lines for queries, keys and values that are one matrix and one bias in the files."""
    entries = []
    for part, name in enumerate(("query", "key", "value")):
        entries.append(Entry(f"{tensor}.weight", f"attention.{name}", weight, part, 3))
        entries.append(Entry(f"{tensor}.bias", f"attention.{name}_bias", bias, part, 3))
    return entries


def attention(qk_norm: str = "d -> d") -> list[Entry]:
    """The table's lines for attention: projections with biases, and norms of queries and keys.

    `qk_norm` is the norms' pattern: "d -> d" for one scale that all heads share, "(h k) -> h k" for a scale
    over all heads.
    """
    at = "model.layers.{layer}.self_attn"
    return [
        *linear(f"{at}.q_proj", "attention.query", "(h k) d -> d h k", "(h k) -> h k"),
        *linear(f"{at}.k_proj", "attention.key", "(h k) d -> d h k", "(h k) -> h k"),
        *linear(f"{at}.v_proj", "attention.value", "(h k) d -> d h k", "(h k) -> h k"),
        *linear(f"{at}.o_proj", "attention.out", "d (h k) -> h k d", "d -> d"),
        Entry(f"{at}.q_norm.weight", "attention.query_norm.scale", qk_norm),
        Entry(f"{at}.k_norm.weight", "attention.key_norm.scale", qk_norm),
    ]


def feed_forward(tensor: str = "mlp", array: str = "mlp", only: str = "dense") -> list[Entry]:
    """The table's lines for a gated feed-forward block: gate, up and down, with biases."""
    at = f"model.layers.{{layer}}.{tensor}"
    parts = ("gate", "up", "down")
    return [entry for name in parts for entry in linear(f"{at}.{name}_proj", f"{array}.{name}", only=only)]


def experts(tensor: str, gate: str, up: str, down: str) -> list[Entry]:
    """The table's lines for a mixture of experts: the router, and each expert's gate, up and down, by their
    names in the files.
    """
    at = f"model.layers.{{layer}}.{tensor}"
    names = {"gate": gate, "up": up, "down": down}
    return [
        Entry(f"{at}.gate.weight", "mlp.router", "e d -> d e", only="sparse"),
        *(
            Entry(f"{at}.experts.{{expert}}.{name}.weight", f"mlp.{array}", "o i -> i o", only="sparse")
            for array, name in names.items()
        ),
    ]
