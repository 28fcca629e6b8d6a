"""Low-rank adapters on the linear maps of the blocks: which weights get one, and the arrays that a weight is
then made of.

An adapted weight W is used as W + scaling A B, W frozen, A [inputs..., rank] and B [rank, outputs...] trained
(LoRA, Hu et al. 2021); with DoRA (Liu et al. 2024) each output is then scaled to a trained magnitude. In
trees of parameters the arrays have the name of their weight and a suffix: `blocks.mlp.up`,
`blocks.mlp.up.lora_A`. Their dims are those of the weight with one side replaced by `rank`, so every layout
places them like the weight.

The layers of one weight are stacked, and have one rank: a layer with a smaller one is filled up with zeros in
A and B, whose gradients are zero. A layer without an adapter has a scaling of 0."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.core.errors import UserError, nearest, require
from llm_jax.model.adapted_weight import factor_dims, row_length, whole_weight
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import MATRIX_SIDES, Dims, Placement, matrix_sides
from llm_jax.model.quantized import gather_dequantized, parts_dims, parts_shapes
from llm_jax.model.weight_use import Weight
from llm_jax.model.weight_values import Adapted, Quantized, ShardedParam

LORA_A, LORA_B, MAGNITUDE, SCALING = "lora_A", "lora_B", "magnitude", "scaling"
CODES, ABSMAX = "codes", "absmax"
SUFFIXES = (LORA_A, LORA_B, MAGNITUDE, SCALING, CODES, ABSMAX)
"""What follows the name of a weight in the names of the arrays that it is made of."""
TRAINED = (LORA_A, LORA_B, MAGNITUDE)
"""The suffixes of the arrays that are trained."""
Base = Literal["float32", "bfloat16", "int8", "nf4"]
Start = Literal["kaiming", "gaussian", "pissa", "olora"]
REDUCING = ("pissa", "olora")
"""Starts whose adapter is a part of the weight, which is taken off the base: W - scaling A B."""


@dataclass(frozen=True)
class AdapterConfig:
    """A low-rank adapter in place of training the weights that it is on."""

    rank: int = 0
    """Width of the adapter's two factors, e.g. 16; 0: no adapter."""
    alpha: float | None = None
    """The adapter's product is multiplied by alpha / rank. None: by 1, whatever the rank (of `ranks` too)."""
    targets: str = "all"
    """The linear maps that get an adapter: `all` of the blocks (but routers of experts), those of
    `attention`, or of `mlp` (experts too), or a regular expression for their names: "query|value", or with
    the layer's number, "blocks\\.[01]\\.mlp\\..*"."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rank-stabilised LoRA, Kalajdzievski 2023)."""
    dora: bool = False
    """DoRA (Liu et al. 2024): each output of an adapted weight is scaled to a trained length."""
    start: Start = "kaiming"
    """The first A and B: A uniform within 1 / sqrt(inputs) (as PEFT's) or "gaussian", with standard deviation
    1 / rank, and B zero; or a part of the weight, which the base then lacks: its largest singular values
    ("pissa", Meng et al. 2024), or the first columns of its QR decomposition ("olora", Büyükakyüz 2024)."""
    peft_folder: str = ""
    """A PEFT folder whose adapter is trained further (`adapter.from=FOLDER` on a command line, which sets the
    keys above)."""
    base: Base | None = None
    """How the frozen weights are kept: bfloat16 halves them; int8 and nf4 are for the matrices of the blocks,
    in 8 or 4 bits (QLoRA). None: like trained ones, in model.parameter_dtype."""
    ranks: dict[str, int] = field(default_factory=dict)
    """Regular expression for names, as in `targets` → their rank, where it is not `rank`; the first that
    matches counts."""
    alphas: dict[str, float] = field(default_factory=dict)
    """Regular expression for names → their alpha, where it is not `alpha`."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(self.rank >= 0, "adapter.rank", self.rank, "at least 1, e.g. 16, or 0 for no adapter")
        for key, alpha in {"alpha": self.alpha, **{f"alphas.{k}": v for k, v in self.alphas.items()}}.items():
            require(alpha is None or 0 < alpha < math.inf, f"adapter.{key}", alpha, "above 0")
        for key, rank in self.ranks.items():
            require(rank >= 1, f"adapter.ranks.{key}", rank, "at least 1")
        patterns = {"targets": self.targets} if self.targets not in GROUPS else {}
        patterns |= {f"ranks.{key}": key for key in self.ranks} | {
            f"alphas.{key}": key for key in self.alphas
        }
        for key, pattern in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"adapter.{key}={pattern}: must be all, attention, mlp or a regular expression ({error})"
                ) from None

    @property
    def changes_at_start(self) -> bool:
        """Whether the adapter is part of the model that a run starts with: switched off, it leaves
        another."""
        return bool(self.peft_folder) or self.start in REDUCING

    def off(self) -> AdapterConfig:
        """The same base without an adapter."""
        return AdapterConfig(base=self.base)


NO_ADAPTER = AdapterConfig()
GROUPS = ("all", "attention", "mlp")
"""Values of `targets` that are no regular expressions."""


class AdaptedLayers(NamedTuple):
    """A weight with an adapter."""

    rank: int
    """The largest of `ranks`: the width of the factors."""
    ranks: tuple[int, ...]
    """The rank of each of its layers; 0 for one without an adapter."""
    scalings: tuple[float, ...]
    """The scaling of each of its layers; 0 for one without an adapter."""


def layer_names(name: str, model: ModelConfig) -> list[str]:
    """The names of a stacked weight's layers, by the layer's number in the model: blocks.3.mlp.up."""
    stack, _, rest = name.partition(".")
    sparse = model.sparse_layers
    numbers = [
        layer
        for layer in range(model.layers)
        if len(sparse) in (0, model.layers) or (layer in sparse) == (stack == "blocks")
    ]
    return [f"blocks.{number}.{rest}" for number in numbers]


def matches(pattern: str, *names: str) -> bool:
    """Whether a regular expression is the whole or, after a dot, the end of any of the names.

    >>> matches("query|value", "blocks.attention.query"), matches("blocks.1..*", "blocks.attention.query", "blocks.1.attention.query")
    (True, True)
    """  # noqa: E501
    return any(re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) for name in names)


def is_matrix(w: Weight) -> bool:
    """True for the weight of a linear map in a block."""
    return w.stacked and w.dims in MATRIX_SIDES


def find_targets(
    config: AdapterConfig, model: ModelConfig, weights: Mapping[str, Weight]
) -> dict[str, AdaptedLayers]:
    """The weights that get an adapter, by name. Raises UserError where there is none, or for one that can
    have none.

    weights: the whole model's, by name.
    """
    if not config.rank:
        return {}
    found = {}
    for name, w in weights.items():
        if not is_matrix(w):
            if config.targets not in GROUPS and w.dims[:1] == ("vocab",) and matches(config.targets, name):
                tied = " and it is the head too" if name == "embedding" and model.tied_embeddings else ""
                raise UserError(
                    f"adapter.targets={config.targets}: matches {name}, and adapters are on the linear maps "
                    f"of the blocks{tied}. Train it whole: train.trainable=[{name}]"
                )
            continue
        layers = layer_names(name, model)
        ranks = [rank_of(config, name, layer) if is_target(config, name, layer, w) else 0 for layer in layers]
        if any(ranks):
            scalings = [scaling_of(config, name, *pair) for pair in zip(layers, ranks, strict=True)]
            found[name] = AdaptedLayers(max(ranks), tuple(ranks), tuple(scalings))
            check_start(config, name, w, max(ranks))
    matrices = [name for name, w in weights.items() if is_matrix(w)]
    if not found:
        raise UserError(
            f"adapter.targets={config.targets}: matches no linear map of the blocks; they are "
            f"{', '.join(matrices)}"
        )
    widest = max(max(sides(weights[name])) for name in found)
    if (most := max(target.rank for target in found.values())) > widest:
        raise UserError(
            f"adapter.rank={most}: more than the {widest} numbers that the widest of its weights has on a "
            "side. Use a smaller one, e.g. 16"
        )
    for key, patterns in (("ranks", [*config.ranks]), ("alphas", [*config.alphas])):
        for pattern in patterns:
            if not any(matches(pattern, name, *layer_names(name, model)) for name in found):
                raise UserError(
                    f"adapter.{key}.{pattern}: matches none of the weights with an adapter; "
                    f"{nearest(pattern, found)}"
                )
    return found


def check_start(config: AdapterConfig, name: str, w: Weight, rank: int) -> None:
    """Raises UserError for a start that a weight has too few singular values for."""
    if config.start not in REDUCING:
        return
    most = min(sides(w))
    if rank > most:
        raise UserError(
            f"adapter.rank={rank}: with adapter.start={config.start} {name} allows at most {most}"
        )


def sides(w: Weight) -> tuple[int, int]:
    """The inputs and the outputs of the linear map in each layer, or expert, of a stacked weight."""
    shape = w.get_value().shape[1:]
    first, cut = matrix_sides(w.dims)
    return math.prod(shape[first:cut]), math.prod(shape[cut:])


def is_target(config: AdapterConfig, name: str, layer: str, w: Weight) -> bool:
    """Whether a layer of a linear map gets an adapter."""
    if config.targets not in GROUPS:
        return matches(config.targets, name, layer)
    if w.dims[-1] is None:  # a router
        return False
    return config.targets == "all" or f".{config.targets}." in name


def rank_of(config: AdapterConfig, *names: str) -> int:
    """The rank of a weight's adapter."""
    return next((rank for key, rank in config.ranks.items() if matches(key, *names)), config.rank)


