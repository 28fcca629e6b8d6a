"""What the endpoints of a server share: the engine thread, its limits, and whether it takes requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from llm_jax.core.errors import nearest
from llm_jax.core.log import no_log
from llm_jax.generate.request import Request
from llm_jax.serve.continuations import Continuations
from llm_jax.serve.engine_thread import EngineThread
from llm_jax.serve.errors import ApiError, draining, engine_failed, starting
from llm_jax.serve.fields import Body, parse_body, read_fields
from llm_jax.serve.metrics import Metrics
from llm_jax.serve.models import ServedModel
from llm_jax.serve.responses import ClientLeft

MOST_BYTES = 4 * 2**20
"""Bytes of a body."""
LARGE = 2**16
"""Bytes of a body from which on a thread of its own parses it."""
MOST_READ = 8 * MOST_BYTES
"""Bytes that are read of one that is longer: clients read the error only when they have sent it all."""
BODY_SECONDS = 30.0
"""Seconds in which a body must arrive."""
QUEUE = 4
"""Continuations that wait for each slot, without queue=."""


@dataclass
class ServerState:
    """One server. Belongs to asyncio's thread."""

    thread: EngineThread
    metrics: Metrics
    queue: int | None = None
    """Continuations that may wait beside those that run; None: `QUEUE` times the slots."""
    timeout: float = 600.0
    """Seconds that a request may take."""
    log_prompts: bool = False
    log: Callable[[str], None] = no_log
    is_draining: bool = False
    in_flight: int = 0
    """Requests whose response isn't complete, those of /health, /ready and /metrics aside."""

    def begin(self, counts: bool) -> None:
        """A request has come. counts: whether the server waits for it when it drains."""
        self.in_flight += counts

    def end(self, counts: bool) -> None:
        """Its response is complete."""
        self.in_flight -= counts

    def check_open(self) -> None:
        """Raises ApiError while no requests are taken: 503, or 500 where the engine failed."""
        if self.thread.fault is not None:
            raise engine_failed()
        if self.is_draining:
            raise draining()
        if not self.thread.is_ready:
            raise starting(self.thread.status)

    def model(self, name: str | None) -> ServedModel:
        """The model that a request names; the first one for None. Raises ApiError (404) if there is none."""
        models = self.thread.models
        if name is None:
            return next(iter(models.values()))
        if name not in models:
            raise ApiError(
                404, f"model={name[:80]}: there is no such model; {nearest(name[:80], models)}",
                param="model", code="model_not_found",
            )  # fmt: skip
        return models[name]

    def room(self, model: ServedModel) -> int:
        """Continuations of a model that the server takes at once: those that run and wait."""
        return model.slots + (QUEUE * model.slots if self.queue is None else self.queue)

    def check_size(self, model: ServedModel, count: int) -> None:
        """Raises ApiError (400) for a request of more continuations than the server ever takes."""
        if count > self.room(model):
            raise ApiError(
                400, f"prompt: {count} continuations (prompts x n) are more than the {self.room(model)} that "
                "the server takes. Send fewer at once.", param="prompt",
            )  # fmt: skip

    def submit(self, model: ServedModel, requests: Sequence[Request]) -> Continuations:
        """Queues requests. Raises ApiError: 429 where the queue is full, 503 where the server has begun to
        drain."""
        self.check_open()
        busy, most = self.thread.waiting(model), self.room(model)
        busy = max(busy, len(self.thread.scores))  # prompts that are only scored have no continuation
        if busy + max(1, len(requests)) > most:
            seconds = max(1, math.ceil(self.thread.seconds_each * busy / model.slots))
            raise ApiError(
                429, f"The server is busy: {busy} continuations run or wait, of at most {most}. Try again "
                f"in {seconds} s.", code="queue_full", headers={"Retry-After": str(min(seconds, 60))},
            )  # fmt: skip
        return self.thread.submit(model, requests)

    async def read(self, http: HttpRequest, kind: type[Body]) -> Body:
        """The body of a request. Raises ApiError for one that is wrong, too long, or doesn't arrive."""
        content = await self.read_body(http)
        if len(content) > LARGE:  # others don't wait for it
            return await asyncio.to_thread(lambda: read_fields(parse_body(content), kind))
        return read_fields(parse_body(content), kind)

    async def read_body(self, http: HttpRequest) -> bytes:
        """The body of a request as it comes. Raises ApiError: 413 for one that is too long, 408 for one that
        doesn't arrive."""
        too_long = ApiError(
            413, f"The body has more than {MOST_BYTES:,} bytes.", code="body_too_large",
            headers={"Connection": "close"},
        )  # fmt: skip
        length = http.headers.get("content-length", "")
        if length.isdecimal() and int(length) > MOST_READ:
            raise too_long
        content, size = bytearray(), 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in http.stream():
                    size += len(part)
                    if size <= MOST_BYTES:
                        content += part
                    elif size > MOST_READ:
                        raise too_long
        except TimeoutError:
            raise ApiError(
                408, f"The body did not arrive within {BODY_SECONDS:g} seconds.", code="timeout",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        except ClientDisconnect:
            raise ClientLeft from None
        if size > MOST_BYTES:
            raise too_long
        return bytes(content)


def state_of(http: HttpRequest) -> ServerState:
    """The server that a request came to."""
    return http.app.state.server
