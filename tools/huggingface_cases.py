"""Configurations of tiny models of every family: those of the fixtures, and random ones.

They are arguments of transformers' config classes. `make_huggingface_fixtures.py` and `check_huggingface.py`
build the models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 83,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Case:
    """A model and how its folder is written."""

    family: str
    """The `model_type` of transformers."""
    config: dict[str, Any]
    """Keys that its config class gets."""
    spelling: str = "5"
    """The spelling of config.json: "5" as transformers 5 writes it, "4" as on the Hub."""
    dtype: str = "float32"
    """The dtype of the tensors in the file."""
    shards: int = 1
    """Files that the tensors are spread over."""
    hub: bool = False
    """Names and buffers as the oldest folders on the Hub have them (gpt2, gpt_neox)."""
    drop: tuple[str, ...] = field(default=())
    """Keys left out of config.json: what they say is the default."""


CASES = {
    "gpt2": Case("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_inner": 48, "n_positions": 64, "vocab_size": 83}),
    "gpt2_hub": Case(
        "gpt2",
        {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 83, "layer_norm_epsilon": 1e-3},
        spelling="4", dtype="float16", hub=True,
    ),
    "gpt_neox": Case(
        "gpt_neox",
        {
            "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3,
            "vocab_size": 83, "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.25},
        },
    ),
    "gpt_neox_hub": Case(
        "gpt_neox",
        {
            "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
            "vocab_size": 83, "max_position_embeddings": 64, "use_parallel_residual": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
        spelling="4", dtype="float16", hub=True,
    ),
    "llama": Case(
        "llama",
        LLAMA | {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        },
        spelling="4", dtype="bfloat16", shards=3,
    ),
    "llama_bias_tied": Case(
        "llama",
        LLAMA | {
            "head_dim": 12, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            "max_position_embeddings": 128,
        },
        drop=("num_key_value_heads", "rms_norm_eps", "hidden_act", "pretraining_tp"),
    ),
    "mistral": Case("mistral", LLAMA | {"head_dim": 12, "sliding_window": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}),
    "qwen2": Case("qwen2", LLAMA | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, spelling="4"),
    "qwen2_tied": Case(
        "qwen2",
        LLAMA | {
            "tie_word_embeddings": True, "max_position_embeddings": 64, "sliding_window": 8,
            "rope_parameters": YARN | {"rope_theta": 100.0, "beta_fast": 2.0, "beta_slow": 0.1, "truncate": False},
        },
        dtype="bfloat16", shards=2,
    ),
    "qwen3": Case(
        "qwen3",
        LLAMA | {"head_dim": 16, "rope_parameters": YARN, "max_position_embeddings": 64, "tie_word_embeddings": True},
        spelling="4",
    ),
    "qwen3_moe": Case(
        "qwen3_moe",
        LLAMA | {
            "head_dim": 12, "num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 3,
            "moe_intermediate_size": 12, "norm_topk_prob": True, "mlp_only_layers": [3],
            "decoder_sparse_step": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "qwen3_moe_step": Case(
        "qwen3_moe",
        LLAMA | {
            "head_dim": 8, "num_hidden_layers": 5, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 12, "norm_topk_prob": False, "decoder_sparse_step": 2,
            "use_sliding_window": True, "sliding_window": 8, "tie_word_embeddings": True,
        },
        spelling="4", dtype="bfloat16", drop=("norm_topk_prob", "rope_theta"),
    ),
    "mixtral": Case(
        "mixtral",
        LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24, "sliding_window": 8, "rms_norm_eps": 1e-4},
    ),
    "olmo2": Case("olmo2", LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "rms_norm_eps": 1e-6}, spelling="4"),
    "gemma2": Case(
        "gemma2",
        LLAMA | {
            "head_dim": 12, "num_hidden_layers": 3, "sliding_window": 8, "query_pre_attn_scalar": 7,
            "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0,
            "hidden_activation": "gelu_pytorch_tanh",
        },
        spelling="4",
    ),
    "gemma3": Case(
        "gemma3_text",
        LLAMA | {
            "head_dim": 12, "num_hidden_layers": 5, "sliding_window": 8, "query_pre_attn_scalar": 7,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        dtype="bfloat16",
    ),
    "deepseek_v3": Case(
        "deepseek_v3",
        LLAMA | {
            "num_key_value_heads": 4, "moe_intermediate_size": 12, "n_routed_experts": 8,
            "n_shared_experts": 2, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
            "first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "q_lora_rank": 12, "kv_lora_rank": 10,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 6, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "attention_bias": True,
            "rope_parameters": YARN | {"beta_fast": 4.0, "beta_slow": 1.0, "mscale": 0.7, "mscale_all_dim": 1.3},
        },
        spelling="4",
    ),
    "deepseek_v3_noqlora": Case(
        "deepseek_v3",
        LLAMA | {
            "num_key_value_heads": 4, "moe_intermediate_size": 12, "n_routed_experts": 6,
            "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": 0, "q_lora_rank": None, "kv_lora_rank": 16, "norm_topk_prob": False,
            "qk_nope_head_dim": 12, "qk_rope_head_dim": 4, "v_head_dim": 16, "num_hidden_layers": 2,
        },
        dtype="bfloat16", shards=2,
    ),
}  # fmt: skip
"""The models of tests/huggingface/fixtures, by folder.

