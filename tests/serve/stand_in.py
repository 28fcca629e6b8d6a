"""A model that needs no compilation, for tests of a server's life: every token is "a", and a test lets steps
pass."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from llm_jax.generate.request import Event, Request, Result
from llm_jax.serve.models import ServedModel
from llm_jax.serve.token_strings import TokenStrings


class StandInTokenizer:
    """A token for each character."""

    vocab_size, bos_id, eos_ids, control_tokens = 256, 1, (2,), {}

    def encode(self, text: str) -> list[int]:
        """A token for each character."""
        return [ord(c) % 256 for c in text]

    def decode(self, ids: Any) -> str:
        """Their characters."""
        return "".join(map(chr, ids))


class StandInEngine:
    """Does what `EngineThread` asks of an engine."""

    def __init__(self, slots: int = 2):
        self.tokenizer, self.max_tokens = StandInTokenizer(), 100
        self.programs = SimpleNamespace(vocab_rows=256, compile_seconds=0.0)
        self.slots: list[int | None] = [None] * slots
        self.waiting: deque[int] = deque()
        self.results: dict[int, Result] = {}
        self.count = self.steps = 0
        self.warm = threading.Event()
        """Set: warming up may end."""
        self.warm.set()
        self.permits: threading.Semaphore | None = None
        """Not None: every step takes one."""
        self.error: Exception | None = None
        """What the next step raises."""
        self.logprob = -1.0

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Waits for `warm`."""
        yield 0, 1
        self.warm.wait(30)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.waiting) or any(slot is not None for slot in self.slots)

    def submit(self, request: Request) -> int:
        """Queues a request."""
        self.count += 1
        self.results[self.count] = Result(request, len(request.ids))
        self.waiting.append(self.count)
        return self.count

    def cancel(self, id: int) -> None:
        """Frees what a request has."""
        self.results[id].finished = self.results[id].finished or "cancelled"
        self.slots = [None if slot == id else slot for slot in self.slots]
        self.waiting = deque(one for one in self.waiting if one != id)

    def step(self) -> list[Event]:
        """A token for every request that has a slot."""
        for i, slot in enumerate(self.slots):
            if slot is None and self.waiting:
                self.slots[i] = self.waiting.popleft()
        if self.permits is not None:
            self.permits.acquire(timeout=30)
        self.steps += 1
        if self.error is not None:
            raise self.error
        events = []
        for i, id in enumerate(self.slots):
            if id is not None:
                result = self.results[id]
                result.tokens.append(97)
                result.text += "a"
                if len(result.tokens) == result.request.max_tokens:
                    result.finished, self.slots[i] = "max_tokens", None
                events.append(Event(id, 97, "a", self.logprob, (), result.finished))
        return events


def stand_in(engine: StandInEngine) -> dict[str, ServedModel]:
    """A model with this engine, called "a"."""
    opened: Any = SimpleNamespace(tokenizer_if_any=None, step=0, missing_tokenizer="has no tokenizer")
    of_engine: Any = engine
    return {"a": ServedModel("a", opened, of_engine, TokenStrings(None), None, "no template")}
