"""A PEFT folder, adapter_config.json and adapter_model.safetensors: opened, checked against its base, and
read into the model's arrays.

Nothing of the adapter's values is changed by reading: what was read can be written again bit by bit
(`peft_write`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError, closest
from llm_jax.core.files import inside
from llm_jax.huggingface.family import Family, Tree, family_for
from llm_jax.huggingface.folder import Folder, head_and_embedding
from llm_jax.huggingface.peft_config import NAME, PeftConfig, read_config, scale_of, with_head
from llm_jax.huggingface.peft_map import (
    PREFIX,
    AdaptedMatrix,
    Factor,
    Matrix,
    expert_modules,
    has_joined_experts,
    has_separate_experts,
    joined_experts,
    matrices,
    targets_of,
)
from llm_jax.huggingface.safetensors import FLOATS, Tensor, read_header, read_json
from llm_jax.huggingface.tensor_layout import whole_box
from llm_jax.huggingface.tensor_map import ArraySlice, TensorMap, build_tensor_map
from llm_jax.model.config import ModelConfig

WEIGHTS = "adapter_model.safetensors"
Prefix = tuple[int, ...]


@dataclass
class LowRank:
    """The adapter of one array of the model, all its layers stacked: the array is used as W + scale A B.

    Layers, and experts, whose adapter has a lower rank than others are filled up with zeros; those without an
    adapter have rank 0. Zeros add nothing, and get no gradient.
    """

    lora_A: np.ndarray
    """[layers..., in dims..., rank], float32."""
    lora_B: np.ndarray
    """[layers..., rank, out dims...], float32."""
    ranks: np.ndarray
    """[layers...]: the rank of each, int."""
    alphas: np.ndarray
    """[layers...]: float64. `scale_of` makes the factor of it."""
    rslora: bool
    magnitude: np.ndarray | None = None
    """[layers..., out dims...], float32: with DoRA the norm that each column of the weight is given."""

    @property
    def scales(self) -> np.ndarray:
        """The factor of A B: [layers...], float64; 0 where there is no adapter."""
        return np.vectorize(
            lambda rank, alpha: scale_of(alpha, int(rank), self.rslora) if rank else 0.0, otypes=[np.float64]
        )(self.ranks, self.alphas)


@dataclass(frozen=True)
class Base:
    """The model that an adapter changes: what is needed of it to read, check and write one."""

    family: Family
    config: ModelConfig
    tree: Tree
    """Its config.json, as it is or as it is to be written."""
    shapes: Mapping[str, tuple[int, ...]]
    """The shape of each of its arrays, by dotted path, layers stacked."""
    where: str
    """What errors call it: its folder."""

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head too."""
        return "head" not in self.shapes

    def tensor_map(self) -> TensorMap:
        """Which tensor holds which slice of which array, the head as an array of its own: an adapter may be
        of the head or the embedding alone."""
        shapes = {**self.shapes, "head": self.shapes["embedding"]} if self.tied else self.shapes
        return build_tensor_map(self.family.entries(self.config, self.tree), self.config, shapes)


@dataclass
class PeftAdapter:
    """An adapter from a PEFT folder, in the arrays of its base model."""

    config: PeftConfig
    low_rank: dict[str, LowRank]
    """The path of an array, joined by dots → its adapter."""
    whole: dict[str, dict[Prefix, np.ndarray]] = field(default_factory=dict)
    """The path of an array → index along its first dims → the slice that takes the place of the base's, in
    the dtype of the file."""
    tree: dict[str, Any] = field(default_factory=dict)
    """The JSON object of adapter_config.json."""
    dtypes: dict[str, str] = field(default_factory=dict)
    """Name of a tensor in the folder → its dtype there, as in `safetensors.FLOATS`."""
    separate: bool = False
    """Whether experts are modules of their own in the folder (`peft_map`)."""
    where: str = ""
    """What errors call it: its folder."""

    @property
    def unties(self) -> bool:
        """Whether embedding and head differ after it, were they one array before."""
        return bool({"embedding", "head"} & {*self.low_rank, *self.whole})


def is_peft_folder(path: Path) -> bool:
    """True for a folder with an adapter, which is no run folder and no model's."""
    return (path / NAME).is_file() and not any(
        (path / other).is_file() for other in ("config.yaml", "config.json")
    )


def read_peft_config(path: Path) -> dict[str, Any]:
    """The JSON object of a PEFT folder's adapter_config.json. Raises UserError where there is none."""
    if not (path / NAME).is_file():
        raise UserError(f"{path}: has no {NAME}; give the folder of an adapter that PEFT saved")
    return read_json(inside(path, NAME, path))


