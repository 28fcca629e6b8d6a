"""How initial scales, learning rates and forward multipliers follow from a model's width and depth, so that both can grow.

In the standard parametrisation a wider model wants a smaller learning rate. In muP (maximal update parametrisation) every activation,
and every change of one in a step, is of the same size at every width, and so is the best learning rate; in CompleteP at every depth too.

The table is in powers of two ratios: m = embed / base_embed, and with completep d = layers / base_layers. At the base shape all three
parametrisations are the same model. Sources:

- width: Yang et al. 2022 (Tensor Programs V), table 8, for Adam: tables of pieces and positions, the head, norms and biases keep their
  scale and rate, hidden matrices get 1 / sqrt(m) and 1 / m, and the logits 1 / m. In this form of muP the head may be the embedding
  table, since both have one rule (their table 3 has two). Attention logits go with 1 / head_dim (their definition 4.1);
- depth: Dey et al. 2025 (CompleteP), table 1 with alpha = 1: what a block adds to the stream gets 1 / d. No rate depends on d, and the
  initial scale of projections into the stream is that of the base depth;
- Adam's epsilon: Dey et al. 2025, the same table (equation 40): gradients shrink with 1 / m, inside blocks with 1 / (m d), and epsilon
  with them;
- weight decay: the same table: rate times decay is the same at every size, so a decay is not multiplied by its weight's rate here;
- routers of experts: they make finitely many numbers of many, as a head does (Malasnicki et al. 2025), here in the form of Yang's
  table 3, without a multiplier. Experts are hidden matrices.

Lion's updates are of the size of Adam's and get the same rates. The width is one number: heads * head_dim, mlp and the experts' mlp are
taken to grow with embed, and so are the ranks of latent attention. `of_width` makes such a family; if kv_heads or the number of experts
stay behind, nothing changes. (The gradients of what all heads share, keys of few heads or the rotated part of latent ones, then do not
shrink with 1 / m, and Adam's epsilon for them is smaller than it could be.)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import jax

from llm_jax.core.errors import UserError
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Dims

Role = Literal["table", "hidden", "router", "vector"]


@dataclass(frozen=True)
class Powers:
    """By which power of m something is multiplied, for one kind of weight."""

    initial: float
    """The standard deviation at the start."""
    rate: float
    """The learning rate."""
    epsilon: float
    """Adam's epsilon; in blocks, and with completep, also by d to the power BLOCK_EPSILON_DEPTH."""


WEIGHTS: dict[Role, Powers] = {
    "table": Powers(initial=0.0, rate=0.0, epsilon=-1.0),
    "hidden": Powers(initial=-0.5, rate=-1.0, epsilon=-1.0),
    "router": Powers(initial=-1.0, rate=-1.0, epsilon=0.0),
    "vector": Powers(initial=0.0, rate=0.0, epsilon=-1.0),
}
READOUT = -1.0
"""The power of m that the final stream is multiplied by, before the head."""
RESIDUAL_DEPTH = -1.0
"""The power of d that what a block adds to the stream is multiplied by."""
BLOCK_EPSILON_DEPTH = -1.0
ATTENTION = -0.5
"""The power of head_dim / base_head_dim that attention's logits are multiplied by, beside 1 / sqrt(head_dim)."""


@dataclass(frozen=True)
class Multipliers:
    """What one weight's learning rate and Adam's epsilon for it are multiplied by."""

    rate: float = 1.0
    epsilon: float = 1.0


NO_MULTIPLIERS = Multipliers()


def role(dims: Dims) -> Role:
    """What kind of weight has these dims: a table [rows, embed], a router [embed, experts], another matrix (from or to the stream, or from a
    latent that is taken to grow with it), or a norm's scale or a bias."""
    if len(dims) < 2 or not {"embed", "latent"} & {*dims}:
        return "vector"
    if dims[0] in ("vocab", None):
        return "table"
    return "router" if dims[-1] is None else "hidden"


def width_ratio(config: ModelConfig) -> float:
    """m; 1 in the standard parametrisation."""
    return 1.0 if config.parametrization == "standard" else config.embed / given(config, "base_embed")


def depth_ratio(config: ModelConfig) -> float:
    """d; 1 where the parametrisation says nothing of depth."""
    return config.layers / given(config, "base_layers") if config.parametrization == "completep" else 1.0


def multipliers(config: ModelConfig, dims: Dims, in_block: bool) -> Multipliers:
    """For a weight with these dims."""
    powers, m = WEIGHTS[role(dims)], width_ratio(config)
    d = depth_ratio(config) if in_block else 1.0
    return Multipliers(m**powers.rate, m**powers.epsilon * d**BLOCK_EPSILON_DEPTH)


def initial(config: ModelConfig, dims: Dims) -> float:
    """What the standard deviation of a weight with these dims is multiplied by."""
    return width_ratio(config) ** WEIGHTS[role(dims)].initial


def residual_std(config: ModelConfig) -> float:
    """init_std of projections into the stream: 2 layers of them add up, so each gets 1 / sqrt(2 layers) of the variance (GPT-2)."""
    layers = given(config, "base_layers") if config.parametrization == "completep" else config.layers
    return config.init_std / (2 * layers) ** 0.5


def readout(config: ModelConfig) -> float:
    """What the final stream is multiplied by."""
    return width_ratio(config) ** READOUT


def residual(config: ModelConfig) -> float:
    """What a block's attention or feed-forward is multiplied by where it joins the stream."""
    return depth_ratio(config) ** RESIDUAL_DEPTH


def attention_logits(config: ModelConfig) -> float:
    """What attention's logits are multiplied by, beside the 1 / sqrt(head_dim) of every kernel.

    `model.attention_scale` takes that root's place, so with muP all of head_dim's growth is here: the logits go with its inverse either way.
    """
    assert config.head_dim
    own = 1.0 if config.attention_scale is None else config.attention_scale * config.head_dim**0.5
    if config.parametrization == "standard":
        return own
    ratio = config.head_dim / (config.base_head_dim or config.head_dim)
    return own * ratio ** (ATTENTION if config.attention_scale is None else 2 * ATTENTION)


def times(x: jax.Array, multiplier: float) -> jax.Array:
    """x multiplied, or x itself where that changes nothing: so a model of the base shape is the standard one's program."""
    return x if multiplier == 1.0 else x * multiplier


def given(config: ModelConfig, key: str) -> int:
    """A key of the base shape that the parametrisation needs; UserError where it is not set."""
    value = getattr(config, key)
    if value is None:
        raise UserError(f"model.{key}=null: model.parametrization={config.parametrization} needs it: the size at which the learning rate was tuned")
    return value


def check(config: ModelConfig) -> None:
    """Raises UserError where the base shape is missing."""
    width_ratio(config)
    depth_ratio(config)


def of_width(config: ModelConfig, embed: int) -> ModelConfig:
    """The resolved model at another width of its family: heads, kv_heads and all widths in proportion, head_dim as it is.

    UserError where a proportion isn't whole.
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
        **{key: in_proportion(getattr(config.latent, key), config.embed, embed, f"model.latent.{key}") for key in ("query_rank", "kv_rank")},
    )
    return dataclasses.replace(config, **sizes, moe=moe, latent=latent)


def in_proportion(size: int, embed: int, wanted: int, key: str) -> int:
    """size * wanted / embed, which must be whole."""
    if size * wanted % embed:
        raise UserError(f"{key}={size}: is for model.embed={embed}, and for a width of {wanted} it would be {size * wanted / embed:g}, not whole")
    return size * wanted // embed
