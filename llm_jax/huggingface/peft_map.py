"""Which tensors of a PEFT folder hold the adapter of which array of the model: follows from the family's
table.

An adapter of a matrix W [out, in] of the files is A [rank, in] and B [out, rank], and with DoRA a magnitude
[out] (PEFT 0.21, peft/tuners/lora/layer.py). Their patterns (`tensor_layout`) are those of W with one side
replaced by `rank`: A has the array's input dims, B its output dims. So what the family's table says of heads,
of parts that are fused into one matrix (they share A), of matrices stored transposed (GPT-2's) and of
permuted rows holds for adapters too.

Experts have two spellings. Of old each expert's matrices are modules of their own, as in the base's files.
Since transformers 5 a layer's experts are one parameter [experts, out, in], gate and up fused, and PEFT joins
their ranks: A [experts * rank, in] and B [out, rank * experts] (peft/tuners/lora/layer.py, ParamWrapper).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from llm_jax.huggingface.peft_config import ALL_LINEAR, PeftConfig
from llm_jax.huggingface.tensor_layout import PART, Pattern, SizedPattern
from llm_jax.huggingface.tensor_map import EXPERT, ArraySlice, Entry, TensorMap

PREFIX = "base_model.model."
"""What PEFT's wrappers put before every tensor's name."""
RANK, EXPERTS = "rank", "e"
"""Dims in patterns."""
FUSED = {"gate": ("gate_up_proj", 0, 2), "up": ("gate_up_proj", 1, 2), "down": ("down_proj", 0, 1)}
"""The last part of an array's path → its parameter in transformers 5, which part of it it is, of how many."""
ROUTER = "mlp.router"
Factor = Literal["lora_A", "lora_B", "magnitude"]


@dataclass(frozen=True)
class MatrixPart:
    """A slice of an array in a matrix that may have an adapter."""

    slice: ArraySlice
    head: bool = False
    """Whether the array has its output dim first: the head's [vocabulary, embed] is multiplied transposed."""

    @property
    def path(self) -> str:
        """The array's path in the parameters, joined by dots."""
        return self.slice.path

    @property
    def prefix(self) -> tuple[int, ...]:
        """The indices of the slice along the array's first dims."""
        return self.slice.prefix

    @property
    def experts(self) -> bool:
        """Whether the slice holds all experts of a layer."""
        return len(self.slice.pattern.pattern.tensor_dims) == 3

    def pattern(self, factor: Factor, rank: int) -> SizedPattern:
        """How a tensor of the folder holds a factor of the slice's adapter: lora_A [in dims..., rank], lora_B
        [rank, out dims...] or magnitude [out dims...]; all with experts in front where the slice has them.
        """
        weight = self.slice.pattern
        shared = (EXPERTS,) if self.experts else ()
        own = [dim for dim in weight.pattern.array_dims if dim not in shared]
        *_, one, other = weight.pattern.tensor_dims
        first = own[-1] if self.head else own[0]
        ins, outs = (one, other) if first in one else (other, one)
        in_dims, out_dims = (tuple(dim for dim in own if dim in joined) for joined in (ins, outs))
        pattern = {
            "lora_A": Pattern(((*shared, RANK), ins), (*shared, *in_dims, RANK)),
            "lora_B": Pattern((outs, (RANK, *shared)), (*shared, RANK, *out_dims)),
            "magnitude": Pattern((outs,), (*shared, *out_dims)),
        }[factor]
        sizes = {**weight.sizes, RANK: rank}
        fused = PART in pattern.split_dims
        order = weight.order if weight.order and weight.order[0] in pattern.array_dims else None
        return SizedPattern(
            pattern,
            tuple(sizes[dim] for dim in pattern.array_dims),
            weight.part if fused else 0,
            weight.parts if fused else 1,
            order,
        )