Together: every family, every key that changes what is computed, and both spellings.
"""


def random_case(family: str, seed: int) -> Case:
    """A model of a family (a model_type) in sizes that no fixture has; the same for the same seed."""
    rng = np.random.default_rng([seed, *family.encode()])
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    chance = lambda p=0.5: bool(rng.random() < p)  # noqa: E731
    kv, group, layers = pick(1, 2, 3), pick(1, 2, 3), pick(1, 2, 3, 4, 5)
    heads, per_head = kv * group, pick(6, 8, 10)
    sizes: dict[str, Any] = {
        "vocab_size": pick(61, 90, 101), "hidden_size": heads * per_head, "num_attention_heads": heads,
        "num_key_value_heads": kv, "num_hidden_layers": layers, "intermediate_size": pick(20, 33, 50),
        "max_position_embeddings": pick(64, 128), "rms_norm_eps": pick(1e-5, 1e-6, 1e-3),
        "tie_word_embeddings": chance(),
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": pick(500.0, 10000.0, 1000000.0)}
    length = {"original_max_position_embeddings": 16}
    betas = {"beta_fast": 8.0, "beta_slow": 2.0} if chance() else {}
    yarn = rope | length | {"rope_type": "yarn", "factor": pick(2.0, 4.0)}
    llama3 = (
        rope
        | length
        | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": pick(2.0, 4.0)}
    )
    linear = rope | {"rope_type": "linear", "factor": pick(2.0, 5.0)}
    scaled = [
        rope,
        linear,
        llama3,
        yarn | betas,
        yarn | {"attention_factor": pick(0.8, 1.3)},
        yarn | betas | {"truncate": False},
    ]
    moe = {"num_experts_per_tok": pick(1, 2, 3), "moe_intermediate_size": pick(7, 12)}
    config = dict(sizes)
    if family == "gpt2":
        config = {
            "n_embd": heads * per_head, "n_head": heads, "n_layer": layers, "n_inner": pick(None, 37),
            "n_positions": 64, "vocab_size": 101, "layer_norm_epsilon": pick(1e-5, 1e-3),
            "activation_function": pick("gelu_new", "gelu"), "tie_word_embeddings": chance(0.8),
        }  # fmt: skip
    elif family == "gpt_neox":
        per_head, fraction = pick((8, 0.25), (16, 0.25), (8, 0.5), (6, 1.0))
        del config["rms_norm_eps"], config["num_key_value_heads"]
        config |= {
            "hidden_size": heads * per_head, "use_parallel_residual": chance(0.7),
            "layer_norm_eps": pick(1e-5, 1e-3), "hidden_act": pick("gelu", "gelu_new"),
            "attention_bias": chance(0.8),
            "rope_parameters": pick(rope, rope | {"rope_type": "linear", "factor": 4.0}) | {"partial_rotary_factor": fraction},
        }  # fmt: skip
    elif family == "llama":
        config |= {
            "rope_parameters": pick(*scaled),
            "attention_bias": chance(),
            "mlp_bias": chance(),
            "head_dim": pick(None, 4, 14),
        }
    elif family == "mistral":
        config |= {
            "rope_parameters": pick(*scaled),
            "sliding_window": pick(None, 1, 5, 8),
            "head_dim": pick(None, 4, 14),
        }
    elif family == "qwen2":
        config |= {
            "rope_parameters": pick(rope, yarn | betas),
            "use_sliding_window": chance(0.7),
            "sliding_window": pick(3, 8),
        }
        config["max_window_layers"] = int(rng.integers(0, layers + 1))
    elif family == "qwen3":
        config |= {
            "rope_parameters": pick(rope, *scaled[3:]),
            "head_dim": pick(4, 12, 128),
            "attention_bias": chance(),
            "use_sliding_window": chance(),
        }
        config |= {"sliding_window": 5, "max_window_layers": int(rng.integers(0, layers + 1))}
    elif family == "qwen3_moe":
        only = [i for i in range(layers) if chance(0.3)]
        config |= moe | {
            "rope_parameters": pick(rope, yarn | betas), "head_dim": pick(4, 12),
            "attention_bias": chance(0.3), "num_experts": pick(4, 7), "norm_topk_prob": chance(),
            "mlp_only_layers": only, "decoder_sparse_step": pick(1, 1, 2, 3),
            "use_sliding_window": chance(0.3), "sliding_window": 6,
        }  # fmt: skip
    elif family == "mixtral":
        config |= {
            "rope_parameters": rope,
            "sliding_window": pick(None, None, 5),
            "num_local_experts": pick(3, 8),
        }
        config |= {"num_experts_per_tok": pick(1, 2, 3), "head_dim": pick(None, 12)}
    elif family == "olmo2":
        config |= {"rope_parameters": pick(rope, *scaled), "attention_bias": chance(0.3)}
    elif family == "gemma2":
        config |= {
            "rope_parameters": rope, "head_dim": pick(4, 12), "sliding_window": pick(1, 5),
            "query_pre_attn_scalar": pick(3, 24), "attention_bias": chance(0.3),
            "attn_logit_softcapping": pick(None, 2.0, 50.0), "final_logit_softcapping": pick(None, 3.0, 30.0),
            "tie_word_embeddings": chance(0.8),
        }  # fmt: skip
    elif family == "gemma3_text":
        pattern = pick(2, 3, 6)
        kinds = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
        config |= {
            "head_dim": pick(4, 12), "sliding_window": pick(1, 5), "query_pre_attn_scalar": pick(3, 24),
            "layer_types": kinds,
            "rope_parameters": {
                "full_attention": pick(rope, rope | {"rope_type": "linear", "factor": 8.0}),
                "sliding_attention": {"rope_type": "default", "rope_theta": pick(100.0, 10000.0)},
            },
            "tie_word_embeddings": chance(0.8), "final_logit_softcapping": pick(None, None, 5.0),
            "attn_logit_softcapping": None,
        }  # fmt: skip
    elif family == "deepseek_v3":
        groups = pick(1, 2, 4)
        config |= moe | {
            "num_key_value_heads": heads, "n_group": groups, "topk_group": int(rng.integers(1, groups + 1)),
            "n_routed_experts": groups * pick(3, 4), "n_shared_experts": pick(1, 2),
            "first_k_dense_replace": int(rng.integers(0, layers + 1)),
            "routed_scaling_factor": pick(1.0, 2.5), "norm_topk_prob": chance(0.7),
            "q_lora_rank": pick(None, 9, 16), "kv_lora_rank": pick(8, 13), "qk_nope_head_dim": pick(6, 8),
            "qk_rope_head_dim": pick(4, 6), "v_head_dim": pick(4, 8, 10), "attention_bias": chance(0.5),
            "rope_interleave": chance(0.8),
            "rope_parameters": pick(rope, yarn, yarn | betas | {"mscale": 1.0, "mscale_all_dim": 1.0}, yarn | {"mscale": 0.7, "mscale_all_dim": 1.2}),
        }  # fmt: skip
    return Case(
        family, config, spelling=pick("4", "5"), dtype=pick("float32", "float32", "float16", "bfloat16"),
        shards=pick(1, 1, 3), hub=family in ("gpt2", "gpt_neox") and chance(0.4),
        drop=("*",) if chance() else (),
    )  # fmt: skip
