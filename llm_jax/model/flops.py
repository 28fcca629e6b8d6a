"""Parameters and floating-point operations of a model, counted from its configuration."""

from __future__ import annotations

from llm_jax.model.config import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that every token is multiplied with: projections, feed-forward and the head (tied or not).

    Of a mixture of experts the router, the shared expert and as many experts as a token is sent to: the active ones.
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
        mlp += sparse * (c.moe.top_k * expert_parameters(c, c.moe.mlp) + expert_parameters(c, c.moe.shared_mlp) + c.embed * c.moe.experts)
    return c.layers * attention_matrices(c) + mlp + c.vocab * c.embed


def attention_matrices(config: ModelConfig) -> int:
    """Weights of one layer's projections to queries, keys and values, and back."""
    c, latent = config, config.latent
    assert c.kv_heads
    assert c.head_dim
    if not latent.kv_rank:
        return c.embed * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    heads = c.heads * c.head_dim
    query = latent.query_rank * (c.embed + heads) if latent.query_rank else c.embed * heads
    key_value = c.embed * (latent.kv_rank + latent.rope_dim) + latent.kv_rank * c.heads * (latent.nope_dim + latent.value_dim)
    return query + key_value + c.heads * latent.value_dim * c.embed


def expert_parameters(config: ModelConfig, mlp: int) -> int:
    """Weights of a feed-forward block of this hidden width."""
    return (3 if config.gated else 2) * config.embed * mlp


def active_parameters(config: ModelConfig, total: int) -> int:
    """Of all parameters those that a token meets: all but the experts that it is not sent to."""
    if not config.sparse_layers:
        return total
    assert config.moe.mlp
    return total - len(config.sparse_layers) * (config.moe.experts - config.moe.top_k) * expert_parameters(config, config.moe.mlp)


def keys_per_query(sequence_length: int, window: int | None) -> float:
    """How many keys a query sees on average: causal, (T + 1) / 2, or fewer with a sliding window."""
    T = sequence_length
    if window is None or window >= T:
        return (T + 1) / 2
    return (window * (window + 1) / 2 + (T - window) * window) / T


def attention_flops_per_key(config: ModelConfig) -> int:
    """FLOPs of a query's meeting with one key, in one layer, forward and backward: the products with the key and with its value, of all heads."""
    assert config.head_dim
    return 3 * 2 * config.heads * (config.head_dim + config.value_dim)


def keys_per_query_of_all_layers(config: ModelConfig, sequence_length: int) -> float:
    """`keys_per_query`, summed over the layers."""
    windows = (config.of_layer(layer).window for layer in range(config.layers))
    return sum(keys_per_query(sequence_length, window) for window in windows)


def train_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of one token's forward and backward pass: 6 per matmul weight, and causal attention.

    A multiply-add is 2 FLOPs; the backward pass is twice the forward one. Attention counts only the keys that the
    causal mask (and the window) lets a query see, in rows of one document; recomputation (remat), norms, softmax and
    the optimizer are not counted. This is the convention of every MFU that llm_jax prints.
    """
    return 6 * matmul_parameters(config) + attention_flops_per_key(config) * keys_per_query_of_all_layers(config, sequence_length)


def non_embedding_parameters(config: ModelConfig, total: int) -> int:
    """Parameters without the tables of pieces and positions; an untied head is such a table too."""
    assert config.vocab
    tables = config.vocab * config.embed * (1 if config.tied_embeddings else 2)
    if config.position == "learned":
        tables += config.positions * config.embed
    return total - tables


def parameter_count(config: ModelConfig) -> int:
    """Numbers in all weights, without building the model. `config` must be resolved, with its vocabulary."""
    c = config
    assert c.kv_heads
    assert c.head_dim
    assert c.mlp
    assert c.vocab
    norm = c.embed * (2 if c.norm == "layer" else 1)
    norms = norm * (4 if c.norm_placement == "both" else 2)
    latents = c.latent.query_rank + c.latent.kv_rank
    made = latents + c.latent.rope_dim if c.latent.kv_rank else (c.heads + 2 * c.kv_heads) * c.head_dim
    attention = attention_matrices(c) + c.bias_qkv * made + c.bias_out * c.embed
    attention += latents  # their norms
    attention += {"none": 0, "head": 2 * c.head_dim, "projection": (c.heads + c.kv_heads) * c.head_dim}[c.qk_norm]
    dense = expert_parameters(c, c.mlp) + c.bias_mlp * ((2 if c.gated else 1) * c.mlp + c.embed)
    total = c.layers * (attention + norms) + norm + (c.layers - len(c.sparse_layers)) * dense
    if c.sparse_layers:
        assert c.moe.mlp
        experts = c.moe.experts * expert_parameters(c, c.moe.mlp) + expert_parameters(c, c.moe.shared_mlp)
        total += len(c.sparse_layers) * (experts + c.embed * c.moe.experts + (c.moe.experts if c.moe.bias else 0))
    total += c.vocab * c.embed * (1 if c.tied_embeddings else 2)
    return total + (c.positions * c.embed if c.position == "learned" else 0)