@dataclass(frozen=True)
class Matrix:
    """A matrix of the base's files that may have an adapter: a module's weight, or a parameter."""

    name: str
    """What the rules of a `PeftConfig` compare: the module's name, or module.parameter."""
    kind: Literal["linear", "head", "embedding", "parameter"]
    parts: tuple[MatrixPart, ...]
    """The slices of arrays in it: several where the files fuse them."""

    @property
    def module(self) -> str:
        """The name of the module."""
        return self.name.rpartition(".")[0] if self.kind == "parameter" else self.name

    def keys(self, module: str, dora: bool) -> dict[Factor, str]:
        """Factor → the name of its tensor in a PEFT folder; module: the module's name there."""
        at = PREFIX + module
        named: dict[Factor, str] = (
            {"lora_A": f"{at}.lora_embedding_A", "lora_B": f"{at}.lora_embedding_B"}
            if self.kind == "embedding"
            else {"lora_A": f"{at}.lora_A.weight", "lora_B": f"{at}.lora_B.weight"}
        )
        return {**named, "magnitude": f"{at}.lora_magnitude_vector"} if dora else named


def matrices(tensor_map: TensorMap, separate: bool) -> list[Matrix]:
    """All matrices of a model that may have an adapter, in the order of the family's table.

    separate: experts are modules of their own; else a layer's are parameters, as in transformers 5.
    """
    found: dict[str, Matrix] = {}
    for tensor, slices in tensor_map.tensors.items():
        path = slices[0].path
        if len(slices[0].pattern.pattern.tensor_dims) != 2 or not tensor.endswith(".weight"):
            continue
        name = tensor.removesuffix(".weight")
        if not separate and len(slices[0].prefix) == 2:
            for part in slices:
                matrix = _fused(name, part, tensor_map)
                if matrix.name in found and part.prefix[1] == 0:  # the other arrays of the same parameter
                    matrix = replace(matrix, parts=(*found[matrix.name].parts, *matrix.parts))
                if part.prefix[1] == 0:
                    found[matrix.name] = matrix
            continue
        kind: Literal["linear", "head", "embedding", "parameter"] = "linear"
        if path in ("embedding", "positions"):
            kind = "embedding"
        elif path == "head":
            kind = "head"
        elif not separate and path.endswith(ROUTER):
            kind, name = "parameter", f"{in_transformers_5(name)}.weight"
        found[name] = Matrix(name, kind, tuple(MatrixPart(part, path == "head") for part in slices))
    return list(found.values())


def in_transformers_5(name: str) -> str:
    """The name of a module of experts there: Mixtral's block got that of every other family."""
    return name.replace(".block_sparse_moe.", ".mlp.")


def _fused(name: str, part: ArraySlice, tensor_map: TensorMap) -> Matrix:
    """The parameter that holds the matrix of an expert, with all experts of its layer."""
    parameter, at, of = FUSED[part.path.rpartition(".")[2]]
    experts = sum(prefix[0] == part.prefix[0] for prefix in tensor_map.slices[part.path])
    rows = (PART, "o") if of > 1 else ("o",)
    pattern = SizedPattern(
        Pattern(((EXPERTS,), rows, ("i",)), (EXPERTS, "i", "o")), (experts, *part.pattern.shape), at, of
    )
    container = re.sub(r"\.experts\.\d+\..*", ".experts", in_transformers_5(name))
    full = f"{container}.{parameter}"
    return Matrix(full, "parameter", (MatrixPart(ArraySlice(full, part.path, part.prefix[:1], pattern)),))


def has_separate_experts(keys: Iterable[str]) -> bool:
    """Whether the tensors of a PEFT folder have the old spelling of experts."""
    return any(re.search(r"\.experts\.\d+\.|\.block_sparse_moe\.", key) for key in keys)


def has_joined_experts(keys: Iterable[str]) -> bool:
    """Whether the tensors of a PEFT folder have the new spelling of experts or routers."""
    return any(re.search(r"\.experts\.(base_layer\.)?lora_|\.mlp\.gate\.lora_", key) for key in keys)


