"""Builds models of transformers with random weights, writes and runs them. Needs the extra `reference`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from tools.huggingface_cases import Case

FAMILIES = (
    "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "olmo2", "gemma2",
    "gemma3_text", "deepseek_v3",
)  # fmt: skip
PAD, BOS, EOS = 3, 1, 2
EAGER = {
    "attn_implementation": "eager",
    "experts_implementation": "eager",
}  # the plain sums, which float64 can do too
logging.disable_progress_bar()


def build(case: Case, seed: int) -> Any:
    """The case's model in float32, its weights random and rounded to the case's dtype."""
    config = AutoConfig.for_model(
        case.family, **{"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD} | case.config
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **EAGER).eval()
    rng = np.random.default_rng(seed)
    centred = case.family.startswith("gemma")
    stored = getattr(torch, case.dtype)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name or name.endswith((".attn.bias", "masked_bias", "embed_scale")):
                continue  # not weights: they follow from the configuration
            values = draw(name, tuple(tensor.shape), rng, centred)
            kind = torch.float32 if "e_score_correction_bias" in name else stored
            tensor.copy_(torch.from_numpy(values).to(kind).float())
    return model


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator, centred: bool) -> np.ndarray:
    """Sets random weights with which every feature affects the logits, whose standard deviation
    is about 2.
    """
    part = name.removesuffix(".weight").rpartition(".")[2]
    normal = rng.standard_normal(shape).astype(np.float32)
    if "e_score_correction_bias" in name:
        return 0.2 * normal
    if name.endswith("bias"):
        return 0.4 * normal
    if len(shape) == 1:
        return 0.4 * normal + (0.0 if centred else 1.0)
    if part in ("embed_tokens", "wte", "wpe", "embed_in"):
        return normal / np.sqrt(shape[-1]) if centred else 0.7 * normal
    fan_in = (
        shape[0] if part in ("c_attn", "c_proj", "c_fc") else shape[-1]
    )  # GPT-2 stores its matrices transposed
    sharper = (
        2.0
        if part
        in ("q_proj", "k_proj", "q_b_proj", "c_attn", "query_key_value", "gate", "lm_head", "embed_out")
        else 1.0
    )
    return sharper * normal / np.sqrt(fan_in)


def write(model: Any, case: Case, folder: Path, seed: int = 0) -> None:
    """The folder of a model: config.json in the case's spelling, the other one as config.other.json,
    generation_config.json, tensors.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        config = json.loads((Path(temporary) / "config.json").read_text()) | {"dtype": case.dtype}
        (folder / "generation_config.json").write_text(
            (Path(temporary) / "generation_config.json").read_text()
        )
        tensors = load_file(Path(temporary) / "model.safetensors")
    if case.hub:
        tensors = as_on_the_hub(tensors, case.family, config)
    stored = getattr(torch, case.dtype)
    as_they_are = ("e_score_correction_bias", "masked_bias")  # float32 in every folder
    tensors = {
        n: t if n.endswith(as_they_are) or t.dtype == torch.bool else t.to(stored) for n, t in tensors.items()
    }
    new, hub = config, hub_spelling(config)
    first, second = (hub, new) if case.spelling == "4" else (new, hub)
    dropped = droppable(case, seed)
    for name, spelled in (("config.json", first), ("config.other.json", second)):
        (folder / name).write_text(
            json.dumps({k: v for k, v in spelled.items() if k not in dropped}, indent=2, sort_keys=True)
            + "\n"
        )
    write_tensors(tensors, folder, case.shards)


def droppable(case: Case, seed: int) -> set[str]:
    """Keys that the folder's config.json leaves out; "*": a random half of those that say what the class's
    default is.
    """
    if "*" not in case.drop:
        return set(case.drop)
    default = AutoConfig.for_model(case.family).to_dict()
    full = AutoConfig.for_model(case.family, **case.config).to_dict()
    rng = np.random.default_rng(seed)
    structural = {
        "model_type",
        "architectures",
        "dtype",
        "transformers_version",
        "rope_parameters",
        "layer_types",
    }
    same = [key for key in sorted(full) if key not in structural and full[key] == default.get(key)]
    return {key for key in same if rng.random() < 0.5}


