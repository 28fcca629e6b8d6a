"""Patterns: how a tensor of a file holds an array of the model, in a notation for reading and writing.

"(h k) d -> d h k": the tensor, on the left, has heads times head_dim rows and embed columns; the array, on
the right, has the dims embed, heads, head_dim. A letter is a dim, and brackets join dims that are one dim of
the tensor. "p" is a dim of the tensor that the array lacks: the parts fused into the tensor (queries, keys,
values), of which the array is one. In addition one dim may be permuted: array = tensor[order].
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

PART = "p"
Box = tuple[slice, ...]
"""A rectangular part of an array: for each dim a slice with a start and a stop."""


@dataclass(frozen=True)
class Pattern:
    """A pattern, parsed into the dims of its two sides."""

    tensor_dims: tuple[tuple[str, ...], ...]
    """For each dim of the tensor, the dims that are joined in it."""
    array_dims: tuple[str, ...]

    @property
    def split_dims(self) -> tuple[str, ...]:
        """The dims of the tensor with its joined dims split."""
        return tuple(dim for joined in self.tensor_dims for dim in joined)


@functools.cache
def parse_pattern(text: str) -> Pattern:
    """Parses the notation.

    >>> parse_pattern("(h k) d -> d h k")
    Pattern(tensor_dims=(('h', 'k'), ('d',)), array_dims=('d', 'h', 'k'))
    """
    left, right = text.split("->")
    tensor_dims = tuple(tuple(word.strip("()").split()) for word in re.findall(r"\([^)]*\)|\S+", left))
    pattern = Pattern(tensor_dims, tuple(right.split()))
    assert set(pattern.split_dims) - {PART} == set(pattern.array_dims), text
    return pattern


@dataclass(frozen=True)
class SizedPattern:
    """A pattern with the sizes of its dims: converts between a tensor of a file and an array of the model."""

    pattern: Pattern
    shape: tuple[int, ...]
    """The shape of the array, one size per dim of the pattern's right side."""
    part: int = 0
    """The index of the array among the parts that are fused into the tensor."""
    parts: int = 1
    """The number of parts that are fused into the tensor."""
    order: tuple[str, tuple[int, ...]] | None = None
    """A dim, and for each index of the array along it the index in the tensor; None: no dim is permuted."""

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """The size of each dim of the pattern, by its letter."""
        return {PART: self.parts, **dict(zip(self.pattern.array_dims, self.shape, strict=True))}

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape that the tensor must have."""
        return tuple(math.prod(self.sizes[dim] for dim in joined) for joined in self.pattern.tensor_dims)

    @property
    def leading_dim(self) -> int | None:
        """The array's dim along which a part of the array is consecutive rows of the tensor; None if the
        tensor's first dim is "p".
        """
        first = self.pattern.split_dims[0]
        return None if first == PART else self.pattern.array_dims.index(first)

    @property
    def permutation(self) -> tuple[int, ...]:
        """The array's dims in the order in which the tensor has them."""
        return tuple(self.pattern.array_dims.index(dim) for dim in self.pattern.split_dims if dim != PART)

    def read(self, rows: Callable[[int, int], np.ndarray], box: Box) -> np.ndarray:
        """The part `box` of the array; `rows(first, end)` reads rows of the tensor.

        The result may be a strided view.
        """
        slices = dict(zip(self.pattern.array_dims, box, strict=True))
        if self.order is not None:
            slices[self.order[0]] = slice(0, self.sizes[self.order[0]])
        first, *rest = self.pattern.split_dims
        at = slices.get(first, slice(self.part, self.part + 1))
        per = self.tensor_shape[0] // self.sizes[first]
        tensor = rows(at.start * per, at.stop * per).reshape(
            at.stop - at.start, *(self.sizes[dim] for dim in rest)
        )
        tensor = tensor[(slice(None), *(slices.get(dim, slice(self.part, self.part + 1)) for dim in rest))]
        if PART in self.pattern.split_dims:
            tensor = np.squeeze(tensor, self.pattern.split_dims.index(PART))
        dims = [dim for dim in self.pattern.split_dims if dim != PART]
        array = tensor.transpose([dims.index(dim) for dim in self.pattern.array_dims])
        if self.order is not None:
            axis = self.pattern.array_dims.index(self.order[0])
            array = np.take(array, np.asarray(self.order[1])[box[axis]], axis)
        return array

    def row_ranges(self, max_size: int) -> Iterator[tuple[int, int]]:
        """Ranges (start, end) of the tensor's first split dim, each of at most `max_size` numbers if it can
        be divided.
        """
        first = self.pattern.split_dims[0]
        length = self.sizes[first]
        indivisible = first == PART or (self.order is not None and self.order[0] == first)
        per = length if indivisible else max(1, max_size * length // math.prod(self.tensor_shape))
        for start in range(0, length, per):
            yield start, min(start + per, length)

    def restricted(self, start: int, end: int) -> tuple[SizedPattern, Box]:
        """The pattern for such a range of the tensor alone, and the part of the array that it holds."""
        box = whole_box(self.shape)
        if self.leading_dim is None:
            return self, box
        before, after = self.leading_dim, self.leading_dim + 1
        shape = (*self.shape[:before], end - start, *self.shape[after:])
        return replace(self, shape=shape), (*box[:before], slice(start, end), *box[after:])

    def write(self, permuted: np.ndarray, tensor: np.ndarray) -> None:
        """Copies the whole array, its dims already in the order `permutation`, into `tensor`
        [tensor_shape].
        """
        if self.order is not None:
            axis = self.permutation.index(self.pattern.array_dims.index(self.order[0]))
            permuted = np.take(permuted, np.argsort(self.order[1]), axis)
        at = tuple(self.part if dim == PART else slice(None) for dim in self.pattern.split_dims)
        tensor.reshape([self.sizes[dim] for dim in self.pattern.split_dims])[at] = permuted


def whole_box(shape: Sequence[int]) -> Box:
    """The box that is all of an array of this shape."""
    return tuple(slice(0, n) for n in shape)


def intersection(a: Box, b: Box) -> Box | None:
    """The part that two boxes of an array share; None if they are disjoint."""
    box = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return box if all(s.start < s.stop for s in box) else None


def relative_to(box: Box, outer: Box) -> Box:
    """A box in the coordinates of another box that contains it."""
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer, strict=True))


def box_size(box: Box) -> int:
    """The number of array elements in a box."""
    return math.prod(s.stop - s.start for s in box)


def split_box(box: Box, dims: Sequence[int], max_size: int) -> list[Box]:
    """Divides a box along `dims`, the first of them first, into as few boxes as give at most `max_size`
    elements each.

    Boxes stay larger than that where all of `dims` are divided to the end.
    """
    if box_size(box) <= max_size or not dims:
        return [box]
    axis, *rest = dims
    s = box[axis]
    per = max(1, max_size // max(1, box_size(box) // (s.stop - s.start)))
    slabs = [
        (*box[:axis], slice(a, min(a + per, s.stop)), *box[axis + 1 :]) for a in range(s.start, s.stop, per)
    ]
    return [part for slab in slabs for part in split_box(slab, rest, max_size)]
