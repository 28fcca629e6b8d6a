"""Parameters and training FLOPs of a model, counted from its configuration, in every convention that scaling
laws use.

The convention moves a law's exponents: Kaplan et al. (2020) leave the embeddings out of N, Hoffmann et al.
(2022) count them, and Porian et al. (2024) find that counting the head, which every token is multiplied with,
explains much of the difference between the two. So a run records all conventions, and a fit names the one
that it uses.

Every function takes a configuration that is `resolved`, with its vocabulary; no model is built.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from llm_jax.core.errors import check_choice
from llm_jax.model.config import ModelConfig

CONVENTIONS = {
    "6nd": ("parameters", "flops_6nd"),
    "6nd_non_embedding": ("parameters_non_embedding", "flops_6nd_non_embedding"),
    "6nd_with_head": ("parameters_with_head", "flops_6nd_with_head"),
    "exact": ("parameters_with_head", "flops_exact"),
}
"""A convention's name → the columns of N and of FLOPs in a run table.

6nd: N counts all weights. 6nd_non_embedding: N leaves out the token and position tables and the head (Kaplan
et al.). 6nd_with_head: N leaves out the tables and counts a head of vocabulary x width, tied or not (Porian
et al.). exact: 6 FLOPs for each weight of a matrix product, head included, and the products of attention that
the causal mask leaves; MFU counts these.
"""


def parameters(config: ModelConfig) -> dict[str, int]:
    """N in every convention: the columns of a run table that begin with "parameters". All experts of a
    mixture count."""
    return _parameters_by_convention(config, parameter_count(config))


def _parameters_by_convention(config: ModelConfig, total: int) -> dict[str, int]:
    non_embedding = non_embedding_parameters(config, total)
    return {
        "parameters": total,
        "parameters_non_embedding": non_embedding,
        "parameters_with_head": non_embedding + head_parameters(config),
    }


def flops_per_token(config: ModelConfig, sequence_length: int) -> dict[str, float]:
    """FLOPs of one token's forward and backward pass in every convention: the columns that begin with
    "flops_".

    6 N for each N, where a mixture of experts counts the experts that a token is sent to. Attention's
    products (of queries with keys, and of probabilities with values) take 12 x layers x heads x head_dim for
    each key that a query sees: the whole sequence (`full`, as most papers and libraries count), or the keys
    that the causal mask leaves, (T + 1) / 2 on average (`causal`).
    """
    active = _parameters_by_convention(config, active_parameters(config, parameter_count(config)))
    per_key = attention_flops_per_key(config)
    return {
        "flops_6nd": 6.0 * active["parameters"],
        "flops_6nd_non_embedding": 6.0 * active["parameters_non_embedding"],
        "flops_6nd_with_head": 6.0 * active["parameters_with_head"],
        "flops_attention_full": float(per_key * config.layers * sequence_length),
        "flops_attention_causal": per_key * keys_per_query_of_all_layers(config, sequence_length),
        "flops_exact": train_flops_per_token(config, sequence_length),
    }


def account(config: ModelConfig, sequence_length: int, tokens: float) -> dict[str, Any]:
    """Every column of N, and of FLOPs for a run over `tokens` tokens."""
    return {
        **parameters(config),
        **{name: value * tokens for name, value in flops_per_token(config, sequence_length).items()},
    }


def size(config: ModelConfig, convention: str) -> int:
    """N of a model in one of the CONVENTIONS."""
    return parameters(config)[columns(convention)[0]]


def cost_per_token(config: ModelConfig, sequence_length: int, convention: str) -> float:
    """FLOPs of training on one token, in one of the CONVENTIONS: a budget divided by this is a number of
    tokens."""
    return flops_per_token(config, sequence_length)[columns(convention)[1]]


def columns(convention: str) -> tuple[str, str]:
    """The columns of N and of FLOPs of a convention; an unknown one raises UserError."""
    check_choice("convention", convention, CONVENTIONS)
    return CONVENTIONS[convention]


def published_shapes() -> dict[str, Any]:
    """The tables of `shapes.toml`: model shapes and FLOPs as others published them, with their sources."""
    return tomllib.loads(Path(__file__).with_name("shapes.toml").read_text())


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that every token is multiplied with: projections, feed-forward and the head (tied or not).

    A mixture of experts counts its active part: the router, the shared expert and as many experts as a token
    is sent to.
    """
    c = config
    assert c.kv_heads
    assert c.head_dim
    assert c.mlp
    assert c.vocab
    sparse = len(c.sparse_layers)
    mlp = (c.layers - sparse) * expert_parameters(c, c.mlp)
    if sparse:
        assert c.moe.mlp
        mlp += sparse * (
            c.moe.top_k * expert_parameters(c, c.moe.mlp)
            + expert_parameters(c, c.moe.shared_mlp)
            + c.embed * c.moe.experts
        )
    return c.layers * attention_matrices(c) + mlp + head_parameters(c)


