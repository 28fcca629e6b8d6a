"""Scores continuations of contexts: the log-probability of each token, whether it is the most likely one, and
the most likely tokens in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from llm_jax.core.arithmetic import round_up
from llm_jax.core.errors import UserError, require
from llm_jax.layout.layout import MeshPlacement
from llm_jax.model.attention_context import length_multiple
from llm_jax.objective.logprobs import hidden_states, token_logprobs, top_tokens
from llm_jax.objective.protocol import Objective
from llm_jax.pretrained.model import PretrainedModel, check_text_ids
from llm_jax.train.compile import program_options
from llm_jax.train.loader import on_devices

SHORTEST = 32
"""The shortest rows; longer ones are powers of two, so that few programs are compiled."""


class ScoreRequest(NamedTuple):
    """Token ids of a context, with BOS where the convention has it, and of what follows it."""

    context: tuple[int, ...]
    """At least one id."""
    continuation: tuple[int, ...]
    """At least one id; these are scored."""


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
    they get the same results."""

    def __init__(self, model: PretrainedModel, *, batch_size: int = 8, top: int = 0):
        """batch_size: rows that are read at once, rounded up to a multiple of what the layout splits them
        into. top: how many most likely tokens are reported. Raises UserError for impossible sizes."""
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        vocab = model.config.vocab or 0
        require(0 <= top < vocab, "top", top, f"from 0 to {vocab - 1}")
        self.opened, self.top = model, top
        self.place: MeshPlacement = model.place
        self.rows = round_up(batch_size, self.place.size(self.place.axes("batch")))
        self.tokens_read = 0
        """Tokens that the model has read since the scorer was made, padding excluded."""
        self.compiled = jax.jit(self.program, compiler_options=program_options(model.program) or None)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        """The scores of each request, in the order of the requests.

        Raises UserError for a request without context or continuation, for ids that the model hasn't, and for
        more tokens than it has positions.
        """
        for request in requests:
            self.check(request)
        found: dict[int, Scored] = {}
        for length, numbers in self.by_length(requests).items():
            for first in range(0, len(numbers), self.rows):
                some = numbers[first : first + self.rows]
                for number, scored in zip(
                    some, self.score_rows([requests[i] for i in some], length), strict=True
                ):
                    found[number] = scored
        return [found[i] for i in range(len(requests))]

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

    def by_length(self, requests: Sequence[ScoreRequest]) -> dict[int, list[int]]:
        """Length of rows → the numbers of the requests that are read in such rows, longest first."""
        found: dict[int, list[int]] = {}
        config = self.opened.config
        for number, (context, continuation) in enumerate(requests):
            read = len(context) + len(continuation) - 1
            length = round_up(max(SHORTEST, 1 << (read - 1).bit_length()), length_multiple(self.place))
            if config.position == "learned":
                length = min(length, config.positions)
            found.setdefault(length, []).append(number)
        return dict(sorted(found.items(), reverse=True))

    def score_rows(self, requests: Sequence[ScoreRequest], length: int) -> list[Scored]:
        """The scores of at most `rows` requests, a row each."""
        shape = (self.rows, length)
        tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
        for row, (context, continuation) in enumerate(requests):
            ids = (*context, *continuation)
            tokens[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
            segments[row, : len(ids) - 1] = 1
            self.tokens_read += len(ids) - 1
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
        batch = {
            "tokens": tokens,
            "targets": targets,
            "weights": segments.astype(np.float32),
            "segments": segments,
            "positions": positions,
        }
        with jax.set_mesh(self.place.mesh):
            arrays = self.compiled(self.opened.parameters, on_devices(batch, Objective(), self.place))
        logprobs, ids_BTK, top = jax.device_get(arrays)
        results = []
        for row, (context, continuation) in enumerate(requests):
            at = slice(len(context) - 1, len(context) + len(continuation) - 1)
            results.append(
                Scored(
                    logprobs[row, at],
                    ids_BTK[row, at, 0] == np.asarray(continuation),
                    ids_BTK[row, at, : self.top],
                    top[row, at, : self.top],
                )
            )
        return results

    def program(self, parameters: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        """(log-probabilities [B, T], the most likely tokens [B, T, K] and theirs), to be traced."""
        model = self.opened.program.model(parameters)
        hidden = hidden_states(model, batch)
        best = top_tokens(model, hidden, max(1, self.top))
        found = (token_logprobs(model, hidden, batch["targets"]), best.ids_BTK, best.logp_BTJ[..., :-1])
        return jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P(*(None,) * x.ndim)), found)
