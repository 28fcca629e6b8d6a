"""A family's table of tensors, laid over one model: which tensor of theirs is in which place of which array of ours."""

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
from llm_jax.huggingface.tensor_layout import Box, Fit, form
from llm_jax.model.config import ModelConfig

LAYER, EXPERT = "{layer}", "{expert}"


@dataclass(frozen=True)
class Entry:
    """One line of a table. An array that the model hasn't got (a bias) is no error: then there is no such tensor either."""

    theirs: str
    """The tensor's name, with {layer}, and {expert} where each expert has its own."""
    ours: str
    """The array's path: in a layer as Block names it, else as Transformer does."""
    form: str
    part: int = 0
    parts: int = 1
    """Of the arrays that are fused into the tensor, which one this is."""
    order: tuple[str, tuple[int, ...]] | None = None
    """See `forms.Fit`."""
    only: str = ""
    """"dense": the entry is of layers without experts, "sparse": of those with; "": of all."""


@dataclass(frozen=True)
class Piece:
    """A tensor, and the place in an array that it fills."""

    name: str
    path: str
    prefix: tuple[int, ...]
    """Which layer of the stack, and which expert; what is left of the array's shape is the form's."""
    fit: Fit


@dataclass
class Table:
    """All pieces of a model."""

    pieces: dict[str, dict[tuple[int, ...], Piece]] = field(default_factory=dict)
    """Path of an array → the place in it → what fills that."""
    tensors: dict[str, list[Piece]] = field(default_factory=dict)
    """Name of a tensor → the pieces in it."""

    def add(self, piece: Piece) -> None:
        self.pieces.setdefault(piece.path, {})[piece.prefix] = piece
        self.tensors.setdefault(piece.name, []).append(piece)

    def depth(self, path: str) -> int:
        """How many dims of an array, its first, are places for tensors."""
        return len(next(iter(self.pieces[path])))

    def read(self, tensors: Mapping[str, Tensor], path: str, box: Box, dtype: Any) -> np.ndarray:
        """A part of an array in a dtype, from the files; in memory it is as they have it, and its strides turn it."""
        depth = self.depth(path)
        read = []
        for prefix in itertools.product(*(range(s.start, s.stop) for s in box[:depth])):
            piece = self.pieces[path][prefix]
            read.append(piece.fit.read(tensors[piece.name].rows, box[depth:]).astype(dtype, copy=False))
        return stacked(read).reshape([s.stop - s.start for s in box])

    def check(self, tensors: Mapping[str, Tensor], folder: Path, buffers: tuple[str, ...] = ()) -> None:
        """Raises UserError, naming the first, for a tensor that is missing, of another shape or dtype, or taken by nothing.

        buffers: patterns of the names of tensors that hold no weights.
        """
        for name, pieces in self.tensors.items():
            if name not in tensors:
                raise UserError(f"{folder}: has no tensor {name}, which its config.json asks for")
            shape = pieces[0].fit.their_shape
            if tensors[name].shape != shape:
                raise UserError(f"{folder}: {name} is {list(tensors[name].shape)}, and its config.json asks for {list(shape)}")
            if tensors[name].dtype not in FLOATS:
                raise UserError(f"{folder}: {name} is {tensors[name].dtype}; must be one of {', '.join(FLOATS)}")
        for name in tensors:
            if name not in self.tensors and not any(re.fullmatch(pattern, name) for pattern in buffers):
                told = "its config.json describes a model without it; leave_out= of llm_jax.pretrained.load does without it"
                raise UserError(f"{folder}: {name} is a tensor that nothing here takes: {told}")


def lay(entries: list[Entry], config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Table:
    """The table of one model; shapes: of all its arrays, by path, layers stacked."""
    table = Table()
    dense = [layer for layer in range(config.layers) if layer not in config.sparse_layers]
    stacks = (("blocks", config.sparse_layers or dense), ("dense_blocks", dense if config.sparse_layers else ()))
    for entry in entries:
        if LAYER not in entry.theirs:
            if entry.ours in shapes:
                table.add(Piece(entry.theirs, entry.ours, (), fit(entry, shapes[entry.ours])))
            continue
        for stack, layers in stacks:
            sparse = stack == "blocks" and bool(config.sparse_layers)
            path = f"{stack}.{entry.ours}"
            if path not in shapes or entry.only == ("dense" if sparse else "sparse"):
                continue
            for index, layer in enumerate(layers):
                name = entry.theirs.replace(LAYER, str(layer))
                for expert in range(shapes[path][1]) if EXPERT in name else (None,):
                    prefix = (index,) if expert is None else (index, expert)
                    table.add(Piece(name.replace(EXPERT, str(expert)), path, prefix, fit(entry, shapes[path][len(prefix) :])))
    for path in shapes:
        assert path in table.pieces, f"no line of the table is about {path}"
    return table


def fit(entry: Entry, shape: tuple[int, ...]) -> Fit:
    """An entry's form with the sizes of an array of ours."""
    return Fit(form(entry.form), shape, entry.part, entry.parts, entry.order)


def stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """`np.stack` that leaves what is turned by strides turned by strides: NumPy takes longer to move a large matrix's numbers than to read it."""
    order = sorted(range(arrays[0].ndim), key=lambda axis: -arrays[0].strides[axis])
    made = np.stack([array.transpose(order) for array in arrays]) if len(arrays) > 1 else arrays[0].transpose(order)[None]
    return made.transpose(0, *(1 + order.index(axis) for axis in range(len(order))))