def expert_modules(entries: Iterable[Entry]) -> dict[str, tuple[str, int]]:
    """Last part of the name of an expert's matrix, or a router's, in a family's table → the parameter that
    transformers 5 has in its place, and how many matrices are fused into that.

    PEFT takes every target of such a name for the parameter, whether or not it is an expert's, and of a model
    of the family that has no experts too.
    """
    found = {}
    for entry in entries:
        leaf = entry.tensor.removesuffix(".weight").rpartition(".")[2]
        if EXPERT in entry.tensor:
            parameter, _, of = FUSED[entry.array.rpartition(".")[2]]
            found[leaf] = (parameter, of)
        elif entry.array == ROUTER:
            found[leaf] = (f"{leaf}.weight", 1)
    return found


def joined_experts(
    config: PeftConfig, leaves: Mapping[str, tuple[str, int]], found: Iterable[Matrix]
) -> PeftConfig:
    """A config whose `targets` name the matrices of single experts, for experts that are parameters: as PEFT
    converts it (peft/utils/transformers_weight_conversion.py). The ranks of fused matrices add up.

    leaves: `expert_modules` of the family. found: the model's matrices.
    """
    targets = config.targets
    if not leaves or (isinstance(targets, str) and targets != ALL_LINEAR):
        return config
    if isinstance(targets, str):
        linear = {matrix.name.rpartition(".")[2] for matrix in found if matrix.kind == "linear"}
        targets = tuple(sorted({*linear, *leaves}))
    named = {target: leaves[leaf] for target in targets if (leaf := target.rpartition(".")[2]) in leaves}
    if not named:
        return config
    fused = {parameter: of for parameter, of in named.values() if of > 1}
    return replace(
        config,
        targets=tuple(target for target in targets if target not in named),
        parameters=tuple(sorted({*config.parameters, *(parameter for parameter, _ in named.values())})),
        ranks={**config.ranks, **{rf".*\.{name}": config.rank * of for name, of in fused.items()}},
        alphas={**config.alphas, **{rf".*\.{name}": config.alpha * of for name, of in fused.items()}},
    )


@dataclass(frozen=True)
class AdaptedMatrix:
    """A matrix that a config adapts."""

    matrix: Matrix
    module: str
    """The module's name in the folder."""
    rule: str
    """The name that `ranks` and `alphas` of the config are about."""

    def rank(self, config: PeftConfig) -> int:
        """The rank of its adapter."""
        return config.rank_of(self.rule)

    def alpha(self, config: PeftConfig) -> float:
        """The alpha of its adapter."""
        return config.alpha_of(self.rule)

    def keys(self, config: PeftConfig) -> dict[Factor, str]:
        """Factor → the name of its tensor in the folder."""
        return self.matrix.keys(self.module, config.dora)


def targets_of(config: PeftConfig, found: Iterable[Matrix]) -> list[AdaptedMatrix]:
    """The matrices that a config adapts, of those of a model.

    Where several parameters of a module have adapters, PEFT wraps the module once for each of them, in the
    order of their definition: the last one is outermost, and each of the others one `base_layer` deeper.
    """
    chosen: list[tuple[Matrix, str]] = []
    of_module: dict[str, list[str]] = {}
    for matrix in found:
        parameter = matrix.name if matrix.kind == "parameter" else f"{matrix.name}.weight"
        if config.adapts_parameter(parameter):
            chosen.append((matrix, parameter))
        elif matrix.kind != "parameter" and config.adapts(matrix.name, matrix.kind == "linear"):
            chosen.append((matrix, matrix.name))
        else:
            continue
        of_module.setdefault(matrix.module, []).append(matrix.name)
    targets = []
    for matrix, rule in chosen:
        wrapped = of_module[matrix.module]
        depth = len(wrapped) - 1 - wrapped.index(matrix.name)
        targets.append(AdaptedMatrix(matrix, matrix.module + ".base_layer" * depth, rule))
    return targets
