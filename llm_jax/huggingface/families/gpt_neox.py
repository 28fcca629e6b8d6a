"""GPT-NeoX (Pythia): attention and feed-forward read the same stream, and a part of each head is rotated.

Queries, keys and values are fused head by head.
"""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import PLAIN_ACTIVATION_NAMES, PLAIN_ACTIVATIONS, fused_qkv, linear, norm
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.family import Family, Key, Tree
from llm_jax.huggingface.rope import read_rope, write_rope
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

KEYS = (
    Key("vocab_size", "vocab", 50432),
    Key("hidden_size", "embed", 6144),
    Key("num_hidden_layers", "layers", 44),
    Key("num_attention_heads", "heads", 64),
    Key("intermediate_size", "mlp", 24576),
    Key("layer_norm_eps", "norm_epsilon", 1e-5),
    Key("tie_word_embeddings", "tied_embeddings", False),
    Key("max_position_embeddings", "positions", 2048),
    Key("use_parallel_residual", "parallel_blocks", True),
)

SPELLINGS = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
"""Key of `rope_parameters` → its spelling in transformers 4 and on the Hub."""


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    rope = read_rope(reader, fraction=0.25, positions=values["positions"], aliases=SPELLINGS)
    biased = reader.take("attention_bias", True)
    return {
        **rope,
        "norm": "layer",
        "bias_qkv": biased,
        "bias_out": biased,
        "bias_mlp": True,
        "activation": reader.choice("hidden_act", PLAIN_ACTIVATIONS, "gelu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    rope = write_rope(model)
    rope["rope_parameters"]["partial_rotary_factor"] = model.rope_fraction
    return {
        **{key: value for key, value in rope.items() if key != "rope_theta"},
        "rotary_emb_base": model.rope_theta,
        "rotary_pct": model.rope_fraction,
        "attention_bias": model.bias_qkv,
        "hidden_act": PLAIN_ACTIVATION_NAMES.get(model.activation, "gelu"),
    }


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    at = "gpt_neox.layers.{layer}"
    return [
        Entry("gpt_neox.embed_in.weight", "embedding", "v d -> v d"),
        *norm("gpt_neox.final_layer_norm", "final_norm", bias=True),
        Entry("embed_out.weight", "head", "v d -> v d"),
        *norm(f"{at}.input_layernorm", "attention_norm", bias=True),
        *norm(f"{at}.post_attention_layernorm", "mlp_norm", bias=True),
        *fused_qkv(f"{at}.attention.query_key_value", "(h p k) d -> d h k", "(h p k) -> h k"),
        *linear(f"{at}.attention.dense", "attention.out", "d (h k) -> h k d", "d -> d"),
        *linear(f"{at}.mlp.dense_h_to_4h", "mlp.up"),
        *linear(f"{at}.mlp.dense_4h_to_h", "mlp.down"),
    ]


BUFFERS = (r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)
FAMILY = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    KEYS,
    read,
    write,
    tensors,
    classifier="GPTNeoXForSequenceClassification",
    rank=20,
    buffers=BUFFERS,
    prefix="gpt_neox.",
    adapter_targets=("query_key_value",),
)
