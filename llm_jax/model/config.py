"""The configuration of a transformer: one frozen dataclass that can express every open model family of
docs/model.md."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from llm_jax.core.arithmetic import round_up
from llm_jax.core.config_tree import check_numbers
from llm_jax.core.errors import UserError, check_choice, nearest, require
from llm_jax.model.config_parts import LatentConfig, MoEConfig, RopeScaling
from llm_jax.model.kernels import KERNELS


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Fields that are None follow from the others (see `resolved`)."""

    layers: int = 4
    """The number of blocks."""
    embed: int = 256
    """Width of the residual stream."""
    heads: int = 4
    """Query heads."""
    kv_heads: int | None = None
    """Key/value heads; fewer than `heads` is grouped-query attention. None: `heads`."""
    head_dim: int | None = None
    """Width of a head. None: embed / heads."""
    mlp: int | None = None
    """Hidden width of the feed-forward block. None: 4 embed, or 8/3 embed rounded up to 64 for gated ones."""
    vocab: int | None = None
    """Rows of the embedding. None: the number of the tokenizer's tokens."""

    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016)."""
    norm_placement: Literal["before", "after", "both"] = "before"
    """Norm on a block's input (pre-norm), on its output before it joins the stream (OLMo 2), or on both
    (Gemma 2)."""
    norm_centred: bool = False
    """RMSNorm multiplies by 1 + its weight, which starts at 0 (Gemma)."""
    norm_epsilon: float = 1e-5
    """Added to the variance in norms."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """RMSNorm on queries and keys: of each head (Qwen 3), or over all heads together (OLMo 2)."""
    activation: Literal["swiglu", "geglu", "gelu", "gelu_exact"] = "swiglu"
    """Feed-forward non-linearity; swiglu and geglu are gated (Shazeer 2020); "gelu" is the tanh form of
    GPT-2."""
    bias_qkv: bool = False
    """Biases on the query, key and value projections; in latent attention, on the projections to latents."""
    bias_out: bool = False
    """A bias on the attention's output projection."""
    bias_mlp: bool = False
    """Biases on the products of the feed-forward block."""
    moe: MoEConfig = field(default_factory=MoEConfig)
    """A mixture of experts in place of the feed-forward block."""
    parallel_blocks: bool = False
    """Attention and feed-forward both read the stream as it enters the block: x + attention(norm(x)) +
    mlp(norm(x)) (GPT-NeoX)."""
    embedding_scale: float = 1.0
    """The embedding is multiplied by this, rounded to the compute dtype (Gemma: sqrt(embed))."""
    tied_embeddings: bool = True
    """The output head and the embedding are one table."""
    outputs: Literal["logits", "reward"] = "logits"
    """What the head makes of the last stream: a logit for each token, or one number, which is a reward."""
    logit_softcap: float = 0.0
    """Logits become cap * tanh(logits / cap) (Gemma 2); 0: off."""

    position: Literal["rope", "learned"] = "rope"
    """Rotary embeddings (Su et al. 2021, halves rotated against each other) or a learned table."""
    positions: int = 1024
    """Rows of the learned position table (position=learned only)."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths (10,000 in Su et al. 2021)."""
    rope_fraction: float = 1.0
    """The fraction of each head, its first entries, that is rotated (Pythia: 0.25)."""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    """How rotary frequencies are changed for long contexts."""
    rope_theta_window: float | None = None
    """Base of the rotary wavelengths in layers with a window, without `rope_scaling` (Gemma 3). None: as in
    the other layers."""
    window: int | None = None
    """Sliding-window attention: a position sees itself and the window - 1 before it. None: all before it."""
    window_layers: tuple[int, ...] | None = None
    """The layers, counted from 0, that have the window; the others see all positions before. None: every
    layer has it."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    """Multi-head latent attention in place of projections to keys and values."""
    attention_scale: float | None = None
    """The factor on attention's scores. None: head_dim^-0.5."""
    attention_softcap: float = 0.0
    """Scores become cap * tanh(scores / cap) (Gemma 2); 0: off."""
    attention: str = "xla"
    """Kernel: a file of `model/kernels/`. "xla" runs anywhere, "cudnn" is fused, for NVIDIA GPUs, "blocked"
    is for CPUs."""
    max_segments: int | None = None
    """attention=cudnn only: the most documents in a packed row, padding counted as one, on average over the
    rows of a device. None: the number that the run needs, counted before it starts."""

    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype that weights are stored and updated in."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of matrix products and of the residual stream."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype that gradients of weights are made in and summed over devices in. Weights are gathered in
    `compute_dtype`; float32 gradients take twice the bytes of bfloat16 weights."""
    softmax_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of attention's scores and softmax (attention=xla; the other kernels use float32)."""
    logits_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of logits and of the loss."""

    scan_layers: bool = True
    """True: one compiled block, run in a scan (compiles fast). False: every block unrolled (runs faster on
    CPUs)."""
    remat: str = "none"
    """The tensors that the backward pass recomputes. "none": nothing; "full": everything but block inputs; or
    the names of the tensors to keep, joined by commas (of: query, key, value, attention, attention_out,
    mlp_gate, mlp_up, mlp_in).
    """
    offload: str = ""
    """Tensors of a block (names as in `remat`, joined by commas) that are kept for the backward pass in the
    host's memory, copied there and back while the GPU computes. Needs a GPU, and remat=full or names."""
    init_std: float = 0.02
    """Standard deviation of initial weights (GPT-2); projections into the stream get init_std / sqrt(2
    layers)."""

    parametrization: Literal["standard", "mup", "completep"] = "standard"
    """How initial scales and learning rates depend on the shape (`model/parametrization.py`). "standard": not
    at all; "mup": on the width, so that the best learning rate is equal at all widths; "completep": on width
    and depth."""
    base_embed: int | None = None
    """parametrization=mup, completep: the embed of the base model, at which the learning rate was tuned and
    the parametrization is the standard one. The base model's other widths are assumed to be in proportion."""
    base_layers: int | None = None
    """parametrization=completep: the layers of the base model."""
    base_head_dim: int | None = None
    """parametrization=mup, completep: the head_dim of the base model. None: `head_dim`, so that heads grow in
    number only."""

    def resolved(self, tokenizer_vocab: int | None = None) -> ModelConfig:
        """This configuration with every None replaced by the value that follows from other fields. Raises
        UserError for an impossible one."""
        values: dict = {}
        for key in (
            "layers",
            "embed",
            "heads",
            "kv_heads",
            "head_dim",
            "mlp",
            "vocab",
            "window",
            "positions",
            "max_segments",
            *BASE_SHAPE,
        ):
            size = getattr(self, key)
            if size is not None and size < 1:
                raise UserError(
                    f"model.{key}={size}: must be at least 1{' (or null)' if key == 'window' else ''}"
                )
            most = MOST_LAYERS if key == "layers" else 2**31 - 1
            require(size is None or size <= most, f"model.{key}", size, f"at most {most:,}")
        for key in ("norm_epsilon", "rope_theta", "embedding_scale"):
            require(0 < getattr(self, key) < math.inf, f"model.{key}", getattr(self, key), "above 0")
        for key in ("logit_softcap", "attention_softcap", "init_std"):
            require(0 <= getattr(self, key) < math.inf, f"model.{key}", getattr(self, key), "0 or more")
        check_choice("model.attention", self.attention, KERNELS)
        self.rope_scaling.check()
        self.check_layers()
        self.latent.check()
        self.moe.check(self.layers)
        require(
            not (self.moe.experts and self.bias_mlp),
            "model.bias_mlp",
            self.bias_mlp,
            "false where model.moe.experts is set: experts have no biases",
        )
        require(
            self.norm == "rms" or not self.norm_centred,
            "model.norm_centred",
            self.norm_centred,
            f"false with model.norm={self.norm}",
        )
        values["kv_heads"] = self.heads if self.kv_heads is None else self.kv_heads
        if self.heads % values["kv_heads"]:
            raise UserError(
                f"model.kv_heads={values['kv_heads']}: must divide model.heads={self.heads} "
                f"({', '.join(str(n) for n in range(1, self.heads + 1) if self.heads % n == 0)})"
            )
        values["head_dim"] = (
            self.checked_latent_head_dim() if self.latent.kv_rank else self.checked_head_dim()
        )
        if self.mlp is None:
            values["mlp"] = round_up(self.embed * 8 // 3, 64) if self.gated else 4 * self.embed
        if self.moe.experts:
            values["moe"] = dataclasses.replace(self.moe, mlp=self.moe.mlp or values.get("mlp", self.mlp))
        if self.vocab is None:
            values["vocab"] = tokenizer_vocab
        elif tokenizer_vocab is not None and self.vocab < tokenizer_vocab:
            raise UserError(
                f"model.vocab={self.vocab}: smaller than the tokenizer's {tokenizer_vocab} tokens"
            )
        self.check_remat()
        if self.gradient_dtype != "float32" and self.compute_dtype == "float32":
            raise UserError(
                f"model.gradient_dtype={self.gradient_dtype}: is narrower than "
                "model.compute_dtype=float32; use float32"
            )
        check_numbers(self, "model.")
        return dataclasses.replace(self, **values)

    def check_layers(self) -> None:
        """Raises UserError for an invalid scale, and for settings of windows without a window."""
        for key in ("attention_scale", "rope_theta_window"):
            value = getattr(self, key)
            require(value is None or 0 < value < math.inf, f"model.{key}", value, "above 0, or null")
        if self.rope_theta_window is not None:
            require(
                self.window is not None,
                "model.rope_theta_window",
                self.rope_theta_window,
                "null where model.window is null",
            )
            require(
                self.position == "rope",
                "model.rope_theta_window",
                self.rope_theta_window,
                f"null with model.position={self.position}",
            )
        layers = self.window_layers
        if layers is not None:
            require(self.window is not None, "model.window_layers", layers, "null where model.window is null")
            fit = f"layers from 0 to {self.layers - 1}, each once, or null for all"
            require(
                all(0 <= layer < self.layers for layer in layers) and len({*layers}) == len(layers),
                "model.window_layers",
                layers,
                fit,
            )

    def checked_head_dim(self) -> int:
        """The width of a head, given or embed / heads. Raises UserError for an impossible one."""
        if self.head_dim is None and self.embed % self.heads:
            raise UserError(
                f"model.heads={self.heads}: does not divide model.embed={self.embed}; choose a divisor or "
                "set model.head_dim"
            )
        head_dim = self.head_dim or self.embed // self.heads
        if self.position == "rope" and head_dim % 2:
            raise UserError(f"model.head_dim={head_dim}: must be even for model.position=rope")
        whole = self.rope_fraction == 1
        require(
            0 < self.rope_fraction <= 1, "model.rope_fraction", self.rope_fraction, "above 0 and at most 1"
        )
        require(
            whole or self.position == "rope",
            "model.rope_fraction",
            self.rope_fraction,
            f"1 with model.position={self.position}",
        )
        rotated = int(head_dim * self.rope_fraction)
        fit = f"a part of model.head_dim={head_dim} that is an even number of its entries, and is {rotated}"
        require(whole or (rotated > 0 and rotated % 2 == 0), "model.rope_fraction", self.rope_fraction, fit)
        return head_dim

    def checked_latent_head_dim(self) -> int:
        """The width of a head of latent attention, nope_dim + rope_dim. Raises UserError for settings that it
        can't have."""
        for key, value in {"position": "rope", "rope_fraction": 1.0, "qk_norm": "none"}.items():
            require(
                getattr(self, key) == value, f"model.{key}", getattr(self, key), f"{value} with model.latent"
            )
        require(
            self.kv_heads in (None, self.heads),
            "model.kv_heads",
            self.kv_heads,
            f"model.heads={self.heads} with model.latent, or null",
        )
        head_dim = self.latent.nope_dim + self.latent.rope_dim
        require(
            self.head_dim in (None, head_dim),
            "model.head_dim",
            self.head_dim,
            f"model.latent's nope_dim + rope_dim = {head_dim}, or null",
        )
        return head_dim

    def check_remat(self) -> None:
        """Raises UserError for names that are no tensors of a block, and for an `offload` that contradicts
        `remat`."""
        saved, offloaded = saved_names(self.remat), tensor_names("offload", self.offload)
        if offloaded and saved is None:
            raise UserError(
                f"model.offload={self.offload}: with model.remat=none everything is kept on the device; "
                "use model.remat=full, or names"
            )
        for name in offloaded:
            if name in (saved or ()):
                raise UserError(
                    f"model.offload={self.offload}: model.remat keeps {name!r} on the device; name it in "
                    "one of the two"
                )

    @property
    def rotated_dim(self) -> int:
        """The number of a head's entries that are rotated (position=rope)."""
        assert self.head_dim is not None
        return self.latent.rope_dim if self.latent.kv_rank else int(self.head_dim * self.rope_fraction)

    @property
    def value_dim(self) -> int:
        """The width of a head's value."""
        assert self.head_dim is not None
        return self.latent.value_dim or self.head_dim

    @property
    def gated(self) -> bool:
        """True if the feed-forward block has a gate (three matrices instead of two)."""
        return self.activation in ("swiglu", "geglu")

    def of_layer(self, layer: int) -> ModelConfig:
        """The configuration of one layer, with that layer's window or none, and without `window_layers`."""
        if self.window_layers is None:
            return self
        return dataclasses.replace(
            self, window=self.window if layer in self.window_layers else None, window_layers=None
        )

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The layers that have experts, counted from 0."""
        return tuple(i for i in range(self.layers) if self.moe.experts and i not in self.moe.dense_layers)


MOST_LAYERS = 10_000
"""More layers than any model has; a larger number is refused before anything is made for each of them."""
BASE_SHAPE = ("base_embed", "base_layers", "base_head_dim")
"""The fields that describe the base model of a parametrization."""

SAVEABLE = ("query", "key", "value", "attention", "attention_out", "mlp_gate", "mlp_up", "mlp_in")
"""The tensors of a block that `remat` may keep by name."""


def saved_names(remat: str) -> tuple[str, ...] | None:
    """The tensors that a remat policy keeps; None for "none", which recomputes nothing."""
    if remat == "none":
        return None
    if remat == "full":
        return ()
    return tensor_names("remat", remat)


def tensor_names(key: str, value: str) -> tuple[str, ...]:
    """The tensors of a block that a value of `remat` or `offload` names; an unknown name raises UserError."""
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    for name in names:
        if name not in SAVEABLE:
            others = ("none", "full") if key == "remat" else ()
            raise UserError(
                f"model.{key}={value}: {name!r} is no {'policy or ' if others else ''}tensor; "
                f"{nearest(name, (*SAVEABLE, *others))}"
            )
    return names
