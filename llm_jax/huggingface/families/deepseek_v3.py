"""DeepSeek-V3 and R1: latent attention, YaRN, shared experts, and experts chosen by groups with a bias.

The files rotate pairs of neighbouring dims (0 and 1, 2 and 3), this model pairs of dims half a head apart. So
the rows of projections are permuted when they are read and written.
"""

from __future__ import annotations

import math
from typing import Any

from llm_jax.huggingface.common import (
    BUFFERS,
    GATED_ACTIVATION_NAMES,
    GATED_ACTIVATIONS,
    attention_bias,
    block_norms,
    embedding_and_head,
    experts,
    feed_forward,
    linear,
    llama_keys,
)
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.family import Family, Key, Tree
from llm_jax.huggingface.rope import read_rope, rope_parameters, write_rope, yarn_mscale
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig

KEYS = (
    *(
        key
        for key in llama_keys(
            vocab_size=129280,
            hidden_size=7168,
            intermediate_size=18432,
            num_hidden_layers=61,
            num_attention_heads=128,
            max_position_embeddings=4096,
        )
        if key.field != "head_dim"
    ),
    Key("moe_intermediate_size", "moe.mlp", 2048),
    Key("n_routed_experts", "moe.experts", 256, aliases=("num_local_experts",)),
    Key("num_experts_per_tok", "moe.top_k", 8),
    Key("routed_scaling_factor", "moe.scale", 2.5),
    Key("norm_topk_prob", "moe.normalise", True),
    Key("kv_lora_rank", "latent.kv_rank", 512),
    Key("qk_nope_head_dim", "latent.nope_dim", 128),
    Key("qk_rope_head_dim", "latent.rope_dim", 64),
    Key("v_head_dim", "latent.value_dim", 128),
)


