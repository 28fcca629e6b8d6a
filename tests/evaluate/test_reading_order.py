"""Every wanted token is asked for once, after exactly the tokens before it, whatever the order of reading."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.evaluate.lanes import Copies, RunShape, Schedule
from llm_jax.evaluate.token_paths import ScoreRequest, groups, token_paths


def simulated(
    requests: list[ScoreRequest], lanes: int, devices: int, shapes: list[RunShape], length: int, most: int
) -> tuple[dict[tuple[int, int], tuple[tuple[int, ...], int]], int, int]:
    """((request, place) → (the tokens before, the token), tokens read, calls), with rows of tokens as the
    cache."""
    paths = token_paths(requests, range(len(requests)))
    cache = np.full((lanes, length), -1)
    found: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}
    read = calls = 0
    for call in Schedule(groups(paths, most), lanes, devices, shapes, length):
        if isinstance(call, Copies):
            for source, lane in call.pairs:
                assert source // (lanes // devices) == lane // (lanes // devices)
                cache[lane] = cache[source]
            continue
        rows, positions = call.tokens_BT.shape
        assert (rows, positions) in shapes
        for lane, start, tokens in zip(call.lanes_B, call.starts_B, call.tokens_BT, strict=True):
            assert 0 <= start <= length - positions
            cache[lane, start : start + positions] = tokens
        for at, target in call.targets:
            row, position = divmod(at, positions)
            before = cache[call.lanes_B[row], : call.starts_B[row] + position + 1]
            assert (target.request, target.place) not in found
            found[target.request, target.place] = tuple(before.tolist()), target.token
        read += call.read
        calls += 1
    return found, read, calls


@pytest.mark.parametrize(
    ("lanes", "devices", "shapes"),
    [
        (1, 1, [RunShape(1, 16)]),
        (8, 1, [RunShape(8, 2), RunShape(1, 16)]),
        (8, 2, [RunShape(8, 4), RunShape(2, 16)]),
        (2, 2, [RunShape(2, 16)]),
    ],
)
def test_every_token_is_read_after_those_before_it(lanes, devices, shapes):
    """Of few different ids, so that all ways of sharing occur: equal requests, one that begins another, in
    its context or in its continuation."""
    random = np.random.default_rng(0)
    for most in (0, 5, 1000):
        requests = [
            ScoreRequest(
                tuple(random.integers(1, 3, random.integers(1, 20)).tolist()),
                tuple(random.integers(1, 3, random.integers(1, 14)).tolist()),
            )
            for _ in range(60)
        ]
        found, _, _ = simulated(requests, lanes, devices, shapes, 32, most)
        assert found == {
            (number, place): ((*context, *continuation[:place]), token)
            for number, (context, continuation) in enumerate(requests)
            for place, token in enumerate(continuation)
        }


def test_a_long_beginning_is_read_in_one_call_and_copied():
    beginning = tuple(range(100, 300))
    requests = [ScoreRequest((*beginning, i), (1, 2, 3)) for i in range(64)]
    _, read, calls = simulated(requests, 32, 1, [RunShape(32, 8), RunShape(1, 256)], 256, 3)
    assert read == 200 + 64 * 3
    assert calls == 1 + 2


def test_choices_share_their_context():
    """Four choices of one, two, three and no more tokens than are only predicted."""
    context = tuple(range(10, 50))
    requests = [ScoreRequest(context, tuple(range(60 + i, 60 + 2 * i))) for i in range(1, 5)]
    _, read, _ = simulated(requests, 4, 1, [RunShape(4, 8), RunShape(1, 32)], 64, 10)
    assert read == 40 + 0 + 1 + 2 + 3
