"""Parameters and FLOPs in every convention, compared with the model that is built and with published
figures."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import jax
import pytest
from flax import nnx

from llm_jax.core.errors import UserError
from llm_jax.model import accounting
from llm_jax.model.accounting import active_parameters, parameter_count
from llm_jax.model.config import LatentConfig, ModelConfig, MoEConfig
from llm_jax.model.transformer import Transformer
from tests.conftest import ROOT

MODELS = {
    "llama": ModelConfig(layers=3, embed=48, heads=6, kv_heads=2, head_dim=10, mlp=80, vocab=100, tied_embeddings=False),
    "gpt2": ModelConfig(
        layers=2, embed=32, heads=4, vocab=50, norm="layer", activation="gelu", position="learned", positions=40,
        bias_qkv=True, bias_out=True, bias_mlp=True,
    ),
    "gated_with_biases": ModelConfig(layers=2, embed=32, heads=4, vocab=50, bias_mlp=True, bias_qkv=True, kv_heads=1),
    "qwen3": ModelConfig(layers=2, embed=32, heads=4, kv_heads=2, vocab=50, qk_norm="head"),
    "olmo2": ModelConfig(layers=2, embed=32, heads=4, kv_heads=2, vocab=50, qk_norm="projection", norm_placement="after"),
    "experts": ModelConfig(
        layers=3, embed=32, heads=4, vocab=50, moe=MoEConfig(experts=6, top_k=2, mlp=24, shared_mlp=16, bias=True, dense_layers=(0,)),
    ),
    "gemma2": ModelConfig(layers=2, embed=32, heads=4, kv_heads=2, vocab=50, norm_placement="both", norm_centred=True, attention_softcap=5.0),
    "deepseek": ModelConfig(
        layers=2, embed=32, heads=4, vocab=50, bias_qkv=True, bias_out=True,
        latent=LatentConfig(query_rank=12, kv_rank=10, nope_dim=6, rope_dim=4, value_dim=5),
    ),
    "no_query_rank": ModelConfig(layers=2, embed=32, heads=4, vocab=50, latent=LatentConfig(kv_rank=10, nope_dim=6, rope_dim=4, value_dim=5)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_counted_parameters_are_those_of_the_model_that_is_built(name):
    config = MODELS[name].resolved()
    built = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    assert parameter_count(config) == sum(x.size for x in jax.tree.leaves(nnx.state(built)))


def test_conventions_of_a_model_by_hand():
    config = ModelConfig(
        layers=2, embed=8, heads=2, kv_heads=1, head_dim=6, mlp=20, vocab=30, tied_embeddings=False
    ).resolved()
    block = 8 * 6 * (2 * 2 + 2 * 1) + 3 * 8 * 20 + 2 * 8  # query, out, key, value; gate, up, down; two norms
    non_embedding, T, D = 2 * block + 8, 16, 160.0
    counted = accounting.account(config, T, D)
    assert counted["parameters_non_embedding"] == non_embedding
    assert counted["parameters"] == non_embedding + 2 * 30 * 8
    assert counted["parameters_with_head"] == non_embedding + 30 * 8
    assert counted["flops_6nd"] == 6 * D * (non_embedding + 2 * 30 * 8)
    assert counted["flops_6nd_non_embedding"] == 6 * D * non_embedding
    assert counted["flops_6nd_with_head"] == 6 * D * (non_embedding + 30 * 8)
    assert counted["flops_attention_full"] == 3 * 4 * 2 * (2 * 6) * T * D
    assert counted["flops_attention_causal"] == 3 * 4 * 2 * (2 * 6) * (T + 1) / 2 * D
    norms = 2 * 2 * 8 + 8  # no matrices: they are in N and not in exact FLOPs
    assert (
        counted["flops_exact"] == 6 * D * (non_embedding - norms + 30 * 8) + counted["flops_attention_causal"]
    )


def test_a_sliding_window_and_experts_cost_only_what_a_token_uses():
    dense, windowed = (
        ModelConfig(layers=1, embed=32, heads=4, vocab=50, window=w).resolved() for w in (None, 4)
    )
    one, other = accounting.flops_per_token(dense, 64), accounting.flops_per_token(windowed, 64)
    assert (
        other["flops_attention_causal"]
        < 4 * one["flops_attention_full"] / 64
        < other["flops_attention_causal"] * 1.1
    )
    assert one["flops_attention_full"] == other["flops_attention_full"]
    six, two = (accounting.account(MODELS["experts"].resolved(), 32, 1.0), MODELS["experts"].resolved())
    missed = 2 * 4 * 3 * 32 * 24  # layers, experts that a token is not sent to, their matrices
    assert six["flops_6nd"] == 6 * (six["parameters"] - missed)
    assert six["parameters"] == parameter_count(two)


def test_windows_by_layer_and_latents_are_counted():
    T, heads = 64, {"layers": 3, "embed": 32, "heads": 4, "vocab": 50}
    every, some, none = (
        ModelConfig(**heads, **more).resolved()
        for more in ({"window": 4}, {"window": 4, "window_layers": (0, 2)}, {})
    )  # type: ignore[arg-type]
    windowed, mixed, full = (
        accounting.flops_per_token(c, T)["flops_attention_causal"] for c in (every, some, none)
    )
    assert mixed == pytest.approx(2 / 3 * windowed + 1 / 3 * full)
    config = MODELS["deepseek"].resolved()
    matrices = (
        2 * (32 * 12 + 12 * 4 * 10 + 32 * (10 + 4) + 10 * 4 * (6 + 5) + 4 * 5 * 32 + 3 * 32 * config.mlp)
        + 50 * 32
    )  # type: ignore[operator]
    counted = accounting.flops_per_token(config, T)
    # layers; forward and backward; keys of 10, values of 5 in 4 heads
    assert counted["flops_attention_full"] == 2 * 3 * 2 * 4 * (10 + 5) * T
    assert counted["flops_exact"] == 6 * matrices + counted["flops_attention_causal"]


def test_deepseek_v3_has_the_published_number_of_parameters():
    """DeepSeek-AI 2024: 671 B in total, 37 B active."""
    config = ModelConfig(
        layers=61, embed=7168, heads=128, mlp=18432, vocab=129280, tied_embeddings=False,
        latent=LatentConfig(query_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
        moe=MoEConfig(experts=256, top_k=8, mlp=2048, shared_mlp=2048, bias=True, dense_layers=(0, 1, 2), scores="sigmoid", groups=8, top_groups=4),
    ).resolved()  # fmt: skip
    total = parameter_count(config)
    assert round(total / 1e9) == 671
    # without the embedding, of which a token uses one row
    assert round((active_parameters(config, total) - 129280 * 7168) / 1e9) == 37


def published(shared_tables: Path | None, name: str, rows: list, columns: dict[str, str]) -> None:
    """Asserts that rows of the project's copy of a table equal those of the reference data."""
    if shared_tables is None:
        return
    with (shared_tables / name).open() as file:
        theirs = [[float(row[column]) for column in columns.values()] for row in csv.DictReader(file)]
    assert theirs == [[float(value) for value in row] for row in rows]


