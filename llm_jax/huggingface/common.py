"""What the families that came after Llama have in common: names of keys and of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_jax.huggingface.config_reader import Keys
from llm_jax.huggingface.family import Key
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu", "gelu_fast": "geglu"}
"""What a gated block's `hidden_act` is called here."""
GATED_NAMES = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
PLAIN = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu"}
"""The same of a block without a gate."""
PLAIN_NAMES = {"gelu_exact": "gelu", "gelu": "gelu_new"}
BUFFERS = (r".*\.rotary_emb\.inv_freq",)
FULL, SLIDING = "full_attention", "sliding_attention"


def llama_keys(**defaults: Any) -> tuple[Key, ...]:
    """Keys of a Llama-like config.json; `defaults`: those of the family's class, where they differ from Llama's. "kv_heads" may be null."""
    return tuple(
        Key(theirs, ours, defaults.get(theirs, default))
        for theirs, ours, default in (
            ("vocab_size", "vocab", 32000), ("hidden_size", "embed", 4096), ("intermediate_size", "mlp", 11008), ("num_hidden_layers", "layers", 32),
            ("num_attention_heads", "heads", 32), ("num_key_value_heads", "kv_heads", None), ("head_dim", "head_dim", None),
            ("rms_norm_eps", "norm_epsilon", 1e-6), ("tie_word_embeddings", "tied_embeddings", False), ("max_position_embeddings", "positions", 2048),
        )
    )  # fmt: skip


def attention_bias(keys: Keys) -> dict[str, bool]:
    """`attention_bias`: on all four projections."""
    biased = keys.take("attention_bias", False)
    return {"bias_qkv": biased, "bias_out": biased}


def windows(keys: Keys, window: int | None, sliding: Sequence[bool]) -> dict[str, Any]:
    """Our window and its layers."""
    if window is None and any(sliding):
        raise keys.wrong(f"layers {[i for i, slides in enumerate(sliding) if slides]} are {SLIDING}, and there is no sliding_window that is used")
    if not any(sliding):
        return {"window": None, "window_layers": None}
    return {"window": window, "window_layers": None if all(sliding) else tuple(i for i, slides in enumerate(sliding) if slides)}


def layer_types(keys: Keys, layers: int, otherwise: Sequence[bool]) -> list[bool]:
    """Which layers slide, by the key `layer_types` or, without it, by a rule of the family's."""
    told = keys.array("layer_types")
    if told is None:
        return list(otherwise)
    if len(told) != layers or any(kind not in (FULL, SLIDING) for kind in told):
        raise keys.wrong(f"layer_types={told}: must be {FULL} or {SLIDING} for each of {layers} layers")
    return [kind == SLIDING for kind in told]


def sliding_layers(model: ModelConfig) -> list[bool]:
    """Which layers of ours have a window."""
    return [model.of_layer(layer).window is not None for layer in range(model.layers)]


def type_names(model: ModelConfig) -> list[str]:
    """Those layers as `layer_types` has them."""
    return [SLIDING if slides else FULL for slides in sliding_layers(model)]


def qwen_windows(keys: Keys, layers: int) -> dict[str, Any]:
    """Qwen 2 and 3: nothing slides unless `use_sliding_window`; then the layers from `max_window_layers` on do."""
    used, window, first = keys.take("use_sliding_window", False), keys.take("sliding_window", 4096), keys.take("max_window_layers", 28)
    window = window if used else None
    return windows(keys, window, layer_types(keys, layers, [window is not None and layer >= first for layer in range(layers)]))


def write_qwen_windows(model: ModelConfig) -> dict[str, Any]:
    """The same written."""
    sliding = sliding_layers(model)
    first = sliding.index(True) if any(sliding) else model.layers
    return {"use_sliding_window": any(sliding), "sliding_window": model.window, "max_window_layers": first, "layer_types": type_names(model)}


def norm(theirs: str, ours: str, bias: bool = False) -> list[Entry]:
    """A norm's weight, and its bias."""
    return [Entry(f"{theirs}.weight", f"{ours}.scale", "d -> d"), *([Entry(f"{theirs}.bias", f"{ours}.bias", "d -> d")] if bias else [])]


def ends() -> list[Entry]:
    """What comes before and after the layers."""
    return [
        Entry("model.embed_tokens.weight", "embedding", "v d -> v d"),
        *norm("model.norm", "final_norm"),
        Entry("lm_head.weight", "head", "v d -> v d"),
    ]


def block_norms(**names: str) -> list[Entry]:
    """The norms of a layer: ours=theirs."""
    return [entry for ours, theirs in names.items() for entry in norm(f"model.layers.{{layer}}.{theirs}", ours)]


def linear(theirs: str, ours: str, form: str = "o i -> i o", bias: str = "o -> o", only: str = "") -> list[Entry]:
    """A matrix and its bias, in the forms given."""
    return [Entry(f"{theirs}.weight", ours, form, only=only), Entry(f"{theirs}.bias", f"{ours}_bias", bias, only=only)]


def fused(theirs: str, form: str, bias: str) -> list[Entry]:
    """Queries, keys and values in one matrix and one bias."""
    made = []
    for part, name in enumerate(("query", "key", "value")):
        made += [Entry(f"{theirs}.weight", f"attention.{name}", form, part, 3), Entry(f"{theirs}.bias", f"attention.{name}_bias", bias, part, 3)]
    return made


def attention(qk_norm: str = "d -> d") -> list[Entry]:
    """Projections with their biases, and norms of queries and keys, each of one head or ("(h k) -> h k") over all."""
    at = "model.layers.{layer}.self_attn"
    return [
        *linear(f"{at}.q_proj", "attention.query", "(h k) d -> d h k", "(h k) -> h k"),
        *linear(f"{at}.k_proj", "attention.key", "(h k) d -> d h k", "(h k) -> h k"),
        *linear(f"{at}.v_proj", "attention.value", "(h k) d -> d h k", "(h k) -> h k"),
        *linear(f"{at}.o_proj", "attention.out", "d (h k) -> h k d", "d -> d"),
        Entry(f"{at}.q_norm.weight", "attention.query_norm.scale", qk_norm),
        Entry(f"{at}.k_norm.weight", "attention.key_norm.scale", qk_norm),
    ]


def feed_forward(theirs: str = "mlp", ours: str = "mlp", only: str = "dense") -> list[Entry]:
    """Gate, up and down, with their biases."""
    at = f"model.layers.{{layer}}.{theirs}"
    return [entry for name in ("gate", "up", "down") for entry in linear(f"{at}.{name}_proj", f"{ours}.{name}", only=only)]


def experts(theirs: str, gate: str, up: str, down: str) -> list[Entry]:
    """The router, and each expert's gate, up and down."""
    at = f"model.layers.{{layer}}.{theirs}"
    names = {"gate": gate, "up": up, "down": down}
    return [
        Entry(f"{at}.gate.weight", "mlp.router", "e d -> d e", only="sparse"),
        *(Entry(f"{at}.experts.{{expert}}.{name}.weight", f"mlp.{ours}", "o i -> i o", only="sparse") for ours, name in names.items()),
    ]
