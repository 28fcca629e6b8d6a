"""How initial scales, learning rates and forward multipliers follow from a model's width and depth, so that
both can grow.

In the standard parametrization a wider model needs a smaller learning rate. In muP (maximal update
parametrization) activations, and their changes in a step, have equal sizes at all widths, and the best
learning rate is equal at all widths; in CompleteP at all depths too.

The tables are in powers of two ratios: m = embed / base_embed, and with completep d = layers / base_layers.
At the base shape all three parametrizations are one model. Sources:

- width: Yang et al. 2022 (Tensor Programs V), table 8, for Adam: the token and position tables, the head,
  norms and biases keep their scale and rate, hidden matrices get 1 / sqrt(m) and 1 / m, and the logits 1 / m.
  In this form of muP the head may be the embedding table, since both have one rule (their table 3 has two).
  Attention logits go with 1 / head_dim (their definition 4.1);
- depth: Dey et al. 2025 (CompleteP), table 1 with alpha = 1: each block's terms of the stream get 1 / d. No
  rate depends on d, and the initial scale of projections into the stream is that of the base depth;
- Adam's epsilon: Dey et al. 2025, table 1 (equation 40): gradients shrink with 1 / m, inside blocks with 1 /
  (m d), and epsilon with them;
- weight decay: Dey et al. 2025, table 1: rate times decay is equal at all sizes, so a decay is not multiplied
  by its weight's rate;
- routers of experts: they map a growing width to a fixed number of outputs, as a head does (Malasnicki et al.
  2025), here in the form of Yang's table 3, without a multiplier. Experts are hidden matrices.

Lion's updates have the size of Adam's and get Adam's rates. The width is one number: heads * head_dim, mlp,
the experts' mlp and the ranks of latent attention are assumed to grow with embed. `of_width` makes such a
family; kv_heads and the number of experts may stay fixed. (The gradients of weights that all heads share, for
keys of few heads or the rotated part of latent keys, then do not shrink with 1 / m, and Adam's epsilon for
them is smaller than it could be.)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import jax

from llm_jax.core.errors import UserError
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import RANK, Dims

Role = Literal["table", "hidden", "router", "vector", "adapter"]


@dataclass(frozen=True)
class Powers:
    """For one kind of weight: the powers of m that multiply its initial scale, learning rate and epsilon."""

    initial: float
    """Power for the initial standard deviation."""
    rate: float
    """Power for the learning rate."""
    epsilon: float
    """Power for Adam's epsilon; in blocks, with completep, d to the power BLOCK_EPSILON_DEPTH multiplies it
    too."""


WEIGHTS: dict[Role, Powers] = {
    "table": Powers(initial=0.0, rate=0.0, epsilon=-1.0),
    "hidden": Powers(initial=-0.5, rate=-1.0, epsilon=-1.0),
    "router": Powers(initial=-1.0, rate=-1.0, epsilon=0.0),
    "vector": Powers(initial=0.0, rate=0.0, epsilon=-1.0),
    "adapter": Powers(initial=0.0, rate=0.0, epsilon=0.0),
}
READOUT = -1.0
"""The power of m that multiplies the final stream, before the head."""
RESIDUAL_DEPTH = -1.0
"""The power of d that multiplies each block's terms of the stream."""
BLOCK_EPSILON_DEPTH = -1.0
"""The power of d that multiplies Adam's epsilon for the weights of blocks."""
ATTENTION = -0.5
"""The power of head_dim / base_head_dim that multiplies attention's logits, besides 1 / sqrt(head_dim)."""


@dataclass(frozen=True)
class Multipliers:
    """Factors on one weight's learning rate and on Adam's epsilon for it."""

    rate: float = 1.0
    epsilon: float = 1.0


NO_MULTIPLIERS = Multipliers()


def role(dims: Dims) -> Role:
    """The kind of a weight with these dims: a table [rows, embed], a router [embed, experts], a hidden matrix
    (from or to the stream, or from a latent that grows with it), a vector (a norm's scale, a bias, a
    magnitude of an adapter), or a factor of an adapter, which no rule scales."""
    if RANK in dims:
        return "adapter"
    if len(dims) - (dims[:1] == ("experts",)) < 2 or not {"embed", "latent"} & {*dims}:
        return "vector"
    if dims[0] in ("vocab", None):
        return "table"
    return "router" if dims[-1] is None else "hidden"


def width_ratio(config: ModelConfig) -> float:
    """m = embed / base_embed; 1 in the standard parametrization."""
    return (
        1.0
        if config.parametrization == "standard"
        else config.embed / required_base_size(config, "base_embed")
    )


