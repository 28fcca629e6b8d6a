"""An engine that continues many prompts at once: requests join and leave between steps (continuous batching; Orca, Yu et al. 2022).

    engine = Engine(opened, slots=8, max_tokens=512)
    number = engine.submit(Request("def main(", max_tokens=100, temperature=0.8))
    while engine.busy:
        for event in engine.step():
            print(event.text, end="")
    engine.results[number].text

Shapes are fixed, so a request gives the same tokens and log-probabilities alone or beside others (in float32, with the same `slots` and
`max_tokens`), whatever joins and leaves.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from llm_jax.core.arithmetic import round_up
from llm_jax.core.errors import UserError, require
from llm_jax.generate.decode_layout import decoding_place
from llm_jax.generate.decode_step import DecodePrograms
from llm_jax.generate.detokenizer import Detokenizer, StopStrings
from llm_jax.generate.id_tokenizer import tokenizer_or_ids
from llm_jax.generate.request import Event, Reason, Request, Result
from llm_jax.generate.sampling import Settings

if TYPE_CHECKING:
    from llm_jax.pretrained.model import PretrainedModel


def silent(line: str) -> None:
    """Says nothing."""


@dataclasses.dataclass
class ActiveRequest:
    """A request that was submitted."""

    id: int
    result: Result
    ids: list[int]
    """Of the prompt."""
    detokenizer: Detokenizer
    stops: StopStrings
    most: int
    """Tokens that its continuation can have: as many as asked for, or as the model has positions for."""
    submitted: float
    """By `Engine.clock`."""
    slot: int = -1


class Engine:
    """Continues prompts, many at once. All processes of a mesh make the same calls, and get the same results."""

    def __init__(self, opened: PretrainedModel, slots: int = 8, max_tokens: int = 512, prefill_rows: int = 1, log: Callable[[str], None] = silent):
        """slots: requests that run at once; others wait. max_tokens: of prompt and continuation together, at most. prefill_rows: prompts (of one
        bucket of lengths) that are read at once. Both counts are raised to what the layout's split of the batch divides.

        `log` is called with what is compiled, and when. Raises UserError for sizes that can't be.
        """
        require(slots >= 1, "slots", slots, "at least 1")
        require(max_tokens >= 2, "max_tokens", max_tokens, "at least 2, a token of the prompt and one of the continuation")
        config, tokenizer = opened.program.config, tokenizer_or_ids(opened)
        self.path, self.tokenizer, self.log = opened.path, tokenizer, log
        self.max_tokens = min(max_tokens, config.positions) if config.position == "learned" else max_tokens
        self.ends_at_positions = self.max_tokens < max_tokens
        place = decoding_place(opened.program.place, config)
        parts = place.size(place.axes("batch"))
        slots, prompts = (round_up(n, parts) for n in (slots, prefill_rows))
        self.programs = DecodePrograms(opened.program, slots, self.max_tokens, prompts, tokenizer.vocab_size, log)
        self.update(opened.parameters)
        try:
            self.state = jax.block_until_ready(self.programs.empty())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"max_tokens={max_tokens}: with slots={slots} the cache of so many positions doesn't fit into memory ({error})"
            ) from error
        self.waiting: deque[ActiveRequest] = deque()
        self.slots: list[ActiveRequest | None] = [None] * slots
        self.settings = self.programs.put(settings([None] * slots))
        self.results: dict[int, Result] = {}
        """Of all requests by their ids; take out (`pop`) what is no longer wanted."""
        self.submitted = 0

    def update(self, parameters: Any) -> None:
        """Other weights from now on, shaped and placed as the model's parameters: what a training step has changed, say.

        For the requests that run now, what the old weights made of earlier positions stays in the caches.
        """
        self.weights = self.programs.weights(parameters)

    def submit(self, request: Request) -> int:
        """Takes a request, which begins at the next step; gives its id. Raises UserError for one that can't be run."""
        ids, most = self.checked(request)
        running = ActiveRequest(
            self.submitted,
            Result(request, len(ids)),
            ids,
            Detokenizer(self.tokenizer.decode, ids),
            StopStrings(request.stop),
            most,
            self.clock(),
        )
        self.submitted += 1
        self.results[running.id] = running.result
        self.waiting.append(running)
        return running.id

    def checked(self, request: Request) -> tuple[list[int], int]:
        """(the ids of a request's prompt, how many tokens its continuation can have). Raises UserError for one that can't be run."""
        request.check()
        ids = request.prompt_ids(self.tokenizer)
        for token in ids:
            require(0 <= token < self.programs.rows, "ids", token, f"from 0 to {self.programs.rows - 1}")
        if len(ids) >= self.max_tokens:
            limit = f"model.positions={self.max_tokens}" if self.ends_at_positions else f"max_tokens={self.max_tokens} of the engine"
            raise UserError(f"prompt={str(request.prompt)[:40]!r}: has {len(ids)} tokens, and {limit} leaves no room for more")
        most = min(request.max_tokens, self.max_tokens - len(ids))
        if most < request.max_tokens and not self.ends_at_positions:
            left = f"max_tokens={self.max_tokens} of the engine has room for {most}"
            raise UserError(f"max_tokens={request.max_tokens}: after {len(ids)} tokens of the prompt, {left}")
        return ids, most

    def cancel(self, id: int) -> None:
        """Ends a request before its time; nothing if it has ended."""
        for running in [*self.waiting, *filter(None, self.slots)]:
            if running.id == id:
                self.end(running, "cancelled")

    def clock(self) -> float:
        """Seconds, without those in which programs were compiled."""
        return time.perf_counter() - self.programs.compile_seconds

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting) or any(self.slots)

    def step(self) -> list[Event]:
        """Runs one program: waiting requests get a slot and their first token, as many as are read at once, or all that run get one token more.

        So a text begins as soon as it can.
        """
        if self.waiting and None in self.slots:
            return self.join()
        running = [r for r in self.slots if r]
        if not running:
            return []
        length = max(len(r.ids) + len(r.result.tokens) for r in running)
        self.state, out = self.programs.step(self.weights, self.state, self.settings, length)
        return self.take(running, [r.slot for r in running], *out)

    def generate(self, requests: Iterable[Request]) -> list[Result]:
        """The results of some requests, in their order. Raises UserError, and begins with none, where one of them can't be run."""
        requests = list(requests)
        for request in requests:
            self.checked(request)
        ids = [self.submit(request) for request in requests]
        while any(self.results[i].finished is None for i in ids):
            self.step()
        return [self.results.pop(i) for i in ids]

    def join(self) -> list[Event]:
        """Prefills waiting requests into free slots; those read at once are of one bucket, so that none depends on the others."""
        bucket = self.programs.bucket(len(self.waiting[0].ids))
        free = [i for i, running in enumerate(self.slots) if running is None]
        group = [r for r in self.waiting if self.programs.bucket(len(r.ids)) == bucket][: min(len(free), self.programs.prompts)]
        for running, slot in zip(group, free, strict=False):
            self.waiting.remove(running)
            running.slot, self.slots[slot] = slot, running
        self.settings = self.programs.put(settings(self.slots))
        rows = [*group, *[None] * (self.programs.prompts - len(group))]
        self.state, out = self.programs.prefill(self.weights, self.state, [r.ids for r in group], [r.slot for r in group], settings(rows))
        events = self.take(group, list(range(len(group))), *out)
        for running in group:
            running.result.seconds_to_first = self.clock() - running.submitted
        return events

    def take(self, running: list[ActiveRequest], rows: list[int], token_B: jax.Array, logprob_B: jax.Array, logits_BV: jax.Array) -> list[Event]:
        """What a program drew, given to the requests that its rows are of."""
        asked = max(r.result.request.logprobs for r in running)
        found = jax.device_get((token_B, logprob_B, *(self.programs.most_likely(logits_BV) if asked else ())))
        tokens, logprobs, *top = (a.tolist() for a in found)
        events = []
        for r, row in zip(running, rows, strict=True):
            n = r.result.request.logprobs
            most_likely = tuple(zip(top[1][row][:n], top[0][row][:n], strict=True)) if n else ()
            events.append(self.one(r, tokens[row], logprobs[row], most_likely))
        return events

    def one(self, running: ActiveRequest, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> Event:
        """One request's new token: its text, and whether it is the last."""
        result = running.result
        reason: Reason | None = None
        result.tokens.append(token)
        result.logprobs.append(logprob)
        if result.request.logprobs:
            result.top.append(top)
        text = ""
        if token in self.tokenizer.eos_ids:
            reason = "eos"
        else:
            text = running.stops.push(running.detokenizer.push(token))
        if running.stops.found is not None:
            reason = "stop"
        elif reason is None and len(result.tokens) >= running.most:
            reason = "max_tokens" if running.most == result.request.max_tokens else "positions"
        if reason is not None:
            text += self.end(running, reason)
        result.text += text
        return Event(running.id, token, text, logprob, top, result.finished)

    def end(self, running: ActiveRequest, reason: Reason) -> str:
        """Ends a request and frees its slot; gives the rest of its text."""
        running.result.finished = reason
        if running.slot >= 0:
            self.slots[running.slot] = None
        else:
            self.waiting.remove(running)
        rest = running.stops.push(running.detokenizer.flush()) + running.stops.flush()
        if running.stops.found is not None and reason != "cancelled":
            running.result.finished = "stop"
        return rest


def settings(slots: Iterable[ActiveRequest | None]) -> Settings:
    """How each row is drawn; rows without a request are greedy, which costs least."""
    requests = [running.result.request if running else Request(temperature=0) for running in slots]

    def of(name: str, dtype: type) -> jax.Array:  # of numpy's, until they are put on the devices
        return cast(jax.Array, np.array([getattr(request, name) for request in requests], dtype))

    return Settings(
        of("temperature", np.float32), of("top_k", np.int32), of("top_p", np.float32), of("min_p", np.float32),
        of("repetition_penalty", np.float32), of("seed", np.uint32),
    )  # fmt: skip