def scaling_of(config: AdapterConfig, name: str, layer: str, rank: int) -> float:
    """What the product of a weight's adapter is multiplied with; 0 where there is none."""
    if not rank:
        return 0.0
    alpha = next((alpha for key, alpha in config.alphas.items() if matches(key, name, layer)), config.alpha)
    return (rank if alpha is None else alpha) / (math.sqrt(rank) if config.rslora else rank)


@dataclass(frozen=True)
class AdaptedWeights:
    """The arrays that the weights of a model are made of, where some have an adapter, or are kept in fewer
    bits."""

    config: AdapterConfig
    targets: Mapping[str, AdaptedLayers]
    quantized: Mapping[str, Literal["int8", "nf4"]]
    """The weights that are kept in few bits."""
    arrays: Mapping[str, Weight]
    """All arrays by name, abstract, each with its own dims."""

    def value(self, name: str, arrays: Mapping[str, Any]) -> Any:
        """The value of a weight (an array or one of `weight_values`), from the model's arrays by name."""
        base = arrays.get(name)
        if name in self.quantized:
            w = self.arrays[f"{name}.{CODES}"]
            axis = next((i - len(w.dims) for i, dim in enumerate(w.dims) if dim == "blocks"), 0)
            base = Quantized(
                arrays[f"{name}.{CODES}"], arrays[f"{name}.{ABSMAX}"], self.quantized[name], axis
            )
        if name not in self.targets:
            return base
        assert base is not None
        parts = {suffix: arrays.get(f"{name}.{suffix}") for suffix in (*TRAINED, SCALING)}
        return Adapted(base, **parts)  # type: ignore[arg-type]

    @property
    def changes(self) -> bool:
        """Whether any weight has an adapter, or is kept otherwise than a model without one keeps it."""
        return bool(self.config.rank or self.config.base)

    @property
    def trained(self) -> frozenset[str]:
        """The names of the adapters' trained arrays."""
        return frozenset(name for name in self.arrays if name.rpartition(".")[2] in TRAINED)


