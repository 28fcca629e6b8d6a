"""The tensor map of a model: which tensor fills which slice of which array, from a family's table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.huggingface.safetensors import FLOATS, Tensor
from llm_jax.huggingface.tensor_layout import Box, SizedPattern, parse_pattern
from llm_jax.model.config import ModelConfig

LAYER, EXPERT = "{layer}", "{expert}"


@dataclass(frozen=True)
class Entry:
    """One line of a family's table.

    If the model lacks the array (a bias), the files lack the tensor, and the line is ignored.
    """

    tensor: str
    """The tensor's name, with {layer}, and {expert} where each expert has its own tensor."""
    array: str
    """The array's path: within a layer as Block names it, else as Transformer does."""
    pattern: str
    """How the tensor holds the array (`llm_jax.huggingface.tensor_layout`)."""
    part: int = 0
    """The index of the array among the arrays that are fused into the tensor."""
    parts: int = 1
    """The number of arrays that are fused into the tensor."""
    order: tuple[str, tuple[int, ...]] | None = None
    """A permutation of one dim (`SizedPattern.order`)."""
    only: str = ""
    """"dense": the line is about layers without experts, "sparse": about those with; "": about all."""


@dataclass(frozen=True)
class ArraySlice:
    """A slice of an array, and the tensor that fills it."""

    tensor: str
    path: str
    """The array's path in the nested dicts of parameters, joined by dots."""
    prefix: tuple[int, ...]
    """The indices of the slice along the array's first dims: the layer in its stack, and the expert."""
    pattern: SizedPattern
    """How the tensor holds the slice."""


@dataclass
class TensorMap:
    """All slices of all arrays of a model, by array and by tensor."""

    slices: dict[str, dict[tuple[int, ...], ArraySlice]] = field(default_factory=dict)
    """Path of an array → prefix → the slice there."""
    tensors: dict[str, list[ArraySlice]] = field(default_factory=dict)
    """Name of a tensor → the slices that it fills."""

    def add(self, part: ArraySlice) -> None:
        """Adds one slice to both mappings."""
        self.slices.setdefault(part.path, {})[part.prefix] = part
        self.tensors.setdefault(part.tensor, []).append(part)

    def depth(self, path: str) -> int:
        """The number of leading dims of an array along which it is filled by separate tensors."""
        return len(next(iter(self.slices[path])))

    def read(self, tensors: Mapping[str, Tensor], path: str, box: Box, dtype: Any) -> np.ndarray:
        """The part `box` of an array, from the files, in `dtype`.

        In memory it is laid out as in the files, and transposed by its strides only: devices transpose
        faster.
        """
        depth = self.depth(path)
        read = []
        for prefix in itertools.product(*(range(s.start, s.stop) for s in box[:depth])):
            part = self.slices[path][prefix]
            read.append(part.pattern.read(tensors[part.tensor].rows, box[depth:]).astype(dtype, copy=False))
        return stack_keeping_strides(read).reshape([s.stop - s.start for s in box])

    def check(
        self,
        tensors: Mapping[str, Tensor],
        folder: Path,
        buffers: tuple[str, ...] = (),
        described: str = "config.json",
    ) -> None:
        """Raises UserError, naming the first, for a tensor that is missing, unknown, or of a wrong shape or
        dtype.

        `buffers` are patterns of the names of tensors that hold no weights. `described`: what describes the
        model.
        """
        for name, slices in self.tensors.items():
            if name not in tensors:
                longer = next(
                    (tensor.name for other, tensor in tensors.items() if other.endswith(f".{name}")), None
                )
                there = f"; there is {longer}: rename its tensors" if longer else ""
                raise UserError(
                    f"{folder}: the tensor {name}, which its {described} requires, is missing{there}"
                )
            shape = slices[0].pattern.tensor_shape
            if tensors[name].shape != shape:
                found = list(tensors[name].shape)
                raise UserError(
                    f"{folder}: {name} has shape {found}, but its {described} requires {list(shape)}"
                )
            if tensors[name].dtype not in FLOATS:
                raise UserError(
                    f"{folder}: {name} is {tensors[name].dtype}; must be one of {', '.join(FLOATS)}"
                )
        for name in tensors:
            if name not in self.tensors and not any(re.fullmatch(pattern, name) for pattern in buffers):
                raise UserError(
                    f"{folder}: the model that its {described} describes has no tensor {name}. To load it "
                    "without, "
                    f"give leave_out={name} to llm_jax.pretrained.load"
                )


def build_tensor_map(
    entries: list[Entry], config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> TensorMap:
    """The tensor map of one model, from its family's table; `shapes` are those of all its arrays, by path,
    layers stacked.
    """
    tensor_map = TensorMap()
    dense = [layer for layer in range(config.layers) if layer not in config.sparse_layers]
    stacks = (
        ("blocks", config.sparse_layers or dense),
        ("dense_blocks", dense if config.sparse_layers else ()),
    )
    for entry in entries:
        if LAYER not in entry.tensor:
            if entry.array in shapes:
                tensor_map.add(
                    ArraySlice(entry.tensor, entry.array, (), sized_pattern(entry, shapes[entry.array]))
                )
            continue
        for stack, layers in stacks:
            sparse = stack == "blocks" and bool(config.sparse_layers)
            path = f"{stack}.{entry.array}"
            if path not in shapes or entry.only == ("dense" if sparse else "sparse"):
                continue
            for index, layer in enumerate(layers):
                name = entry.tensor.replace(LAYER, str(layer))
                for expert in range(shapes[path][1]) if EXPERT in name else (None,):
                    prefix = (index,) if expert is None else (index, expert)
                    pattern = sized_pattern(entry, shapes[path][len(prefix) :])
                    tensor_map.add(ArraySlice(name.replace(EXPERT, str(expert)), path, prefix, pattern))
    for path in shapes:
        assert path in tensor_map.slices, f"no line of the table is about {path}"
    return tensor_map


def sized_pattern(entry: Entry, shape: tuple[int, ...]) -> SizedPattern:
    """An entry's pattern with the sizes of an array of this shape."""
    return SizedPattern(parse_pattern(entry.pattern), shape, entry.part, entry.parts, entry.order)


def stack_keeping_strides(arrays: list[np.ndarray]) -> np.ndarray:
    """`np.stack(arrays)`, laid out in memory as the arrays are: NumPy takes longer to transpose a large
    matrix than to read it.
    """
    order = sorted(range(arrays[0].ndim), key=lambda axis: -arrays[0].strides[axis])
    stack = (
        np.stack([array.transpose(order) for array in arrays])
        if len(arrays) > 1
        else arrays[0].transpose(order)[None]
    )
    return stack.transpose(0, *(1 + order.index(axis) for axis in range(len(order))))