def hub_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as it was written before transformers 5, and as it is on the Hub."""
    c = dict(config)
    family = c["model_type"]
    c["torch_dtype"] = c.pop("dtype")
    c["transformers_version"] = "4.51.0"
    rope = c.pop("rope_parameters", None)
    if family == "gemma3_text":
        kinds = c.pop("layer_types")
        pattern = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
        c.pop("_sliding_window_pattern", None)
        c["sliding_window_pattern"] = pattern
        assert kinds == [
            "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(len(kinds))
        ], kinds
        c["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    elif rope is None:
        return c
    rope = dict(rope)
    theta = rope.pop("rope_theta")
    if family == "gpt_neox":
        c["rotary_emb_base"], c["rotary_pct"] = theta, rope.pop("partial_rotary_factor")
    else:
        c["rope_theta"] = theta
    c["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if family == "qwen3_moe":
        c["num_experts"] = c.pop("num_local_experts")
    if family == "deepseek_v3":
        if c["rope_scaling"]:
            c["rope_scaling"]["type"] = c["rope_scaling"].pop("rope_type")
        c |= {
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
            "ep_size": 1,
            "aux_loss_alpha": 0.001,
            "seq_aux": True,
        }
        for key in ("head_dim", "qk_head_dim", "rope_interleave"):
            if key != "rope_interleave" or c[key]:
                c.pop(key, None)
    if family in ("qwen2", "qwen3", "gemma2"):
        c.pop("layer_types")
    return c


def as_on_the_hub(
    tensors: dict[str, torch.Tensor], family: str, config: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Names without the prefix (gpt2), and with the buffers that old folders carry."""
    if family == "gpt2":
        length = config["n_positions"]
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        mask = torch.ones(length, length).tril()[None, None]
        return tensors | {f"h.{i}.attn.bias": mask.clone() for i in range(config["n_layer"])}
    for i in range(config["num_hidden_layers"]):
        layer = f"gpt_neox.layers.{i}.attention."
        tensors[layer + "bias"] = (
            torch.ones(config["max_position_embeddings"], config["max_position_embeddings"])
            .tril()[None, None]
            .bool()
        )
        tensors[layer + "masked_bias"] = torch.tensor(-1e9)
        tensors[layer + "rotary_emb.inv_freq"] = torch.ones(4)
    return tensors


def write_tensors(tensors: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    """One model.safetensors, or shards and their index."""
    if shards == 1:
        save_file(
            {name: t.contiguous() for name, t in tensors.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        return
    names = sorted(tensors)
    places: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file(
            {name: tensors[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"}
        )
        places |= dict.fromkeys(part, file)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=1) + "\n"
    )


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder.

    Raises where transformers misses a tensor, or finds one that it doesn't know, buffers of old folders
    excepted.
    """
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **EAGER, output_loading_info=True)
    unknown = [
        n
        for n in info["unexpected_keys"]
        if not n.endswith((".attention.bias", ".attn.bias", "masked_bias", "inv_freq"))
    ]
    wrong = {"missing": info["missing_keys"], "unexpected": unknown, "mismatched": info["mismatched_keys"]}
    if any(wrong.values()):
        raise RuntimeError(f"{folder}: {wrong}")
    return model.eval()


def logits(model: Any, tokens_BT: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
    """[B, T, V] in the model's dtype."""
    with torch.no_grad():
        tensors = {name: torch.from_numpy(np.asarray(value)).long() for name, value in inputs.items()}
        return model(input_ids=torch.from_numpy(tokens_BT).long(), use_cache=False, **tensors).logits.numpy()


def greedy(model: Any, tokens_BT: np.ndarray, mask_BT: np.ndarray, count: int) -> np.ndarray:
    """The `count` most likely tokens one after the other, [B, count], by transformers' own generation with
    its cache.
    """
    settings = {
        "max_new_tokens": count,
        "min_new_tokens": count,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": PAD,
    }
    with torch.no_grad():
        out = model.generate(
            torch.from_numpy(tokens_BT).long(), attention_mask=torch.from_numpy(mask_BT).long(), **settings
        )
    return out[:, tokens_BT.shape[1] :].numpy().astype(np.int32)