def adapted_weights(
    config: AdapterConfig, model: ModelConfig, weights: Mapping[str, Weight], trained: frozenset[str]
) -> AdaptedWeights:
    """The arrays of a model with an adapter, from its weights (abstract, by name).

    trained: names of weights that are trained beside the adapter. Raises UserError for one that has an
    adapter."""
    targets = find_targets(config, model, weights)
    if both := sorted(trained & {*targets}):
        raise UserError(
            f"train.trainable: {both[0]} has an adapter, and is frozen. Leave it out, or leave it out of "
            f"adapter.targets={config.targets}"
        )
    quantized: dict[str, Any] = {}
    arrays: dict[str, Weight] = {}
    for name, w in weights.items():
        value = w.get_value()
        frozen = name not in trained
        if frozen and config.base in ("int8", "nf4") and is_matrix(w) and w.dims[-1] is not None:
            quantized[name] = config.base
            shape = value.shape[1:]
            for suffix, dims, part, dtype in zip(
                (CODES, ABSMAX),
                parts_dims(w.dims, shape, config.base),
                parts_shapes(w.dims, shape, config.base),
                ("int8" if config.base == "int8" else "uint8", "float32"),
                strict=True,
            ):
                arrays[f"{name}.{suffix}"] = abstract(value.shape[:1] + part, dtype, dims)
        elif frozen and config.base == "bfloat16" and len(w.dims) > 1:
            arrays[name] = Weight(
                jax.ShapeDtypeStruct(value.shape, "bfloat16"), dims=w.dims, stacked=w.stacked
            )
        else:
            arrays[name] = w
        if target := targets.get(name):
            arrays |= factors(name, w, target, config.dora, model.parameter_dtype)
    return AdaptedWeights(config, targets, quantized, arrays)


