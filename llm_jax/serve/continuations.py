"""The continuations of one request, as asyncio's thread sees them: events that come, and how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from llm_jax.generate.request import Event, Request, Result
from llm_jax.serve.models import ServedModel


class Continuations:
    """Prompts of one HTTP request that are continued, each on its own. Made by `EngineThread.submit`.

    All of it belongs to asyncio's thread. Every user must `close` it in the end, however that comes: it frees
    the slots of what still runs.
    """

    def __init__(
        self, model: ServedModel, requests: Sequence[Request], on_close: Callable[[Continuations], None]
    ):
        """on_close: is called once, by `close`."""
        self.model, self.requests, self.on_close = model, tuple(requests), on_close
        self.results: list[Result | None] = [None] * len(requests)
        """What each has produced; None while it waits or runs."""
        self.left = len(requests)
        """How many wait or run."""
        self.submitted = time.perf_counter()
        self.closed = False
        self.arrived: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(number of the prompt, its next token), in the order in which they come, until all have ended.

        Raises the error that ended them early.
        """
        ended = 0
        while ended < len(self.requests):
            item = await self.arrived.get()
            if isinstance(item, Exception):
                raise item
            yield item
            ended += item[1].finished is not None

    def receive(self, number: int, event: Event, result: Result | None) -> None:
        """Takes an event. result: everything of a prompt's continuation, where this is its last event."""
        if self.closed:
            return
        self.arrived.put_nowait((number, event))
        if result is not None:
            self.results[number] = result
            self.left -= 1

    def fail(self, error: Exception) -> None:
        """Ends all of them with an error, which `events` raises."""
        if not self.closed:
            self.arrived.put_nowait(error)
            self.close()

    def close(self) -> None:
        """Cancels what still waits or runs. Does nothing the second time."""
        if not self.closed:
            self.closed = True
            self.on_close(self)
