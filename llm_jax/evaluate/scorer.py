"""Scores continuations of contexts: the log-probability of each token, whether it is the most likely one, and
the most likely tokens in its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from llm_jax.core.errors import UserError, require
from llm_jax.evaluate.lanes import Copies, Runs, RunShape, Schedule
from llm_jax.evaluate.score_programs import HEAD_ROWS, ScorePrograms, TokenScores
from llm_jax.evaluate.token_paths import ScoreRequest as ScoreRequest
from llm_jax.evaluate.token_paths import TokenPath, WantedToken, groups, token_paths
from llm_jax.model.kv_cache import Cache
from llm_jax.pretrained.model import PretrainedModel, check_text_ids

POSITIONS = {"cpu": 256}
"""Platform → the positions that each call reads."""
MOST_POSITIONS = 4096
"""The same for other platforms."""
SHORTEST_CACHE = 256
"""Positions of the shortest cache; longer ones are powers of two, so that few programs are compiled."""
SHORTEST_RUN = 8
"""Positions of a run where many texts are read at once."""
FEWER = 4
"""Between many short runs and few long ones there is a shape of so many times fewer and longer runs than the
first: endings are longer than single words, and a program more compiles in a second or two."""
CACHE_BYTES = 2**30
"""The most bytes that all devices' caches together have, unless a single row of each device has more."""
BEHIND = 4
"""Calls whose scores are fetched later, while the devices go on."""
NO_CACHES: tuple[tuple[int, int], list[Cache]] = (0, 0), []


class Scored(NamedTuple):
    """The scores of a request's continuation, one row a token."""

    logprobs: np.ndarray
    """float32 [continuation]: log p(token | all before it) in nats."""
    greedy: np.ndarray
    """bool [continuation]: whether the token is the most likely one in its place."""
    top_ids: np.ndarray
    """int32 [continuation, K]: the K most likely tokens, best first; K is the scorer's `top`."""
    top_logprobs: np.ndarray
    """float32 [continuation, K]: their log-probabilities in nats."""


