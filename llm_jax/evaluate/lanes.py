"""The order in which token paths are read: lanes, the rows of a cache, each follow one path at a time.

A lane that goes on to its next path keeps what this shares with the last one, or takes over the row of
another lane that has more of it. Imports no JAX.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from llm_jax.evaluate.token_paths import TokenPath, WantedToken, common

WORTH_COPYING = 8
"""Tokens for which another lane's row is copied rather than read again."""
WORTH_WAITING = 8
"""Tokens that another lane has yet to read for which a lane waits rather than reads them too."""
LOOK_AHEAD = 64
"""Groups among which a lane looks for one for which it need not wait."""


class RunShape(NamedTuple):
    """The runs of one call: so many rows of so many positions."""

    rows: int
    positions: int


class Copies(NamedTuple):
    """Rows of the cache that are copied, in this order."""

    pairs: list[tuple[int, int]]
    """(from, to)."""


class Runs(NamedTuple):
    """Runs of positions that one call reads."""

    lanes_B: np.ndarray
    """int32: the row of the cache that each run is in."""
    starts_B: np.ndarray
    """int32: the position of its first token."""
    tokens_BT: np.ndarray
    """int32; 0 after the end of a path."""
    targets: list[tuple[int, WantedToken]]
    """(number of the run x positions + index in the run, a token wanted after that position)."""
    read: int
    """Tokens of paths that this call is the first to read."""


NOTHING = TokenPath(np.zeros(0, np.int32), 0, {})


@dataclass
class Lane:
    """A row of the cache: the first `read` tokens of `path` are in it."""

    path: TokenPath
    read: int = 0
    ahead: deque[TokenPath] = field(default_factory=deque)
    """The paths that it reads after this one."""

    @property
    def left(self) -> int:
        """Tokens of its path that it has yet to read."""
        return len(self.path.ids) - self.read

    def has(self, path: TokenPath) -> int:
        """How many tokens of a path need not be read, as they are in this row: of those that the path shares
        with the one before it, as it has targets after the others."""
        return common(self.path.ids[: self.read], path.ids[: path.shared])

    def will_have(self, path: TokenPath) -> int:
        """The same, once the lane is at the end of its path."""
        return common(self.path.ids, path.ids[: path.shared])


class Schedule:
    """Iterates over what to do, in order, to read all paths of all groups."""

    def __init__(
        self,
        groups: Sequence[Sequence[TokenPath]],
        lanes: int,
        devices: int,
        shapes: Sequence[RunShape],
        length: int,
    ):
        """lanes: rows of the cache, equally many on each of `devices`, which copy among their own. shapes:
        those that a call may have, their rows multiples of devices. length: of the cache, at least that of
        the longest path and of the longest run."""
        self.lanes = [Lane(NOTHING) for _ in range(lanes)]
        each = lanes // devices
        self.on_device = [self.lanes[first : first + each] for first in range(0, lanes, each)]
        self.numbers = {id(lane): number for number, lane in enumerate(self.lanes)}
        self.pool = deque(groups)
        self.shapes, self.length = shapes, length

    def __iter__(self) -> Iterator[Copies | Runs]:
        while True:
            pairs = []
            for neighbours in self.on_device:
                for lane in neighbours:
                    if not lane.left and (source := self.next_path(lane, neighbours)):
                        pairs.append((self.numbers[id(source)], self.numbers[id(lane)]))
            if pairs:
                yield Copies(pairs)
            calls = [(self.chosen(shape), shape) for shape in self.shapes]
            lanes, shape = max(calls, key=lambda call: gain(*call))
            if not gain(lanes, shape):
                return
            yield self.runs(lanes, shape)

    def next_path(self, lane: Lane, neighbours: Sequence[Lane]) -> Lane | None:
        """Gives a lane that is done its next path, unless it is to wait for one. Returns the lane whose row
        it takes over, if any."""
        if lane.ahead:
            path = lane.ahead.popleft()
            lane.read, lane.path = lane.has(path), path
            return None
        for number in range(min(len(self.pool), LOOK_AHEAD)):
            path, *ahead = self.pool[number]
            own, have = lane.has(path), [other.has(path) for other in neighbours]
            most = max(have)
            if any(
                other.left and other.will_have(path) - max(most, other.read) >= WORTH_WAITING
                for other in neighbours
            ):
                continue
            del self.pool[number]
            lane.path = path
            lane.ahead.extend(ahead)
            copied = most - own >= WORTH_COPYING
            lane.read = most if copied else own
            return neighbours[have.index(most)] if copied else None
        return None

    def chosen(self, shape: RunShape) -> list[Lane]:
        """The lanes that gain most from a call of this shape, the same number on each device."""
        each = shape.rows // len(self.on_device)
        found = []
        for lanes in self.on_device:
            longest = sorted(lanes, key=lambda lane: lane.left, reverse=True)
            found += lanes if each == len(lanes) else longest[:each]
        return found

    def runs(self, lanes: Sequence[Lane], shape: RunShape) -> Runs:
        """The next run of each of these lanes, which then have it in their rows."""
        starts_B = np.zeros(shape.rows, np.int32)
        tokens_BT = np.zeros(shape, np.int32)
        targets, read = [], 0
        for row, lane in enumerate(lanes):
            ids, first = lane.path.ids, lane.read
            # A run that would pass the cache's end begins earlier: it writes once more what is there already.
            start = starts_B[row] = min(first, self.length - shape.positions)
            some = ids[start : start + shape.positions]
            tokens_BT[row, : len(some)] = some
            lane.read = max(first, start + len(some))
            read += lane.read - first
            targets += [
                (row * shape.positions + position - start, target)
                for position in range(first, lane.read)
                for target in lane.path.targets.get(position, ())
            ]
        numbers_B = np.array([self.numbers[id(lane)] for lane in lanes], np.int32)
        return Runs(numbers_B, starts_B, tokens_BT, targets, read)


def gain(lanes: Sequence[Lane], shape: RunShape) -> int:
    """The tokens that a call of this shape would read in these lanes."""
    return sum(min(lane.left, shape.positions) for lane in lanes)
