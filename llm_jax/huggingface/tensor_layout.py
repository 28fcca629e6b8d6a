"""How one of their tensors holds one of our arrays: a little notation that can be read both ways.

"(h k) d -> d h k" says that theirs has rows of heads times head_dim and columns of embed, and ours has dims embed, heads, head_dim; a letter is a
dim, brackets are dims that one of theirs is made of. "p" is a dim of theirs that ours has not: parts that are fused into one tensor, of which
ours is one. A bare permutation of one dim may come on top: ours = theirs[order].
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
"""A part of an array: a slice with a beginning and an end for each dim."""


@dataclass(frozen=True)
class Form:
    """The notation, read."""

    theirs: tuple[tuple[str, ...], ...]
    """The dims of each of their dims."""
    ours: tuple[str, ...]

    @property
    def flat(self) -> tuple[str, ...]:
        """Their dims without brackets."""
        return tuple(dim for group in self.theirs for dim in group)


@functools.cache
def form(text: str) -> Form:
    """Reads the notation.

    >>> form("(h k) d -> d h k")
    Form(theirs=(('h', 'k'), ('d',)), ours=('d', 'h', 'k'))
    """
    left, right = text.split("->")
    groups = tuple(tuple(word.strip("()").split()) for word in re.findall(r"\([^)]*\)|\S+", left))
    made = Form(groups, tuple(right.split()))
    assert set(made.flat) - {PART} == set(made.ours), text
    return made


@dataclass(frozen=True)
class Fit:
    """A form with the sizes of its dims: between one tensor of theirs and one array of ours."""

    form: Form
    shape: tuple[int, ...]
    """Of our array."""
    part: int = 0
    parts: int = 1
    order: tuple[str, tuple[int, ...]] | None = None
    """A dim, and for each of our places along it the place in theirs."""

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        return {PART: self.parts, **dict(zip(self.form.ours, self.shape, strict=True))}

    @property
    def their_shape(self) -> tuple[int, ...]:
        """The shape that their tensor must have."""
        return tuple(math.prod(self.sizes[dim] for dim in group) for group in self.form.theirs)

    @property
    def lead(self) -> int | None:
        """Our dim along which a part of ours is rows of theirs that follow each other; None where the parts come first."""
        first = self.form.flat[0]
        return None if first == PART else self.form.ours.index(first)

    def read(self, rows: Callable[[int, int], np.ndarray], box: Box) -> np.ndarray:
        """A part of our array; `rows(first, end)` reads theirs."""
        slices = dict(zip(self.form.ours, box, strict=True))
        if self.order is not None:
            slices[self.order[0]] = slice(0, self.sizes[self.order[0]])
        first, *rest = self.form.flat
        at = slices.get(first, slice(self.part, self.part + 1))
        per = self.their_shape[0] // self.sizes[first]
        theirs = rows(at.start * per, at.stop * per).reshape(at.stop - at.start, *(self.sizes[dim] for dim in rest))
        theirs = theirs[(slice(None), *(slices.get(dim, slice(self.part, self.part + 1)) for dim in rest))]
        if PART in self.form.flat:
            theirs = np.squeeze(theirs, self.form.flat.index(PART))
        flat = [dim for dim in self.form.flat if dim != PART]
        ours = theirs.transpose([flat.index(dim) for dim in self.form.ours])
        if self.order is not None:
            axis = self.form.ours.index(self.order[0])
            ours = np.take(ours, np.asarray(self.order[1])[box[axis]], axis)
        return ours

    @property
    def turn(self) -> tuple[int, ...]:
        """Our dims in the order in which theirs has them."""
        return tuple(self.form.ours.index(dim) for dim in self.form.flat if dim != PART)

    def in_parts(self, most: int) -> Iterator[tuple[int, int]]:
        """Their tensor as ranges of its first dim without brackets, each of at most so many numbers if that can be."""
        first = self.form.flat[0]
        length = self.sizes[first]
        in_one = first == PART or (self.order is not None and self.order[0] == first)
        per = length if in_one else max(1, most * length // math.prod(self.their_shape))
        for start in range(0, length, per):
            yield start, min(start + per, length)

    def part_of(self, start: int, end: int) -> tuple[Fit, Box]:
        """What fits such a range, and the part of our array that is in it."""
        box = whole(self.shape)
        if self.lead is None:
            return self, box
        shape = (*self.shape[: self.lead], end - start, *self.shape[self.lead + 1 :])
        return replace(self, shape=shape), (*box[: self.lead], slice(start, end), *box[self.lead + 1 :])

    def write(self, turned: np.ndarray, theirs: np.ndarray) -> None:
        """Puts our whole array, its dims turned as `turn` says, into theirs [their_shape]."""
        if self.order is not None:
            turned = np.take(turned, np.argsort(self.order[1]), self.turn.index(self.form.ours.index(self.order[0])))
        at = tuple(self.part if dim == PART else slice(None) for dim in self.form.flat)
        theirs.reshape([self.sizes[dim] for dim in self.form.flat])[at] = turned


def whole(shape: Sequence[int]) -> Box:
    """All of an array."""
    return tuple(slice(0, n) for n in shape)


def common(a: Box, b: Box) -> Box | None:
    """What two parts of an array have in common; None for nothing."""
    made = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return made if all(s.start < s.stop for s in made) else None


def inside(box: Box, of: Box) -> Box:
    """A part of an array as it is counted within another part that contains it."""
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, of, strict=True))


def size(box: Box) -> int:
    """Numbers in a part of an array."""
    return math.prod(s.stop - s.start for s in box)


def split(box: Box, order: Sequence[int], most: int) -> list[Box]:
    """A part of an array in smaller ones of at most so many numbers, cut along its dims in the given order, as few as will do."""
    if size(box) <= most or not order:
        return [box]
    axis, *rest = order
    s = box[axis]
    per = max(1, most // max(1, size(box) // (s.stop - s.start)))
    cut = [(*box[:axis], slice(a, min(a + per, s.stop)), *box[axis + 1 :]) for a in range(s.start, s.stop, per)]
    return [small for part in cut for small in split(part, rest, most)]