def unties(path: Path, model: ModelConfig, folder: Folder | None) -> bool:
    """Whether the adapter of a PEFT folder changes the embedding or the head alone of a model, whose
    embedding is its head: they are two arrays then.

    folder: the model's Hugging Face folder; None for one that was trained here. Reads only headers.
    """
    family = family_for(model) if folder is None else folder.family
    entries = family.entries(model, {} if folder is None else folder.tree)
    modules = [PREFIX + name.removesuffix("weight") for name in head_and_embedding(entries)]
    tensors = read_header(inside(path, WEIGHTS, path)) if (path / WEIGHTS).is_file() else {}
    return any(key.startswith(tuple(modules)) for key in tensors)


def read_peft(path: Path, base: Base) -> PeftAdapter:
    """The adapter in a PEFT folder, for this base.

    Raises UserError, in one line that names the key or tensor, for a config that is not supported, for a
    tensor that is missing, unknown or of another shape, and for an adapter of another base.
    """
    tree = read_peft_config(path)
    config = read_config(tree, path / NAME, base.family.adapter_targets)
    if not (path / WEIGHTS).is_file():
        other = " (adapter_model.bin, a pickle, is not read)" * (path / "adapter_model.bin").is_file()
        raise UserError(
            f"{path}: has no {WEIGHTS}{other}; save the adapter with model.save_pretrained(FOLDER)"
        )
    tensors = read_header(inside(path, WEIGHTS, path))
    if config.ties and base.tied:
        modules = head_and_embedding(base.family.entries(base.config, base.tree))
        head, embedding = (name.removesuffix(".weight") for name in modules)
        config = with_head(config, embedding, head)
    tensor_map = base.tensor_map()
    separate = has_separate_experts(tensors)
    found = matrices(tensor_map, separate)
    if has_joined_experts(tensors):
        leaves = expert_modules(base.family.entries(base.config, base.tree))
        config = joined_experts(config, leaves, found)
    targets = targets_of(config, found)
    wholes = whole_tensors(config, tensor_map, targets, separate)
    reader = _Reader(path, base, config, tensors)
    reader.check(targets, wholes, found)
    adapter = PeftAdapter(
        config,
        {},
        tree=tree,
        dtypes={name: tensor.dtype for name, tensor in tensors.items()},
        separate=separate,
        where=str(path),
    )
    for target in targets:
        reader.add(target, adapter)
    for key, slices in wholes.items():
        if key in tensors:
            for part in slices:
                values = part.pattern.read(tensors[key].rows, whole_box(part.pattern.shape))
                adapter.whole.setdefault(part.path, {})[part.prefix] = np.ascontiguousarray(values)
    return adapter


def whole_tensors(
    config: PeftConfig, tensor_map: TensorMap, targets: list[AdaptedMatrix], separate: bool
) -> dict[str, list[ArraySlice]]:
    """Name in the folder → slices of each tensor that takes the place of the base's: those of
    `modules_to_save`, biases as `bias` says, and the weights of embeddings that have an adapter, which PEFT
    saves beside it (they alone may be missing).
    """
    modules = {target.matrix.module: target.module for target in targets}
    found = {}
    names = dict(tensor_map.tensors)
    if not separate:
        for matrix in matrices(tensor_map, separate=False):
            if matrix.kind == "parameter":
                for part in matrix.parts:
                    for name in [name for name, slices in names.items() if _holds(slices[0], part.slice)]:
                        del names[name]
                names[matrix.name] = [part.slice for part in matrix.parts]
    for name, slices in names.items():
        module, _, leaf = name.rpartition(".")
        parents = [module[: match.start()] for match in re.finditer(r"\.|$", module)]
        adapted = module in modules
        if any(config.saves(parent) for parent in parents):
            found[PREFIX + name] = slices
        elif leaf == "bias" and (config.bias == "all" or (config.bias == "lora_only" and adapted)):
            found[f"{PREFIX}{modules[module]}.base_layer.bias" if adapted else PREFIX + name] = slices
        elif adapted and slices[0].path in ("embedding", "head"):
            found[f"{PREFIX}{modules[module]}.base_layer.weight"] = slices
    return found


def _holds(one: ArraySlice, of: ArraySlice) -> bool:
    """Whether a slice of an array is a part of another slice."""
    return one.path == of.path and one.prefix[: len(of.prefix)] == of.prefix


