"""GPT-2: LayerNorm, learned positions, biases everywhere; fused matrices that are stored [in, out]."""

from __future__ import annotations

from typing import Any

from llm_jax.huggingface.common import PLAIN_ACTIVATION_NAMES, PLAIN_ACTIVATIONS, fused_qkv, linear, norm
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.family import Family, Key, Tree
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

KEYS = (
    Key("vocab_size", "vocab", 50257),
    Key("n_positions", "positions", 1024, aliases=("max_position_embeddings",)),
    Key("n_embd", "embed", 768, aliases=("hidden_size",)),
    Key("n_layer", "layers", 12, aliases=("num_hidden_layers",)),
    Key("n_head", "heads", 12, aliases=("num_attention_heads",)),
    Key("n_inner", "mlp", None),
    Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
    Key("tie_word_embeddings", "tied_embeddings", True),
)


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    reader.require("scale_attn_weights", True)
    reader.require("scale_attn_by_inverse_layer_idx", False)
    return {
        "norm": "layer",
        "position": "learned",
        "bias_qkv": True,
        "bias_out": True,
        "bias_mlp": True,
        "activation": reader.choice("activation_function", PLAIN_ACTIVATIONS, "gelu_new"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {"activation_function": PLAIN_ACTIVATION_NAMES.get(model.activation, "gelu_new")}


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    at = "transformer.h.{layer}"
    return [
        Entry("transformer.wte.weight", "embedding", "v d -> v d"),
        Entry("transformer.wpe.weight", "positions", "t d -> t d"),
        *norm("transformer.ln_f", "final_norm", bias=True),
        Entry("lm_head.weight", "head", "v d -> v d"),
        *norm(f"{at}.ln_1", "attention_norm", bias=True),
        *norm(f"{at}.ln_2", "mlp_norm", bias=True),
        *fused_qkv(f"{at}.attn.c_attn", "d (p h k) -> d h k", "(p h k) -> h k"),
        *linear(f"{at}.attn.c_proj", "attention.out", "(h k) d -> h k d", "d -> d"),
        *linear(f"{at}.mlp.c_fc", "mlp.up", "i o -> i o"),
        *linear(f"{at}.mlp.c_proj", "mlp.down", "i o -> i o"),
    ]


BUFFERS = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)
FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    KEYS,
    read,
    write,
    tensors,
    classifier="GPT2ForSequenceClassification",
    rank=10,
    buffers=BUFFERS,
    prefix="transformer.",
    adapter_targets=("c_attn",),
)
