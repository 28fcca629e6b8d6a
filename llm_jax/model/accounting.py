"""Parameters and training FLOPs in every convention that scaling laws are stated in, from a model's configuration alone.

Which one a paper uses moves its exponents: Kaplan et al. (2020) leave the embeddings out of N, Hoffmann et al. (2022) count
them, and Porian et al. (2024) find that counting the head too, which every token is multiplied with, explains much of the
difference between the two. So a run records all of them, and a fit names the one that it uses.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from llm_jax.core.errors import check_choice
from llm_jax.model.config import ModelConfig
from llm_jax.model.flops import (
    active_parameters,
    attention_flops_per_key,
    keys_per_query_of_all_layers,
    non_embedding_parameters,
    parameter_count,
    train_flops_per_token,
)

CONVENTIONS = {
    "6nd": ("parameters", "flops_6nd"),
    "6nd_non_embedding": ("parameters_non_embedding", "flops_6nd_non_embedding"),
    "6nd_with_head": ("parameters_with_head", "flops_6nd_with_head"),
    "exact": ("parameters_with_head", "flops_exact"),
}
"""A convention's name → the columns of N and of FLOPs in a run table.

6nd: N counts all weights. 6nd_non_embedding: without the tables of pieces and positions and without the head (Kaplan et al.).
6nd_with_head: without the tables, with a head of vocabulary x width, tied or not (Porian et al.). exact: 6 for each weight of a
matrix product, head included, and the products of attention that the causal mask leaves: what MFU counts.
"""


def parameters(config: ModelConfig) -> dict[str, int]:
    """N in every convention: the columns of a run table that begin with "parameters". Of a mixture of experts all experts count."""
    return _by_convention(config, parameter_count(config))


def _by_convention(config: ModelConfig, total: int) -> dict[str, int]:
    assert config.vocab
    non_embedding = non_embedding_parameters(config, total)
    return {
        "parameters": total,
        "parameters_non_embedding": non_embedding,
        "parameters_with_head": non_embedding + config.vocab * config.embed,
    }


def flops_per_token(config: ModelConfig, sequence_length: int) -> dict[str, float]:
    """FLOPs of one token's forward and backward pass in every convention: the columns that begin with "flops_".

    6 N for each N, where a mixture of experts counts the experts that a token is sent to. Attention's own (products of queries with
    keys, and of their weights with values) are 12 x layers x heads x head_dim for each key that a query meets: all of the sequence
    (`full`, as most papers and peers count), or those that the causal mask leaves, (T + 1) / 2 of T on average (`causal`).
    """
    active = _by_convention(config, active_parameters(config, parameter_count(config)))
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
    """Every column of N and of FLOPs for a run over so many tokens."""
    return {**parameters(config), **{name: value * tokens for name, value in flops_per_token(config, sequence_length).items()}}


def size(config: ModelConfig, convention: str) -> int:
    """N in a convention."""
    return parameters(config)[columns(convention)[0]]


def cost_per_token(config: ModelConfig, sequence_length: int, convention: str) -> float:
    """FLOPs of a token in a convention: a budget over this is the number of tokens that it pays for."""
    return flops_per_token(config, sequence_length)[columns(convention)[1]]


def columns(convention: str) -> tuple[str, str]:
    """The columns of N and of FLOPs of a convention; UserError for one that there is not."""
    check_choice("convention", convention, CONVENTIONS)
    return CONVENTIONS[convention]


def published_shapes() -> dict[str, Any]:
    """`shapes.toml`: model shapes and FLOPs as others published them, with their sources."""
    return tomllib.loads(Path(__file__).with_name("shapes.toml").read_text())