def factors(name: str, w: Weight, target: AdaptedLayers, dora: bool, dtype: str) -> dict[str, Weight]:
    """The arrays of an adapter on a weight, abstract."""
    shape, (first, cut) = w.get_value().shape[1:], matrix_sides(w.dims)
    dims_A, dims_B, dims_m = factor_dims(w.dims)
    layers, lead = w.get_value().shape[:1], shape[:first]
    found = {
        LORA_A: abstract((*layers, *shape[:cut], target.rank), dtype, dims_A),
        LORA_B: abstract((*layers, *lead, target.rank, *shape[cut:]), dtype, dims_B),
        SCALING: abstract(layers, "float32", ()),
    }
    if dora:
        found[MAGNITUDE] = abstract((*layers, *lead, *shape[cut:]), dtype, dims_m)
    return {f"{name}.{suffix}": array for suffix, array in found.items()}


def abstract(shape: tuple[int, ...], dtype: str, dims: Any) -> Weight:
    """An abstract stacked weight."""
    return Weight(jax.ShapeDtypeStruct(shape, dtype), dims=dims, stacked=True)


def without_adapter(names: Iterable[str]) -> list[str]:
    """The names of weights, of the names of the arrays that they are made of."""
    return sorted({weight_name(name) for name in names})


def weight_name(name: str) -> str:
    """The weight that an array belongs to."""
    before, _, last = name.rpartition(".")
    return before if last in SUFFIXES else name


def merged(
    adapted: AdaptedWeights, arrays: Mapping[str, Any], dims: Mapping[str, Dims], place: Placement
) -> dict[str, jax.Array]:
    """The whole weights, float32, by name, that a model's arrays stand for: base and adapter as one, nothing
    in few bits. To be jitted.

    dims: of each weight, with stacked layers. A cast to a smaller dtype comes last: the sum of a bfloat16
    base and a small adapter would round most of the adapter away."""
    found = {}
    for name in sorted({weight_name(array) for array in arrays}):
        value = adapted.value(name, arrays)
        if isinstance(value, Adapted):
            found[name] = merged_weight(value, dims[name], place)
        elif isinstance(value, Quantized):
            found[name] = gather_dequantized(value, dims[name], "float32", place)
        else:
            found[name] = value.astype("float32")
    return found


def merged_weight(value: Adapted, dims: Dims, place: Placement) -> jax.Array:
    """The stacked weight that base and adapter make together, float32."""
    assert not isinstance(value.lora_A, ShardedParam)
    assert not isinstance(value.lora_B, ShardedParam)
    assert not isinstance(value.magnitude, ShardedParam)
    scaling = jnp.expand_dims(value.scaling, tuple(range(1, len(dims))))
    whole = whole_weight(value.base, value.lora_A, value.lora_B, scaling, dims, place)
    if value.magnitude is None:
        return whole
    first, cut = matrix_sides(dims)
    factor = jnp.expand_dims(value.magnitude / row_length(whole, dims), tuple(range(first, cut)))
    return whole * jnp.where(scaling > 0, factor, 1.0)
