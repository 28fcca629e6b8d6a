"""Tiny GGUF files of random models, written as llama.cpp's converter writes them, by the `gguf` library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from llm_jax.huggingface import safetensors

VOCAB = 300
BASE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LAYERS = ["sliding_attention", "full_attention"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"model_type": "llama", "rope_scaling": LLAMA3, "head_dim": 16}),
    "llama_biased": ("llama", {"model_type": "llama", "attention_bias": True, "mlp_bias": True}),
    "llama_linear": ("llama", {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "mistral": ("llama", {"model_type": "mistral", "sliding_window": 12}),
    "qwen2": ("qwen2", {"model_type": "qwen2", "rope_scaling": YARN, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"model_type": "qwen3"}),
    "gemma2": ("gemma2", {
        "model_type": "gemma2", "sliding_window": 16, "query_pre_attn_scalar": 8, "tie_word_embeddings": True,
        "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0,
    }),
    "gemma3": ("gemma3", {
        "model_type": "gemma3_text", "sliding_window": 16, "num_hidden_layers": 7,
        "tie_word_embeddings": True, "rope_local_base_freq": 10000.0, "head_dim": 12, "query_pre_attn_scalar": 12,
    }),
}  # fmt: skip
"""Name → (llama.cpp's architecture, the keys of config.json that differ from BASE)."""
MATRICES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
NORMS = {
    "two": {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
    "four": {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    },
    "heads": {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
}  # fmt: skip


def config(name: str) -> dict[str, Any]:
    """The config.json of a model."""
    return {**BASE, **MODELS[name][1]}


def tensors(name: str) -> dict[str, np.ndarray]:
    """The random tensors of a model under Hugging Face's names, float32."""
    tree, rng = config(name), np.random.default_rng(0)
    embed, mlp, size = tree["hidden_size"], tree["intermediate_size"], tree["head_dim"]
    queries, keys = tree["num_attention_heads"] * size, tree["num_key_value_heads"] * size
    shapes = {
        "self_attn.q_proj": (queries, embed), "self_attn.k_proj": (keys, embed), "self_attn.v_proj": (keys, embed),
        "self_attn.o_proj": (embed, queries), "mlp.gate_proj": (mlp, embed), "mlp.up_proj": (mlp, embed),
        "mlp.down_proj": (embed, mlp),
    }  # fmt: skip
    biased = list(shapes)[:3] if tree["model_type"] == "qwen2" else []
    biased += [*list(shapes)[:4]] if tree.get("attention_bias") else []
    biased += [*list(shapes)[4:]] if tree.get("mlp_bias") else []
    of_layer = {f"{part}.weight": shape for part, shape in shapes.items()}
    of_layer |= {f"{part}.bias": shapes[part][:1] for part in biased}
    of_layer |= {f"{part}.weight": (size if "self_attn" in part else embed,) for part in norms(tree)}
    outside = {"model.embed_tokens.weight": (VOCAB, embed), "model.norm.weight": (embed,)}
    if not tree["tie_word_embeddings"]:
        outside["lm_head.weight"] = (VOCAB, embed)
    layers = {
        f"model.layers.{n}.{part}": shape
        for n in range(tree["num_hidden_layers"])
        for part, shape in of_layer.items()
    }
    return {part: rng.normal(0, 0.1, shape).astype(np.float32) for part, shape in (outside | layers).items()}


def norms(tree: Mapping[str, Any]) -> dict[str, str]:
    """The norms of a layer: Hugging Face's name → GGUF's."""
    kind = tree["model_type"]
    found = NORMS["four" if kind.startswith("gemma") else "two"]
    return found | (NORMS["heads"] if kind in ("qwen3", "gemma3_text") else {})


def write_folder(folder: Path, name: str) -> Path:
    """A model as a Hugging Face folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(name)))
    with (folder / safetensors.SINGLE).open("wb") as file:
        made = tensors(name)
        safetensors.write_header(
            file, [safetensors.PlannedTensor(part, "float32", array.shape) for part, array in made.items()]
        )
        for array in made.values():
            file.write(array.tobytes())
    return folder


def metadata(name: str) -> dict[str, Any]:
    """The metadata of a model, without a tokenizer."""
    architecture, tree = MODELS[name][0], config(name)
    keys = {
        "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
        "rope.freq_base": "rope_theta", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "rope.dimension_count": "head_dim", "vocab_size": "vocab_size", "attention.key_length": "head_dim",
        "attention.value_length": "head_dim", "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    }  # fmt: skip
    found: dict[str, Any] = {"general.name": name, "general.tags": ["tiny", "random"]}
    found |= {f"{architecture}.{key}": tree[theirs] for key, theirs in keys.items() if theirs in tree}
    scaling = tree.get("rope_scaling") or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        found[f"{architecture}.rope.scaling.type"] = scaling["rope_type"]
        found[f"{architecture}.rope.scaling.factor"] = scaling["factor"]
    if scaling.get("rope_type") == "yarn":
        found[f"{architecture}.rope.scaling.original_context_length"] = scaling[
            "original_max_position_embeddings"
        ]
    return found


def stored(name: str) -> dict[str, np.ndarray]:
    """The tensors of a model as a file has them, float32."""
    architecture, tree = MODELS[name][0], config(name)
    own = {**MATRICES, **norms(tree)}
    heads = {"attn_q": tree["num_attention_heads"], "attn_k": tree["num_key_value_heads"]}
    outside = {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }  # fmt: skip
    made = {}
    for full, array in tensors(name).items():
        if full.endswith("norm.weight") and architecture.startswith("gemma"):
            array = array + np.float32(1)
        if full in outside:
            made[outside[full]] = array
            continue
        _, _, layer, part = full.split(".", 3)
        part, _, suffix = part.rpartition(".")
        if architecture == "llama" and own[part] in heads:
            per_head = array.reshape(heads[own[part]], 2, -1, *array.shape[1:])
            array = np.ascontiguousarray(per_head.swapaxes(1, 2)).reshape(array.shape)
        made[f"blk.{layer}.{own[part]}.{suffix}"] = array
    if (tree.get("rope_scaling") or {}).get("rope_type") == "llama3":
        made["rope_freqs.weight"] = llama3_divisors(tree)
    return made


def llama3_divisors(tree: Mapping[str, Any]) -> np.ndarray:
    """What Llama 3.1 divides the frequency of each pair by, float32 [head_dim / 2] (its `apply_scaling`)."""
    scaling, divisors = tree["rope_scaling"], []
    for pair in range(tree["head_dim"] // 2):
        wavelength = 2 * np.pi * tree["rope_theta"] ** (2 * pair / tree["head_dim"])
        turns = scaling["original_max_position_embeddings"] / wavelength
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = (turns - low) / (high - low)
        between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        divisors.append(1.0 if turns > high else scaling["factor"] if turns < low else between)
    return np.array(divisors, np.float32)


def write_gguf(
    path: Path,
    architecture: str,
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray | tuple[np.ndarray, str]],
) -> Path:
    """Writes a file. An array may be (bytes [rows, bytes of a row], name of its type)."""
    writer = GGUFWriter(path, architecture)
    for key, value in about.items():
        if value is None:
            continue
        kinds = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        kinds.get(type(value), writer.add_array)(key, value)
    for tensor, array in arrays.items():
        if isinstance(array, tuple):
            writer.add_tensor(tensor, array[0], raw_dtype=GGMLQuantizationType[array[1]])
        elif array.dtype == ml_dtypes.bfloat16:
            raw = array.view(np.uint8).reshape(*array.shape[:-1], -1)
            writer.add_tensor(tensor, raw, raw_dtype=GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(tensor, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(path: Path, name: str, more: Mapping[str, Any] | None = None) -> Path:
    """Writes a model in float32, with further metadata (None: without this key)."""
    return write_gguf(path, MODELS[name][0], {**metadata(name), **(more or {})}, stored(name))
