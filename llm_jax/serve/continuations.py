"""The continuations of one request, as asyncio's thread sees them: parts that come, and how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from llm_jax.generate.request import Event, Request, Result
from llm_jax.serve.models import ServedModel


class Part(NamedTuple):
    """Tokens of one continuation that come together."""

    number: int
    """Of the prompt that is continued."""
    events: tuple[Event, ...]
    """At least one."""
    result: Result | None
    """Everything that the continuation is, where this is its last part."""

    @property
    def text(self) -> str:
        """The text of the tokens."""
        return "".join(event.text for event in self.events)


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
        self.arrived: asyncio.Queue[Part | Exception] = asyncio.Queue()

    async def parts(self) -> AsyncIterator[Part]:
        """The parts of all texts, in the order in which they come, until all have ended.

        Raises the error that ended them early.
        """
        ended = 0
        while ended < len(self.requests):
            item = await self.arrived.get()
            if isinstance(item, Exception):
                raise item
            yield item
            ended += item.result is not None

    def receive(self, part: Part) -> None:
        """Takes a part of a text."""
        if self.closed:
            return
        self.arrived.put_nowait(part)
        if part.result is not None:
            self.results[part.number] = part.result
            self.left -= 1

    def fail(self, error: Exception) -> None:
        """Ends all of them with an error, which `parts` raises."""
        if not self.closed:
            self.arrived.put_nowait(error)
            self.close()

    def close(self) -> None:
        """Cancels what still waits or runs. Does nothing the second time."""
        if not self.closed:
            self.closed = True
            self.on_close(self)
