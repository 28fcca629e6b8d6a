"""llama.cpp's architectures as Hugging Face's families: a config.json, and the names of tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.huggingface.common import FULL, SLIDING
from llm_jax.huggingface.gguf.header import Header
from llm_jax.huggingface.gguf.metadata import MetadataReader, architecture_of
from llm_jax.huggingface.gguf.rope import FREQUENCIES, read_scaling
from llm_jax.huggingface.gguf.tensor import GgufTensor
from llm_jax.huggingface.safetensors import FLOATS

Tree = dict[str, Any]
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""The tensors outside of the layers: GGUF's name → Hugging Face's."""
LINEAR = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""The matrices of a layer, `blk.N.NAME.weight`; their biases have the same names."""
TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
FOUR_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures."""

    model_type: str
    """Its family here, unless `more` returns another."""
    more: Callable[[MetadataReader, Tree], Tree]
    """(reader, the keys that all have) → further keys of config.json."""
    norms: Mapping[str, str]
    """The norms of a layer: GGUF's name → Hugging Face's."""
    interleaved: bool = False
    """Whether the rows of queries and keys are in another order (`GgufTensor.interleaved_heads`)."""
    centred: bool = False
    """Whether the weights of norms have 1 added."""


def read_tree(header: Header) -> Tree:
    """The object of a config.json for the model in a file.

    Raises UserError for an architecture, a key or a value that isn't supported, or is missing.
    """
    architecture = ARCHITECTURES[architecture_of(header, ARCHITECTURES)]
    reader, tensors = MetadataReader(header), header.tensors
    if reader.take("expert_count", 0):
        raise reader.wrong(
            "expert_count", reader.take("expert_count"), "0: mixtures of experts aren't read from GGUF"
        )
    reader.require("expert_used_count", 0)
    if EMBEDDING not in tensors or len(tensors[EMBEDDING].shape) != 2:
        raise UserError(f"{header.path}: has no matrix {EMBEDDING}; take a file with a whole language model")
    if (layers := reader.whole("block_count")) > len(tensors):
        raise UserError(
            f"{header.path}: has {len(tensors)} tensors, too few for the {layers} layers of its metadata. "
            "Copy or download the file again"
        )
    embed, heads = reader.whole("embedding_length"), reader.whole("attention.head_count")
    head_dim = reader.whole("attention.key_length", reader.take("rope.dimension_count") or embed // heads)
    reader.require("attention.value_length", head_dim)
    reader.require("rope.dimension_count", head_dim)
    reader.require("attention.causal", True)
    vocab = tensors[EMBEDDING].shape[0]
    reader.require("vocab_size", vocab)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > vocab:
        raise UserError(
            f"{header.path}: its tokenizer has {len(tokens):,} tokens, more than the {vocab:,} rows of "
            f"{EMBEDDING}: they are of different models. Take another file"
        )
    tree: Tree = {
        "model_type": architecture.model_type,
        "vocab_size": vocab,
        "hidden_size": embed,
        "intermediate_size": reader.whole("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": reader.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": reader.whole("context_length"),
        "rope_theta": reader.number("rope.freq_base", 10000.0),
        "rope_scaling": read_scaling(reader, head_dim),
        "tie_word_embeddings": HEAD not in tensors,
    }
    tree |= architecture.more(reader, tree)
    reader.finish()
    return tree | token_ids(header)


def token_ids(header: Header) -> dict[str, int]:
    """The ids of BOS, EOS and padding, under config.json's names."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {key: header.metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in names.items()}
    return {key: i for key, i in found.items() if type(i) is int}


def llama(reader: MetadataReader, tree: Tree) -> Tree:
    """Llama, and Mistral, which llama.cpp calls llama too, with or without a window."""
    if (window := reader.take("attention.sliding_window")) is not None:
        return {"model_type": "mistral", "sliding_window": reader.whole("attention.sliding_window", window)}
    tensors = reader.header.tensors
    return {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_up.bias" in tensors}


def qwen2(reader: MetadataReader, tree: Tree) -> Tree:
    return {"use_sliding_window": False, "sliding_window": None}


def qwen3(reader: MetadataReader, tree: Tree) -> Tree:
    return {**qwen2(reader, tree), "attention_bias": "blk.0.attn_q.bias" in reader.header.tensors}


def gemma2(reader: MetadataReader, tree: Tree) -> Tree:
    return {
        **gemma(reader, tree, large=46),
        **layer_types(reader, tree, every=2),
        "attn_logit_softcapping": reader.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": reader.number("final_logit_softcapping", 30.0),
    }


def gemma3(reader: MetadataReader, tree: Tree) -> Tree:
    cap = reader.take("final_logit_softcapping")
    return {
        **gemma(reader, tree, large=62),
        **layer_types(reader, tree, every=6),
        "rope_local_base_freq": reader.number("rope.freq_base_swa", 10000.0),
        "final_logit_softcapping": None if cap is None else reader.number("final_logit_softcapping"),
    }


def gemma(reader: MetadataReader, tree: Tree, large: int) -> Tree:
    """The keys that Gemma 2 and 3 have in common. Files don't have the scale of attention: it is that of a
    head, and of the width by heads in the models with 27 billion parameters, which have `large` layers (as in
    llama.cpp)."""
    width = tree["hidden_size"] // tree["num_attention_heads"]
    return {
        "sliding_window": reader.whole("attention.sliding_window"),
        "query_pre_attn_scalar": width if tree["num_hidden_layers"] == large else tree["head_dim"],
    }


def layer_types(reader: MetadataReader, tree: Tree, every: int) -> Tree:
    """Which layers have the window: all but the last of `every`, unless the file has another pattern."""
    layers, given = tree["num_hidden_layers"], reader.take("attention.sliding_window_pattern", every)
    if isinstance(given, list):
        if len(given) != layers:
            raise reader.wrong(
                "attention.sliding_window_pattern", given, f"a value for each of {layers} layers"
            )
        sliding = [bool(one) for one in given]
    else:
        given = reader.whole("attention.sliding_window_pattern", every)
        sliding = [(layer + 1) % given != 0 for layer in range(layers)]
    return {"layer_types": [SLIDING if slides else FULL for slides in sliding]}


ARCHITECTURES = {
    "llama": Architecture("llama", llama, TWO_NORMS, interleaved=True),
    "qwen2": Architecture("qwen2", qwen2, TWO_NORMS),
    "qwen3": Architecture("qwen3", qwen3, TWO_NORMS | QK_NORMS),
    "gemma2": Architecture("gemma2", gemma2, FOUR_NORMS, centred=True),
    "gemma3": Architecture("gemma3_text", gemma3, FOUR_NORMS | QK_NORMS, centred=True),
}
"""By the names that `general.architecture` has."""


def read_tensors(header: Header, tree: Tree) -> dict[str, GgufTensor]:
    """The tensors of a file by Hugging Face's names. Raises UserError for one that is unknown or missing."""
    name = architecture_of(header, ARCHITECTURES)
    architecture = ARCHITECTURES[name]
    heads = {"attn_q": tree["num_attention_heads"], "attn_k": tree["num_key_value_heads"]}
    of_layer = {**LINEAR, **architecture.norms}
    wanted = itertools.chain(
        (f"{part}.weight" for part in OUTSIDE if part != "output"),
        (f"blk.{n}.{part}.weight" for n in range(tree["num_hidden_layers"]) for part in of_layer),
    )
    if missing := next((tensor for tensor in wanted if tensor not in header.tensors), ""):
        raise UserError(f"{header.path}: the tensor {missing} is missing. Copy or download the file again")
    made: dict[str, GgufTensor] = {}
    for tensor, stored in header.tensors.items():
        if tensor == FREQUENCIES:
            continue
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor)
        layer, part, suffix = found.groups() if found else (None, "", "")
        theirs = (OUTSIDE if layer is None else of_layer).get(part)
        if theirs is None:
            raise UserError(
                f"{header.path}: has the tensor {tensor}, which {name} has no place for here: the model "
                "computes something else"
            )
        if architecture.interleaved and part in heads and stored.shape[0] % (2 * heads[part]):
            raise UserError(
                f"{header.path}: {tensor} has {stored.shape[0]} rows, which are no {heads[part]} heads of "
                "pairs. Copy or download the file again"
            )
        full = f"{theirs}.{suffix}" if layer is None else f"model.layers.{layer}.{theirs}.{suffix}"
        made[full] = GgufTensor(
            full,
            header.path,
            stored.kind if stored.kind in FLOATS else "F32",
            stored.shape,
            stored.offset,
            kind=stored.kind,
            interleaved_heads=heads.get(part, 0) if architecture.interleaved else 0,
            added=1.0 if architecture.centred and part.endswith("norm") and suffix == "weight" else 0.0,
        )
    return made
