"""The nested configurations of a model: rotary scaling, experts, latent attention. They are fields of
`config.ModelConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llm_jax.core.errors import require


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for contexts longer than those trained on."""

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    """"linear": all frequencies are divided by `factor` (Chen et al. 2023). "llama3": low ones are divided,
    high ones kept, with a ramp between (Llama 3.1). "yarn": like llama3 with another ramp, and with sharper
    attention (Peng et al. 2023)."""
    factor: float = 8.0
    """The factor by which the context grows."""
    low_frequency_factor: float = 1.0
    """llama3: wavelengths longer than original_positions / this are divided by `factor`."""
    high_frequency_factor: float = 4.0
    """llama3: wavelengths shorter than original_positions / this are kept."""
    beta_fast: float = 32.0
    """yarn: pairs that turn more often than this over the original context are kept."""
    beta_slow: float = 1.0
    """yarn: pairs that turn less often than this are divided by `factor`."""
    truncate: bool = True
    """yarn: the ramp's ends are rounded outwards to whole pairs."""
    attention_factor: float | None = None
    """yarn: the factor on rotated queries and keys. None: 0.1 ln(factor) + 1."""
    original_positions: int = 8192
    """The context length in tokens that the unscaled frequencies were trained for."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        factor = self.attention_factor
        if factor is not None:
            require(
                self.kind == "yarn",
                "model.rope_scaling.attention_factor",
                factor,
                f"null with kind={self.kind}: it is yarn's",
            )
            require(0 < factor < math.inf, "model.rope_scaling.attention_factor", factor, "above 0")
        require(
            self.truncate or self.kind == "yarn",
            "model.rope_scaling.truncate",
            self.truncate,
            f"true with kind={self.kind}: it is yarn's",
        )
        low, high = self.low_frequency_factor, self.high_frequency_factor
        require(
            self.kind != "llama3" or low < high,
            "model.rope_scaling.high_frequency_factor",
            high,
            f"above low_frequency_factor={low:g}",
        )
        for key in (
            "factor",
            "low_frequency_factor",
            "high_frequency_factor",
            "beta_fast",
            "beta_slow",
            "original_positions",
        ):
            require(
                0 < getattr(self, key) < math.inf, f"model.rope_scaling.{key}", getattr(self, key), "above 0"
            )


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of the feed-forward block: a router sends each token to a few of many
    (Shazeer et al. 2017).

    Mixtral: experts=8, top_k=2. Qwen3-MoE: experts=128, top_k=8, and `normalise` as its norm_topk_prob.
    DeepSeek-V3: experts=256, top_k=8, scores="sigmoid", bias=True, groups=8, top_groups=4, scale=2.5,
    shared_mlp=2048, dense_layers=(0, 1, 2).
    """

    experts: int = 0
    """Experts of a layer; 0: every token goes through one feed-forward block."""
    top_k: int = 2
    """Experts that a token is sent to."""
    mlp: int | None = None
    """Hidden width of an expert. None: model.mlp."""
    shared_mlp: int = 0
    """Hidden width of the shared expert, which every token goes through too; n shared experts are one n times
    as wide. 0: none."""
    dense_layers: tuple[int, ...] = ()
    """Layers, counted from 0, that keep the feed-forward block of width model.mlp."""

    scores: Literal["softmax", "sigmoid"] = "softmax"
    """The function of the router's logits, in float32: softmax over all experts, or a sigmoid of each
    (DeepSeek-V3)."""
    normalise: bool = True
    """Weights of the chosen experts are divided by their sum. With softmax that is a softmax over the chosen
    ones (Mixtral)."""
    scale: float = 1.0
    """The final factor on weights (routed_scaling_factor of DeepSeek-V3)."""
    groups: int = 1
    """The number of groups of experts. A token is sent to experts of `top_groups` groups only
    (DeepSeek-V3)."""
    top_groups: int = 1
    """Groups that a token may be sent to: those with the largest sum of their two best scores."""

    balance_loss: float = 0.01
    """Coefficient, for each layer, of experts * sum of (an expert's share of the load * its mean
    probability), which is 1 for even loads (Switch, Fedus et al. 2021); 0: off."""
    balance_over: Literal["batch", "sequence"] = "batch"
    """The tokens over which balance_loss takes shares and means: a microbatch on all devices, or each
    sequence (DeepSeek-V3)."""
    z_loss: float = 0.001
    """Coefficient, for each layer, of log(sum of exp(logits))^2, which keeps the router's logits small
    (ST-MoE, Zoph et al. 2022); 0: off."""
    bias: bool = False
    """Each expert has a bias that is added to its score to choose experts, not to weight them. It has no
    gradient."""
    bias_rate: float = 0.001
    """After a step, an expert's bias goes up by this where its load was below the mean, down where above
    (DeepSeek-V3); 0: it stays."""

    dispatch: Literal["dropless", "capacity"] = "dropless"
    """"dropless": experts take all tokens that are sent to them. "capacity": an expert takes the first tokens
    of a sequence up to its capacity, and adds nothing for the rest; devices then exchange only the tokens
    that are sent."""
    capacity_factor: float = 1.25
    """dispatch=capacity: the tokens of a sequence that an expert takes, in multiples of its share with even
    loads."""
    product: Literal["loop", "ragged_dot"] = "loop"
    """dispatch=dropless: how rows are multiplied with their expert's matrix. "loop": by a loop over experts
    and blocks of rows, on any device; "ragged_dot": `jax.lax.ragged_dot`, which on CPUs and (JAX 0.10, 0.11)
    on GPUs multiplies every row with every expert."""

    def check(self, layers: int) -> None:
        """Raises UserError for a value out of range."""
        at_least = {"experts": 0, "top_k": 1, "shared_mlp": 0, "groups": 1, "top_groups": 1}
        for key, least in at_least.items():
            require(getattr(self, key) >= least, f"model.moe.{key}", getattr(self, key), f"at least {least}")
        require(
            self.mlp is None or self.mlp >= 1, "model.moe.mlp", self.mlp, "at least 1, or null for model.mlp"
        )
        for key in ("scale", "capacity_factor"):
            require(0 < getattr(self, key) < math.inf, f"model.moe.{key}", getattr(self, key), "above 0")
        for key in ("balance_loss", "z_loss", "bias_rate"):
            require(
                0 <= getattr(self, key) < math.inf, f"model.moe.{key}", getattr(self, key), "0 (off) or more"
            )
        if not self.experts:
            return
        E, groups = self.experts, self.groups
        require(self.top_k <= E, "model.moe.top_k", self.top_k, f"at most model.moe.experts={E}")
        require(E % groups == 0, "model.moe.groups", groups, f"a divisor of model.moe.experts={E}")
        if groups > 1:
            require(
                E // groups >= 2,
                "model.moe.groups",
                groups,
                f"at most half of model.moe.experts={E}: a group is judged by its two best",
            )
        require(
            self.top_groups <= groups,
            "model.moe.top_groups",
            self.top_groups,
            f"at most model.moe.groups={groups}",
        )
        room = self.top_groups * (E // groups)
        require(
            self.top_k <= room,
            "model.moe.top_k",
            self.top_k,
            f"at most {room}, the experts of model.moe.top_groups={self.top_groups} groups",
        )
        for layer in self.dense_layers:
            require(
                0 <= layer < layers,
                "model.moe.dense_layers",
                self.dense_layers,
                f"layers from 0 to {layers - 1}",
            )
        require(
            len(set(self.dense_layers)) == len(self.dense_layers) < layers,
            "model.moe.dense_layers",
            self.dense_layers,
            "some layers, each once",
        )


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, DeepSeek-AI 2024): keys and values of all heads are made from
    one small vector per token.

    A head's query and key have a part that is not rotated and one that is: head_dim = nope_dim + rope_dim.
    All heads share the rotated part of the key. DeepSeek-V3: query_rank=1536, kv_rank=512, nope_dim=128,
    rope_dim=64, value_dim=128.
    """

    query_rank: int = 0
    """Width of the vector that queries are made from; 0: they are made from the stream."""
    kv_rank: int = 0
    """Width of the vector that keys and values are made from; 0: no latent attention."""
    nope_dim: int = 0
    """Width of the part of a head's query and key that is not rotated."""
    rope_dim: int = 0
    """Width of the part of a head's query and key that is rotated; even."""
    value_dim: int = 0
    """Width of a head's value; at most nope_dim + rope_dim."""

    def check(self) -> None:
        """Raises UserError for sizes that make no heads."""
        for key in ("query_rank", "kv_rank", "nope_dim", "rope_dim", "value_dim"):
            size = getattr(self, key)
            require(size >= 0, f"model.latent.{key}", size, "0 or more")
            require(
                self.kv_rank > 0 or not size,
                f"model.latent.{key}",
                size,
                "0 where model.latent.kv_rank=0, which is attention without latents",
            )
            require(
                not self.kv_rank or size or key == "query_rank",
                f"model.latent.{key}",
                size,
                f"at least 1 with kv_rank={self.kv_rank}",
            )
        require(self.rope_dim % 2 == 0, "model.latent.rope_dim", self.rope_dim, "even")
        most = self.nope_dim + self.rope_dim
        require(
            self.value_dim <= most,
            "model.latent.value_dim",
            self.value_dim,
            f"at most nope_dim + rope_dim = {most}",
        )
