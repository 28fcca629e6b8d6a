"""What has to be read to score requests: token paths, of which those that begin alike share their beginning.

Requests as a tree of tokens: a context with four choices is one branch that forks at its end, and five shots
before a thousand questions are one trunk. Imports no JAX.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ScoreRequest(NamedTuple):
    """Token ids of a context, with BOS where the convention has it, and of what follows it."""

    context: tuple[int, ...]
    """At least one id."""
    continuation: tuple[int, ...]
    """At least one id; these are scored."""


class WantedToken(NamedTuple):
    """A token whose probability is wanted."""

    token: int
    request: int
    """The number of its request."""
    place: int
    """Its index in the request's continuation."""


class TokenPath(NamedTuple):
    """The tokens that are read for one or more requests, from the first on."""

    ids: np.ndarray
    """int32: context and continuation without the last token, which only is predicted."""
    shared: int
    """How many of them the path before has too, at its beginning."""
    targets: dict[int, list[WantedToken]]
    """Position → the tokens wanted after it. Those after shared positions are with the first path that has
    the position, so that nothing is read twice for them."""


def token_paths(requests: Sequence[ScoreRequest], numbers: Sequence[int]) -> list[TokenPath]:
    """The paths of these requests (`numbers`: which ones), each once, in the order of their ids: neighbours
    share the most."""
    wanted: dict[tuple[int, ...], list[int]] = {}
    for number in numbers:
        context, continuation = requests[number]
        wanted.setdefault((*context, *continuation[:-1]), []).append(number)
    paths: list[TokenPath] = []
    firsts: list[int] = []  # where each part of the present path begins, and in `owners` whose it is
    owners: list[int] = []
    for ids in sorted(wanted):
        array = np.array(ids, np.int32)
        shared = common(paths[-1].ids, array) if paths else 0
        while firsts and firsts[-1] >= shared:
            firsts.pop()
            owners.pop()
        firsts.append(shared)
        owners.append(len(paths))
        paths.append(TokenPath(array, shared, {}))
        for number in wanted[ids]:
            context, continuation = requests[number]
            for place, token in enumerate(continuation):
                position = len(context) - 1 + place
                owner = owners[bisect.bisect_right(firsts, position) - 1]
                paths[owner].targets.setdefault(position, []).append(WantedToken(token, number, place))
    return paths


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many ids two arrays have in common at their beginnings."""
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    return int(differs.argmax()) if differs.any() else size


FORK = 4
"""Paths that share this many tokens more than their group shares with the one before stay in one group."""


def groups(paths: Sequence[TokenPath], most: int) -> list[list[TokenPath]]:
    """The paths in groups of neighbours, to be read one after the other: a context's choices are in one.

    most: tokens to read from which on a group takes no more paths.
    """
    found: list[list[TokenPath]] = []
    base = size = 0
    for path in paths:
        if not found or path.shared < base + FORK or size >= most:
            found.append([])
            base, size = path.shared, 0
        found[-1].append(path)
        size += len(path.ids) - path.shared
    return found