@pytest.fixture
def tables() -> Path:
    folder = (
        Path(os.environ.get("LLM_JAX_SHARED_DATA", ROOT.parent / "shared" / "data")) / "scaling" / "tables"
    )
    if not folder.is_dir():
        pytest.skip(
            f"no reference data: {folder} is not there (LLM_JAX_SHARED_DATA names the folder above scaling)"
        )
    return folder


def test_the_project_carries_the_published_tables_unchanged(tables):
    ours = accounting.published_shapes()
    names = {
        "parameters": "params",
        "embed": "d_model",
        "mlp": "ffw_size",
        "head_dim": "kv_size",
        "heads": "n_heads",
        "layers": "n_layers",
    }
    assert list(names) == ours["chinchilla"]["columns"]
    published(tables, "chinchilla_table_a9_shapes.csv", ours["chinchilla"]["shapes"], names)
    names = {
        "embed": "d_model",
        "heads": "n_heads",
        "layers": "n_layers",
        "mlp": "ffw_size",
        "parameters": "params",
        "flops": "exact_flops_per_seq",
    }
    names["exact_over_6nd"] = "ratio"
    published(tables, "chinchilla_exact_vs_6nd_flops.csv", ours["chinchilla_exact"]["shapes"], names)


def chinchilla(embed: int, mlp: int, head_dim: int, heads: int, layers: int) -> ModelConfig:
    """A model of Hoffmann et al., without its relative positions: LayerNorm, biases, no gate."""
    return ModelConfig(
        layers=layers, embed=embed, heads=heads, head_dim=head_dim, mlp=mlp, vocab=32000, norm="layer", activation="gelu",
        bias_qkv=True, bias_out=True, bias_mlp=True,
    ).resolved()  # fmt: skip


def test_the_fifty_chinchilla_shapes_to_eight_in_a_thousand():
    shapes = accounting.published_shapes()["chinchilla"]["shapes"]
    assert len(shapes) == 50
    assert sum(head_dim * heads != embed for _, embed, _, head_dim, heads, _ in shapes) == 6
    for parameters, embed, mlp, head_dim, heads, layers in shapes:
        config = chinchilla(embed, mlp, head_dim, heads, layers)
        # a matrix of relative positions in each layer, which ours do not have
        relative = layers * embed * heads * head_dim
        assert accounting.parameters(config)["parameters_with_head"] + relative == pytest.approx(
            parameters, rel=0.008
        ), parameters


def test_exact_over_6nd_is_the_published_ratio():
    table = accounting.published_shapes()["chinchilla_exact"]
    T = table["sequence_length"]
    for embed, heads, layers, mlp, parameters, per_sequence, ratio in table["shapes"]:
        config = chinchilla(embed, mlp, embed // heads, heads, layers)
        counted = accounting.flops_per_token(config, T)
        # the published count leaves the logits out, and has 3 for each score for the softmax, forward and
        # twice back
        head = 6 * 32000 * embed
        softmax = 3 * 3 * layers * heads * T
        exact = (
            counted["flops_exact"]
            - head
            - counted["flops_attention_causal"]
            + counted["flops_attention_full"]
            + softmax
        )
        assert exact * T == pytest.approx(per_sequence, rel=1e-12)
        assert exact / (6 * parameters) == pytest.approx(ratio, abs=1e-6)  # six decimals are given


def test_an_unknown_convention_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean '6nd_with_head'"):
        accounting.columns("6nd_with_heads")