class Scorer:
    """Scores requests with an opened model, on any layout. All processes of a mesh must make the same calls;
    they get the same results.

    What requests share at their beginnings, a context or shots, is read once. In float32 on one device a
    request gets the same bits alone or beside others, in any order and for every batch size.
    """

    def __init__(
        self, model: PretrainedModel, *, batch_size: int | None = None, top: int = 0, weights: Any = None
    ):
        """batch_size: texts that are read at once, rounded to what the shapes of calls allow; None: as many
        as fit. top: how many most likely tokens are reported. weights: those of an `Engine` of the model,
        which it then shares; None: a copy of the model's. Raises UserError for impossible sizes."""
        require(batch_size is None or batch_size >= 1, "batch_size", batch_size, "at least 1")
        vocab = model.config.vocab or 0
        require(0 <= top <= vocab, "top", top, f"from 0 to {vocab}")
        self.opened, self.batch_size, self.top = model, batch_size, top
        self.programs = ScorePrograms(model.program, top)
        self.weights: Any = self.programs.weights(model.parameters) if weights is None else weights
        place = self.programs.place
        self.devices = place.size(place.axes("batch"))
        of_device = POSITIONS.get(place.platform(), MOST_POSITIONS) // self.devices
        self.positions = self.devices * power_of_two(of_device)
        self.kept: tuple[tuple[int, int], list[Cache]] = NO_CACHES
        """The rows and positions of the caches of the last call, and these."""
        self.tokens_read = 0
        """Tokens that the model has read since the scorer was made, padding excluded."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        """The scores of each request, in the order of the requests.

        Raises UserError for a request without context or continuation, for ids that the model hasn't, and for
        more tokens than it has positions.
        """
        by_length: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            self.check(request)
            by_length.setdefault(cache_length(request), []).append(number)
        found = [empty(len(request.continuation), self.top) for request in requests]
        for length, numbers in sorted(by_length.items()):
            paths = token_paths(requests, numbers)
            for targets, scores in behind(self.read(paths, length)):
                put(found, targets, scores)
        return found

    def update(self, parameters: Any) -> None:
        """Uses other weights from now on, shaped and placed as the model's parameters."""
        self.weights = self.programs.weights(parameters)

    def free(self) -> None:
        """Gives the memory of weights and caches back; `update` comes before the next call."""
        self.weights, self.kept = None, NO_CACHES

    def check(self, request: ScoreRequest) -> None:
        """Raises UserError for a request that can't be scored."""
        require(len(request.context) >= 1, "context", "()", "at least one token (BOS, where it is empty)")
        require(len(request.continuation) >= 1, "continuation", "()", "at least one token")
        config, ids = self.opened.config, (*request.context, *request.continuation)
        check_text_ids(ids, config.vocab or 0, "tokens", self.opened.path)
        if config.position == "learned" and len(ids) - 1 > config.positions:
            raise UserError(
                f"tokens={len(ids)}: the model reads {config.positions} (model.positions) and predicts one "
                "more. Shorten the context"
            )

    def read(self, paths: list[TokenPath], length: int) -> Iterator[tuple[list[WantedToken], TokenScores]]:
        """Reads all paths, none longer than `length`, and yields at most `HEAD_ROWS` targets with their
        scores at a time."""
        shapes = self.shapes(length)
        lanes = shapes[0].rows
        size, caches = self.kept
        self.kept = NO_CACHES  # a failed call would leave arrays that are used up
        if size != (lanes, length):
            del caches  # before the new ones take memory
            caches = self.programs.empty_caches(lanes, length)
        tokens = sum(len(path.ids) - path.shared for path in paths)
        schedule = Schedule(groups(paths, tokens // lanes), lanes, self.devices, shapes, length)
        for call in schedule:
            if isinstance(call, Copies):
                caches[:] = self.copy(caches, call, lanes // self.devices)
                continue
            x_BTD = self.programs.read(
                self.weights,
                caches,
                call.lanes_B % (lanes // self.devices),
                call.starts_B,
                call.tokens_BT,
            )
            self.tokens_read += call.read
            yield from self.score_targets(x_BTD, call)
        self.kept = (lanes, length), caches

    def score_targets(self, x_BTD: jax.Array, call: Runs) -> Iterator[tuple[list[WantedToken], TokenScores]]:
        """The targets of a call with their scores."""
        for first in range(0, len(call.targets), HEAD_ROWS):
            some = call.targets[first : first + HEAD_ROWS]
            at_N, tokens_N = np.zeros((2, HEAD_ROWS), np.int32)
            at_N[: len(some)] = [at for at, _ in some]
            tokens_N[: len(some)] = [target.token for _, target in some]
            yield [target for _, target in some], self.programs.scores(self.weights, x_BTD, at_N, tokens_N)

    def copy(self, caches: list[Cache], call: Copies, each: int) -> list[Cache]:
        """The caches with rows copied. each: rows of a device."""
        from_DP, to_DP = np.zeros((2, self.devices, each), np.int32)
        count_D = np.zeros(self.devices, np.int32)
        for source, lane in call.pairs:
            device = lane // each
            from_DP[device, count_D[device]], to_DP[device, count_D[device]] = source % each, lane % each
            count_D[device] += 1
        return self.programs.copy_rows(caches, from_DP.reshape(-1), to_DP.reshape(-1), count_D)

    def shapes(self, length: int) -> list[RunShape]:
        """The shapes of calls for a cache of this length: many short runs, fewer, and few long ones. All have
        the same number of positions."""
        longest = min(self.positions // self.devices, length)
        fewest = self.positions // longest
        row = self.programs.cache_bytes(self.devices, length) // self.devices
        most = min(self.positions // SHORTEST_RUN, self.batch_size or CACHE_BYTES // row)
        rows = fewest
        while 2 * rows <= most:
            rows *= 2
        some = max(fewest, rows // FEWER)
        return [RunShape(n, self.positions // n) for n in dict.fromkeys((rows, some, fewest))]


def power_of_two(number: int) -> int:
    """The least power of two that is not less.

    >>> [power_of_two(n) for n in (0, 1, 3, 256)]
    [1, 1, 4, 256]
    """
    return 1 << max(0, number - 1).bit_length()


def cache_length(request: ScoreRequest) -> int:
    """The positions of the cache in which a request is read."""
    return max(SHORTEST_CACHE, power_of_two(len(request.context) + len(request.continuation) - 1))


def empty(length: int, top: int) -> Scored:
    """Scores to be filled in."""
    return Scored(
        np.zeros(length, np.float32),
        np.zeros(length, bool),
        np.zeros((length, top), np.int32),
        np.zeros((length, top), np.float32),
    )


def behind(
    calls: Iterator[tuple[list[WantedToken], TokenScores]],
) -> Iterator[tuple[list[WantedToken], TokenScores]]:
    """The calls with their scores on the host, fetched when `BEHIND` more have been dispatched."""
    dispatched: deque[tuple[list[WantedToken], TokenScores]] = deque()
    for call in calls:
        dispatched.append(call)
        if len(dispatched) > BEHIND:
            targets, scores = dispatched.popleft()
            yield targets, jax.device_get(scores)
    for targets, scores in dispatched:
        yield targets, jax.device_get(scores)


def put(found: list[Scored], targets: list[WantedToken], scores: TokenScores) -> None:
    """Writes the scores of tokens to the requests that they are of."""
    for row, target in enumerate(targets):
        for values, value in zip(found[target.request], scores, strict=True):
            values[target.place] = value[row]