def read(reader: ConfigReader, values: dict[str, Any]) -> dict[str, Any]:
    rope = read_rope(reader, positions=values["positions"])
    rope_dim = values["latent.rope_dim"]
    head_dim = values["latent.nope_dim"] + rope_dim
    reader.require(
        "head_dim", rope_dim, head_dim, None
    )  # in files of transformers 5; both follow from other keys
    reader.require("qk_head_dim", head_dim, None)
    reader.require("topk_method", "noaux_tc")
    reader.require("scoring_func", "sigmoid")
    reader.require("moe_layer_freq", 1)
    reader.take("rope_interleave", True)  # used in `tensors`
    reader.take(
        "num_nextn_predict_layers", None, "num_mtp_layers"
    )  # their tensors are refused unless leave_out= names them
    if values["kv_heads"] not in (None, values["heads"]):
        heads = values["heads"]
        raise reader.error(
            f"num_key_value_heads={values['kv_heads']}: must be num_attention_heads={heads} in latent "
            "attention"
        )
    shared, dense = (
        reader.take("n_shared_experts", 1) or 0,
        min(reader.take("first_k_dense_replace", 3) or 0, values["layers"]),
    )
    groups, top_groups = reader.take("n_group", 8) or 1, reader.take("topk_group", 4) or 1
    sparse: dict[str, Any] = {
        "moe.shared_mlp": shared * (values["moe.mlp"] or 0),
        "moe.dense_layers": tuple(range(dense)),
        "moe.groups": groups,
        "moe.top_groups": top_groups,
        "moe.scores": "sigmoid",
        "moe.bias": True,
    }
    scaling, mscale = rope["rope_scaling"], rope_parameters(reader, {}).get("mscale_all_dim")
    scale = (
        yarn_mscale(scaling.factor, mscale) ** 2 * head_dim**-0.5
        if mscale and scaling.kind == "yarn"
        else None
    )
    return {
        **rope,
        **attention_bias(reader),
        **(sparse if dense < values["layers"] else {"moe.experts": 0}),
        "attention_scale": scale,
        "latent.query_rank": reader.take("q_lora_rank", 1536) or 0,
        "activation": reader.choice("hidden_act", GATED_ACTIVATIONS, "silu"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    moe, latent, scaling = model.moe, model.latent, model.rope_scaling
    more: dict[str, Any] = {}
    head_dim = latent.nope_dim + latent.rope_dim
    if scaling.kind == "yarn" and scaling.factor > 1:
        grown = math.sqrt((model.attention_scale or head_dim**-0.5) * head_dim**0.5)
        per = 0.1 * math.log(scaling.factor)
        more["mscale_all_dim"] = round((grown - 1) / per, 12)
        if scaling.attention_factor is not None:  # the official code reads only these two
            more["mscale"] = round((scaling.attention_factor * grown - 1) / per, 12)
    rope = write_rope(model, **more)
    if "mscale" in more and more["mscale"] and more["mscale_all_dim"]:
        for tree in (rope["rope_parameters"], rope["rope_scaling"]):
            tree.pop("attention_factor", None)
    return {
        **rope,
        "q_lora_rank": latent.query_rank or None,
        "n_shared_experts": moe.shared_mlp // (moe.mlp or 1),
        "first_k_dense_replace": len(moe.dense_layers) if moe.experts else model.layers,
        "n_group": moe.groups,
        "topk_group": moe.top_groups,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "rope_interleave": True,
        "num_nextn_predict_layers": 0,
        "attention_bias": model.bias_qkv,
        "hidden_act": GATED_ACTIVATION_NAMES.get(model.activation, "silu"),
    }


def tensors(model: ModelConfig, tree: Tree) -> list[Entry]:
    at, latent = "model.layers.{layer}.self_attn", model.latent
    order = interleaved_to_halves if tree.get("rope_interleave", True) else unchanged_order
    head, kv = order(latent.nope_dim, latent.rope_dim), order(latent.kv_rank, latent.rope_dim)
    return [
        *embedding_and_head(),
        *block_norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        Entry(f"{at}.q_proj.weight", "attention.query", "(h k) d -> d h k", order=("k", head)),
        *linear(f"{at}.q_a_proj", "attention.query_down", "r d -> d r", "r -> r"),
        Entry(f"{at}.q_a_layernorm.weight", "attention.query_norm.scale", "r -> r"),
        Entry(f"{at}.q_b_proj.weight", "attention.query_up", "(h k) r -> r h k", order=("k", head)),
        Entry(f"{at}.kv_a_proj_with_mqa.weight", "attention.kv_down", "r d -> d r", order=("r", kv)),
        Entry(f"{at}.kv_a_proj_with_mqa.bias", "attention.kv_down_bias", "r -> r", order=("r", kv)),
        Entry(f"{at}.kv_a_layernorm.weight", "attention.kv_norm.scale", "r -> r"),
        Entry(f"{at}.kv_b_proj.weight", "attention.kv_up", "(h n) r -> r h n"),
        *linear(f"{at}.o_proj", "attention.out", "d (h v) -> h v d", "d -> d"),
        *feed_forward(),
        *experts("mlp", "gate_proj", "up_proj", "down_proj"),
        Entry("model.layers.{layer}.mlp.gate.e_score_correction_bias", "mlp.bias", "e -> e", only="sparse"),
        *feed_forward("mlp.shared_experts", "mlp.shared", only="sparse"),
    ]


def interleaved_to_halves(kept: int, rotated: int) -> tuple[int, ...]:
    """For each dim of a head here its index in the files: `kept` dims without rotation, then the first of
    each pair, then the second.
    """
    return (*range(kept), *range(kept, kept + rotated, 2), *range(kept + 1, kept + rotated, 2))


def unchanged_order(kept: int, rotated: int) -> tuple[int, ...]:
    """The identity, for files that rotate dims half a head apart (`rope_interleave` false)."""
    return tuple(range(kept + rotated))


FAMILY = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    KEYS,
    read,
    write,
    tensors,
    classifier="DeepseekV3ForSequenceClassification",
    rank=120,
    buffers=BUFFERS,
    prefix="model.",
)