def depth_ratio(config: ModelConfig) -> float:
    """d = layers / base_layers with completep; 1 in the other parametrizations."""
    return (
        config.layers / required_base_size(config, "base_layers")
        if config.parametrization == "completep"
        else 1.0
    )


def multipliers(config: ModelConfig, dims: Dims, in_block: bool) -> Multipliers:
    """The factors for a weight with these dims, inside a block or outside."""
    powers, m = WEIGHTS[role(dims)], width_ratio(config)
    d = depth_ratio(config) if in_block else 1.0
    return Multipliers(m**powers.rate, m**powers.epsilon * d**BLOCK_EPSILON_DEPTH)


def initial_multiplier(config: ModelConfig, dims: Dims) -> float:
    """The factor on the initial standard deviation of a weight with these dims."""
    return width_ratio(config) ** WEIGHTS[role(dims)].initial


def residual_std(config: ModelConfig) -> float:
    """The initial standard deviation of projections into the stream: init_std / sqrt(2 layers), since 2
    layers of them add up (GPT-2)."""
    layers = (
        required_base_size(config, "base_layers") if config.parametrization == "completep" else config.layers
    )
    return config.init_std / (2 * layers) ** 0.5


def readout_multiplier(config: ModelConfig) -> float:
    """The factor on the final stream, before the head."""
    return width_ratio(config) ** READOUT


def residual_multiplier(config: ModelConfig) -> float:
    """The factor on the output of a block's attention or feed-forward before it is added to the stream."""
    return depth_ratio(config) ** RESIDUAL_DEPTH


def attention_multiplier(config: ModelConfig) -> float:
    """The factor on attention's logits, besides the 1 / sqrt(head_dim) of every kernel.

    `model.attention_scale` replaces that root, so with it and muP the whole factor 1 / head_dim is here:
    logits scale with 1 / head_dim either way.
    """
    assert config.head_dim
    own = 1.0 if config.attention_scale is None else config.attention_scale * config.head_dim**0.5
    if config.parametrization == "standard":
        return own
    ratio = config.head_dim / (config.base_head_dim or config.head_dim)
    return own * ratio ** (ATTENTION if config.attention_scale is None else 2 * ATTENTION)


def times(x: jax.Array, multiplier: float) -> jax.Array:
    """x * multiplier; x itself for a multiplier of 1, so that a model of the base shape compiles to the
    standard model's program."""
    return x if multiplier == 1.0 else x * multiplier


def required_base_size(config: ModelConfig, key: str) -> int:
    """A key of the base shape that the parametrization needs; raises UserError if it is null."""
    value = getattr(config, key)
    if value is None:
        needed = f"model.parametrization={config.parametrization} needs it"
        raise UserError(f"model.{key}=null: {needed}: set the size at which the learning rate was tuned")
    return value


def check(config: ModelConfig) -> None:
    """Raises UserError if a key of the base shape is missing."""
    width_ratio(config)
    depth_ratio(config)


def of_width(config: ModelConfig, embed: int) -> ModelConfig:
    """The resolved model at another width: heads, kv_heads and all widths in proportion to embed, head_dim
    unchanged.

    Raises UserError where a size would not be whole.
    """
    sizes: dict[str, Any] = {"embed": embed}
    for key in ("heads", "kv_heads", "mlp"):
        sizes[key] = in_proportion(getattr(config, key), config.embed, embed, f"model.{key}")
    moe = config.moe
    if moe.experts:
        assert moe.mlp
        experts: dict[str, Any] = {}
        for key in ("mlp", "shared_mlp"):
            experts[key] = in_proportion(getattr(moe, key), config.embed, embed, f"model.moe.{key}")
        moe = dataclasses.replace(moe, **experts)
    latent = dataclasses.replace(
        config.latent,
        **{
            key: in_proportion(getattr(config.latent, key), config.embed, embed, f"model.latent.{key}")
            for key in ("query_rank", "kv_rank")
        },
    )
    return dataclasses.replace(config, **sizes, moe=moe, latent=latent)


def in_proportion(size: int, embed: int, wanted: int, key: str) -> int:
    """size * wanted / embed; raises UserError if it is not whole. key: the key of `size`, for the error."""
    if size * wanted % embed:
        raise UserError(
            f"{key}={size}: is for model.embed={embed}, and for a width of {wanted} it would be "
            f"{size * wanted / embed:g}, not whole"
        )
    return size * wanted // embed