@dataclass(frozen=True)
class _Reader:
    """Checks the tensors of a folder, and reads them."""

    path: Path
    base: Base
    config: PeftConfig
    tensors: Mapping[str, Tensor]

    def check(
        self, targets: list[AdaptedMatrix], wholes: Mapping[str, list[ArraySlice]], found: list[Matrix]
    ) -> None:
        """Raises UserError for the first tensor that doesn't fit."""
        known: set[str] = set()
        for target in targets:
            rank = target.rank(self.config)
            for factor, key in target.keys(self.config).items():
                shape = target.matrix.parts[0].pattern(factor, rank).tensor_shape
                self._check(key, shape, f"a rank of {rank} and {self.base.where}")
                known.add(key)
        for key, slices in wholes.items():
            optional = key.endswith(".base_layer.weight")
            if key in self.tensors or not optional:
                self._check(key, slices[0].pattern.tensor_shape, self.base.where)
            known.add(key)
        for key in self.tensors:
            if key not in known:
                raise self._unknown(key, known, found)

    def _check(self, key: str, shape: tuple[int, ...], wanted_by: str) -> None:
        if key not in self.tensors:
            raise UserError(
                f"{self.path}: the tensor {key}, which its {NAME} requires for {self.base.where}, is missing"
                f"{self.other_base}"
            )
        tensor = self.tensors[key]
        if tensor.shape != shape:
            raise UserError(
                f"{self.path}: {key} has shape {list(tensor.shape)}, and {wanted_by} require {list(shape)}"
                f"{self.other_base}"
            )
        if tensor.dtype not in FLOATS or tensor.dtype.startswith("F8"):
            raise UserError(f"{self.path}: {key} is {tensor.dtype}; must be F32, BF16 or F16")

    @property
    def other_base(self) -> str:
        """The end of an error that another base explains."""
        name = f" ({self.config.base})" * bool(self.config.base)
        return f". The adapter is for another base{name}: give that one, or mend {NAME}"

    def _unknown(self, key: str, known: set[str], found: list[Matrix]) -> UserError:
        """The error for a tensor that nothing takes."""
        modules = {matrix.module for matrix in found}
        module = re.sub(r"(\.base_layer)*\.(lora_\w+(\.weight)?|weight|bias)$", "", key.removeprefix(PREFIX))
        if module in modules:
            return UserError(
                f"{self.path}: {key} is unknown: its {NAME} has no adapter or weight of this name"
            )
        close = closest(key, known)
        hint = f" (the nearest is {close})" if close else ""
        return UserError(
            f"{self.path}: {key} is unknown: {self.base.where} has no such matrix{hint}{self.other_base}"
        )

    def add(self, target: AdaptedMatrix, adapter: PeftAdapter) -> None:
        """Reads the adapter of one matrix into the arrays of each of its parts."""
        rank, alpha = target.rank(self.config), target.alpha(self.config)
        for part in target.matrix.parts:
            values = {}
            for factor, key in target.keys(self.config).items():
                pattern = part.pattern(factor, rank)
                read = pattern.read(self.tensors[key].rows, whole_box(pattern.shape))
                values[factor] = read.astype(np.float32)
            shape = self.base.shapes.get(part.path, self.base.shapes["embedding"])
            stack = shape[: len(part.prefix)]
            low = adapter.low_rank.get(part.path)
            adapter.low_rank[part.path] = low = widened(low, stack, values, rank, part.experts, self.config)
            put(low, part.prefix, values, rank, alpha, part.experts)


def widened(
    low: LowRank | None,
    stack: tuple[int, ...],
    values: Mapping[Factor, np.ndarray],
    rank: int,
    experts: bool,
    config: PeftConfig,
) -> LowRank:
    """The adapter of an array, made where there is none, with room for a slice of this rank.

    stack: the sizes of the dims along which slices are stacked. values: the slice's factors. experts: its
    factors have experts in front.
    """
    A, B, magnitude = (values.get(factor) for factor in ("lora_A", "lora_B", "magnitude"))
    assert A is not None
    assert B is not None
    if low is None:
        zeros = lambda x: np.zeros((*stack, *x.shape), np.float32)  # noqa: E731
        return LowRank(
            zeros(A),
            zeros(B),
            np.zeros(stack, np.int64),
            np.full(stack, config.alpha),
            config.rslora,
            None if magnitude is None else zeros(magnitude),
        )
    if (more := rank - low.lora_A.shape[-1]) > 0:
        low.lora_A = np.pad(low.lora_A, [(0, 0)] * (low.lora_A.ndim - 1) + [(0, more)])
        widths = [(0, 0)] * low.lora_B.ndim
        widths[len(stack) + experts] = (0, more)
        low.lora_B = np.pad(low.lora_B, widths)
    return low


def put(
    low: LowRank, prefix: Prefix, values: Mapping[Factor, np.ndarray], rank: int, alpha: float, experts: bool
) -> None:
    """Writes the adapter of one slice into an array's, in place."""
    low.lora_A[prefix][..., :rank] = values["lora_A"]
    low.lora_B[prefix][(slice(None),) * experts + (slice(0, rank),)] = values["lora_B"]
    if low.magnitude is not None:
        low.magnitude[prefix] = values["magnitude"]
    low.ranks[prefix], low.alphas[prefix] = rank, alpha