def head_parameters(config: ModelConfig) -> int:
    """Weights that the last stream is multiplied with, also where they are the embedding's."""
    assert config.vocab
    return config.embed * (config.vocab if config.outputs == "logits" else 1)


def table_parameters(config: ModelConfig) -> int:
    """Numbers in the token and position tables and in a head of its own."""
    assert config.vocab
    own_head = config.outputs == "reward" or not config.tied_embeddings
    positions = config.positions * config.embed if config.position == "learned" else 0
    return config.vocab * config.embed + own_head * head_parameters(config) + positions


def attention_matrices(config: ModelConfig) -> int:
    """Weights of one layer's projections to queries, keys and values, and of its output projection."""
    c, latent = config, config.latent
    assert c.kv_heads
    assert c.head_dim
    if not latent.kv_rank:
        return c.embed * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    heads = c.heads * c.head_dim
    query = latent.query_rank * (c.embed + heads) if latent.query_rank else c.embed * heads
    key_value = c.embed * (latent.kv_rank + latent.rope_dim) + latent.kv_rank * c.heads * (
        latent.nope_dim + latent.value_dim
    )
    return query + key_value + c.heads * latent.value_dim * c.embed


def expert_parameters(config: ModelConfig, mlp: int) -> int:
    """Weights of a feed-forward block, or of an expert, with hidden width `mlp`."""
    return (3 if config.gated else 2) * config.embed * mlp


def active_parameters(config: ModelConfig, total: int) -> int:
    """The parameters that a token uses: of all `total` ones, without the experts that it is not sent to."""
    if not config.sparse_layers:
        return total
    assert config.moe.mlp
    return total - len(config.sparse_layers) * (config.moe.experts - config.moe.top_k) * expert_parameters(
        config, config.moe.mlp
    )


def keys_per_query(sequence_length: int, window: int | None) -> float:
    """How many keys a query sees on average: causal, (T + 1) / 2, or fewer with a sliding window."""
    T = sequence_length
    if window is None or window >= T:
        return (T + 1) / 2
    return (window * (window + 1) / 2 + (T - window) * window) / T


def attention_flops_per_key(config: ModelConfig) -> int:
    """FLOPs for one query and one key in one layer, forward and backward, of all heads: the products with the
    key and its value."""
    assert config.head_dim
    return 3 * 2 * config.heads * (config.head_dim + config.value_dim)


def keys_per_query_of_all_layers(config: ModelConfig, sequence_length: int) -> float:
    """Keys that a query sees on average, summed over the layers with their own windows (see
    `keys_per_query`)."""
    windows = (config.of_layer(layer).window for layer in range(config.layers))
    return sum(keys_per_query(sequence_length, window) for window in windows)


def train_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of one token's forward and backward pass: 6 per matmul weight, and causal attention.

    A multiply-add is 2 FLOPs; the backward pass is twice the forward one. Attention counts only the keys that
    the causal mask (and the window) lets a query see, in rows of one document; recomputation (remat), norms,
    softmax and the optimizer are not counted. This is the convention of every MFU that llm_jax prints.
    """
    return 6 * matmul_parameters(config) + attention_flops_per_key(config) * keys_per_query_of_all_layers(
        config, sequence_length
    )


def non_embedding_parameters(config: ModelConfig, total: int) -> int:
    """The parameters without the token and position tables and without an untied head; `total`: all
    parameters."""
    return total - table_parameters(config)


def parameter_count(config: ModelConfig) -> int:
    """Numbers in all weights of the model."""
    c = config
    assert c.kv_heads
    assert c.head_dim
    assert c.mlp
    assert c.vocab
    norm = c.embed * (2 if c.norm == "layer" else 1)
    norms = norm * (4 if c.norm_placement == "both" else 2)
    latents = c.latent.query_rank + c.latent.kv_rank
    projected = latents + c.latent.rope_dim if c.latent.kv_rank else (c.heads + 2 * c.kv_heads) * c.head_dim
    attention = attention_matrices(c) + c.bias_qkv * projected + c.bias_out * c.embed
    attention += latents  # their norms
    attention += {"none": 0, "head": 2 * c.head_dim, "projection": (c.heads + c.kv_heads) * c.head_dim}[
        c.qk_norm
    ]
    dense = expert_parameters(c, c.mlp) + c.bias_mlp * ((2 if c.gated else 1) * c.mlp + c.embed)
    total = c.layers * (attention + norms) + norm + (c.layers - len(c.sparse_layers)) * dense
    if c.sparse_layers:
        assert c.moe.mlp
        experts = c.moe.experts * expert_parameters(c, c.moe.mlp) + expert_parameters(c, c.moe.shared_mlp)
        total += len(c.sparse_layers) * (
            experts + c.embed * c.moe.experts + (c.moe.experts if c.moe.bias else 0)
        )
    return total + table_parameters(c)
