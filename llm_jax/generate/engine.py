"""An engine that continues many prompts at once: requests join and leave between steps (continuous batching;
Orca, Yu et al. 2022).

    engine = Engine.of(open_model("runs/quickstart/default"), slots=8, max_tokens=512)
    number = engine.submit(Request("def main(", max_tokens=100, temperature=0.8))
    while engine.busy:
        for event in engine.step():
            print(event.text, end="")
    engine.results[number].text

Shapes are fixed, so a request gives the same tokens and log-probabilities alone or beside others (in float32,
with equal `slots` and `max_tokens`), whatever joins and leaves.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jax
import numpy as np

from llm_jax.core.errors import UserError, require
from llm_jax.core.log import no_log
from llm_jax.generate.decode_step import DecodePrograms
from llm_jax.generate.detokenizer import Detokenizer, StopStrings
from llm_jax.generate.id_tokenizer import GenerationTokenizer, tokenizer_or_ids
from llm_jax.generate.request import Event, Reason, Request, Result
from llm_jax.generate.sampling import Settings
from llm_jax.pretrained.model import OUTPUTS_NAN, PretrainedModel, check_text_ids
from llm_jax.train.state import TrainModel


@dataclasses.dataclass
class ActiveRequest:
    """A request that waits for a slot or runs in one."""

    id: int
    result: Result
    ids: list[int]
    """Token ids of the prompt."""
    detokenizer: Detokenizer
    stops: StopStrings
    max_new_tokens: int
    """Tokens that its continuation can have: as many as were requested, or as the model has positions for."""
    stop_ids: frozenset[int]
    """Control tokens that end it: those that a stop string names."""
    submitted: float
    """`Engine.clock` when it was submitted."""
    slot: int = -1
    """The slot that it runs in; -1 while it waits."""


class Engine:
    """Continues prompts, many at once. All processes of a mesh must make the same calls; they get the same
    results."""

    def __init__(
        self,
        model: TrainModel,
        parameters: Any,
        tokenizer: GenerationTokenizer,
        name: str,
        *,
        slots: int = 8,
        max_tokens: int = 512,
        prefill_rows: int = 1,
        log: Callable[[str], None] = no_log,
    ):
        """A train loop has the first four arguments; `Engine.of` takes them from an opened model.

        name: of the model, for errors. slots: requests that run at once; others wait. max_tokens: maximum of
        prompt and continuation together. prefill_rows: prompts (of one bucket of lengths) that are read at
        once. slots and prefill_rows are rounded up to a multiple of what the layout splits the batch into.
        log: called with a line for each compilation. Raises UserError for impossible sizes.
        """
        require(slots >= 1, "slots", slots, "at least 1")
        require(
            max_tokens >= 2,
            "max_tokens",
            max_tokens,
            "at least 2, a token of the prompt and one of the continuation",
        )
        config = model.config
        self.name, self.tokenizer = name, tokenizer
        self.max_tokens = min(max_tokens, config.positions) if config.position == "learned" else max_tokens
        self.ends_at_positions = self.max_tokens < max_tokens
        self.programs = DecodePrograms(model, slots, self.max_tokens, prefill_rows, tokenizer.vocab_size, log)
        self.update(parameters)
        try:
            self.state = jax.block_until_ready(self.programs.initial_state())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"max_tokens={max_tokens}: with slots={slots} the cache doesn't fit into memory "
                f"({error}). Lower one of the two"
            ) from error
        self.waiting: deque[ActiveRequest] = deque()
        self.slots: list[ActiveRequest | None] = [None] * self.programs.slots
        self.settings = self.programs.replicate(row_settings(self.slots))
        self.results: dict[int, Result] = {}
        """Results of all requests by their ids. Callers take out (`pop`) what they no longer need."""
        self.next_id = 0

    @classmethod
    def of(
        cls,
        opened: PretrainedModel,
        slots: int = 8,
        max_tokens: int = 512,
        prefill_rows: int = 1,
        log: Callable[[str], None] = no_log,
    ) -> Engine:
        """An engine for an opened model; without a tokenizer, prompts and texts are token ids
        (`IdTokenizer`)."""
        sizes: dict[str, Any] = {"slots": slots, "max_tokens": max_tokens, "prefill_rows": prefill_rows}
        return cls(
            opened.program, opened.parameters, tokenizer_or_ids(opened), str(opened.path), **sizes, log=log
        )

    def update(self, parameters: Any) -> None:
        """Uses other weights from now on, such as those after a training step; shaped and placed as the
        model's parameters.

        Requests that run now keep the cached keys and values that the old weights computed for earlier
        positions.
        """
        self.weights = self.programs.weights(parameters)

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id. Raises UserError for one that the engine can't run."""
        ids, max_new_tokens = self.check_request(request)
        active = ActiveRequest(
            self.next_id,
            Result(request, len(ids)),
            ids,
            Detokenizer(self.tokenizer.decode, ids),
            StopStrings(request.stop),
            max_new_tokens,
            frozenset(
                self.tokenizer.control_tokens[name]
                for name in request.stop
                if name in self.tokenizer.control_tokens
            ),
            self.clock(),
        )
        self.next_id += 1
        self.results[active.id] = active.result
        self.waiting.append(active)
        return active.id

    def check_request(self, request: Request) -> tuple[list[int], int]:
        """(token ids of the prompt, maximum tokens of the continuation). Raises UserError for a request that
        the engine can't run."""
        request.check()
        ids = request.prompt_ids(self.tokenizer)
        rows = self.programs.vocab_rows
        for token in request.ids:
            require(0 <= token < rows, "ids", token, f"from 0 to {rows - 1}")
        check_text_ids(ids, rows, f"prompt={str(request.prompt)[:40]!r}", self.name)
        if len(ids) >= self.max_tokens:
            limit = (
                f"model.positions={self.max_tokens}"
                if self.ends_at_positions
                else f"max_tokens={self.max_tokens} of the engine"
            )
            raise UserError(
                f"prompt={str(request.prompt)[:40]!r}: has {len(ids)} tokens, and {limit} leaves no room "
                "for more. Shorten it"
            )
        max_new_tokens = min(request.max_tokens, self.max_tokens - len(ids))
        if max_new_tokens < request.max_tokens and not self.ends_at_positions:
            left = f"max_tokens={self.max_tokens} of the engine has room for {max_new_tokens}"
            raise UserError(
                f"max_tokens={request.max_tokens}: after {len(ids)} tokens of the prompt, {left}. Lower "
                "it, or give the engine more"
            )
        return ids, max_new_tokens

    def cancel(self, id: int) -> None:
        """Ends a request now. Does nothing if it has ended."""
        for active in [*self.waiting, *filter(None, self.slots)]:
            if active.id == id:
                self.finish(active, "cancelled")

    def clock(self) -> float:
        """Seconds of `time.perf_counter`, less those spent on compilation."""
        return time.perf_counter() - self.programs.compile_seconds

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Compiles and runs the programs of all lengths, so that no request waits for a compilation. Yields
        (number, of how many) before each. Must be consumed while no request runs.

        Raises UserError where the model outputs NaN.
        """
        programs, free = self.programs, row_settings([None] * self.programs.prefill_rows)
        prompts, steps = programs.prefill_buckets(), programs.step_buckets()
        for number in range(len(prompts) + len(steps)):
            yield number, len(prompts) + len(steps)
            if number < len(prompts):  # slot -1: no slot changes
                self.state, out = programs.prefill(
                    self.weights, self.state, [[0] * prompts[number]], [-1], free
                )
            else:
                length = steps[number - len(prompts)]
                self.state, out = programs.step(self.weights, self.state, self.settings, length)
            if number in (0, len(prompts)):  # a prefill's rows, and a step's
                logprobs = jax.device_get(programs.top_logprobs(out[2])[0])
                if np.isnan(logprobs[0]).any():
                    raise UserError(f"{self.name}: {OUTPUTS_NAN}")

    @property
    def busy(self) -> bool:
        """True if any request waits or runs."""
        return bool(self.waiting) or any(self.slots)

    def step(self) -> list[Event]:
        """Runs one program: prefill for requests that wait for a free slot, else one more token for each that
        runs.

        Prefill comes first, so that a text begins as soon as it can.
        """
        if self.waiting and None in self.slots:
            return self.prefill_waiting()
        running = [r for r in self.slots if r]
        if not running:
            return []
        length = max(len(r.ids) + len(r.result.tokens) for r in running)
        self.state, out = self.programs.step(self.weights, self.state, self.settings, length)
        return self.deliver(running, [r.slot for r in running], *out)

    def generate(self, requests: Iterable[Request]) -> list[Result]:
        """Runs requests to their ends and returns their results, in order. Raises UserError before the first
        runs if any can't."""
        requests = list(requests)
        for request in requests:
            self.check_request(request)
        ids = [self.submit(request) for request in requests]
        while any(self.results[i].finished is None for i in ids):
            self.step()
        return [self.results.pop(i) for i in ids]

    def prefill_waiting(self) -> list[Event]:
        """Reads waiting prompts into free slots; prompts read at once share a bucket of lengths, so that no
        result depends on the others."""
        bucket = self.programs.bucket(len(self.waiting[0].ids))
        free = [i for i, active in enumerate(self.slots) if active is None]
        group = [r for r in self.waiting if self.programs.bucket(len(r.ids)) == bucket][
            : min(len(free), self.programs.prefill_rows)
        ]
        for active, slot in zip(group, free, strict=False):
            self.waiting.remove(active)
            active.slot, self.slots[slot] = slot, active
        self.settings = self.programs.replicate(row_settings(self.slots))
        rows = row_settings([*group, *[None] * (self.programs.prefill_rows - len(group))])
        self.state, out = self.programs.prefill(
            self.weights, self.state, [r.ids for r in group], [r.slot for r in group], rows
        )
        events = self.deliver(group, list(range(len(group))), *out)
        for active in group:
            active.result.seconds_to_first = self.clock() - active.submitted
        return events

    def deliver(
        self,
        running: list[ActiveRequest],
        rows: list[int],
        token_B: jax.Array,
        logprob_B: jax.Array,
        logits_BV: jax.Array,
    ) -> list[Event]:
        """Appends the drawn tokens to their requests. rows: the row of the arrays that belongs to each
        request."""
        wanted = max(r.result.request.logprobs for r in running)
        fetched = jax.device_get(
            (token_B, logprob_B, *(self.programs.top_logprobs(logits_BV) if wanted else ()))
        )
        tokens, logprobs, *top = (a.tolist() for a in fetched)
        events = []
        for r, row in zip(running, rows, strict=True):
            n = r.result.request.logprobs
            most_likely = tuple(zip(top[1][row][:n], top[0][row][:n], strict=True)) if n else ()
            events.append(self.append_token(r, tokens[row], logprobs[row], most_likely))
        return events

    def append_token(
        self, active: ActiveRequest, token: int, logprob: float, top: tuple[tuple[int, float], ...]
    ) -> Event:
        """Adds a token to a request's result, and finishes the request if it is the last."""
        result = active.result
        reason: Reason | None = None
        result.tokens.append(token)
        result.logprobs.append(logprob)
        if result.request.logprobs:
            result.top.append(top)
        text = ""
        if token in self.tokenizer.eos_ids:
            reason = "eos"
        elif token in active.stop_ids:
            reason = "stop"
        else:
            text = active.stops.push(active.detokenizer.push(token))
        if active.stops.found is not None:
            reason = "stop"
        elif reason is None and len(result.tokens) >= active.max_new_tokens:
            reason = "max_tokens" if active.max_new_tokens == result.request.max_tokens else "positions"
        if reason is not None:
            text += self.finish(active, reason)
        result.text += text
        return Event(active.id, token, text, logprob, top, result.finished)

    def finish(self, active: ActiveRequest, reason: Reason) -> str:
        """Ends a request, frees its slot, and returns the text that was still held back."""
        active.result.finished = reason
        if active.slot >= 0:
            self.slots[active.slot] = None
        else:
            self.waiting.remove(active)
        rest = active.stops.push(active.detokenizer.flush()) + active.stops.flush()
        if active.stops.found is not None and reason != "cancelled":
            active.result.finished = "stop"
        return rest


def row_settings(rows: Iterable[ActiveRequest | None]) -> Settings:
    """Sampling settings of each row, numpy arrays [B]. Rows without a request are greedy, which costs
    least."""
    requests = [active.result.request if active else Request(temperature=0) for active in rows]

    def column(name: str, dtype: type) -> jax.Array:  # numpy's, until `DecodePrograms.replicate`
        return cast(jax.Array, np.array([getattr(request, name) for request in requests], dtype))

    return Settings(
        column("temperature", np.float32), column("top_k", np.int32), column("top_p", np.float32),
        column("min_p", np.float32), column("repetition_penalty", np.float32), column("seed", np.uint32),
    )  # fmt: skip
