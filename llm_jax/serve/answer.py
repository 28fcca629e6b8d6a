"""What the answers of both endpoints have in common: ids, usage, reasons, and how they are sent."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from llm_jax.evaluate.scorer import Scored
from llm_jax.generate.request import Reason, Request
from llm_jax.serve.bodies import SamplingFields
from llm_jax.serve.continuations import Part
from llm_jax.serve.errors import ApiError
from llm_jax.serve.models import ServedModel
from llm_jax.serve.responses import EventStream, json_response, until_gone

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from llm_jax.serve.state import ServerState

FINISH: dict[Reason | None, str | None] = {
    "eos": "stop",
    "stop": "stop",
    "max_tokens": "length",
    "positions": "length",
    "cancelled": "stop",
    None: None,
}
"""Why a text ended, in the API's words; None: it continues."""


class Answer(ABC):
    """The answer to one HTTP request: choices of one or more prompts, sent at once or as a stream."""

    kind: str
    """`object` of the JSON."""
    chunk_kind: str
    """`object` of a stream's chunks."""
    prefix: str
    """What its id begins with."""

    def __init__(
        self,
        server: ServerState,
        model: ServedModel,
        body: SamplingFields,
        prompts: Sequence[Sequence[int]],
        requests: Sequence[Request],
    ):
        """prompts: token ids of each. requests: those of all prompts, `body.n` of each in turn."""
        self.server, self.model, self.body, self.prompts = server, model, body, prompts
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.completion_tokens = 0
        self.continuations = server.submit(model, requests)
        late = ApiError(
            504,
            f"The request took longer than the server's timeout={server.timeout:g} seconds.",
            code="timeout",
        )
        self.deadline = asyncio.get_running_loop().call_later(server.timeout, self.fail, late)
        self.scoring: asyncio.Future[list[Scored]] | None = None
        """The scores of the prompts, while they are waited for."""

    @abstractmethod
    async def choices(self) -> list[dict[str, Any]]:
        """All choices, when they have ended."""

    @abstractmethod
    def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream."""

    async def respond(self, http: HttpRequest) -> Response:
        """The response. Raises ClientLeft where the client left before it."""
        if self.body.stream:
            return EventStream(self.all_chunks(), self.close)
        try:
            choices = await until_gone(http.receive, self.choices())
        finally:
            self.close()
        return json_response(self.object(self.kind, choices=choices, usage=self.usage))

    async def all_chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks, and the usage if it was asked for."""
        async for chunk in self.chunks():
            yield chunk
        if self.body.usage_chunk:
            yield self.object(self.chunk_kind, choices=[], usage=self.usage)

    async def parts(self) -> AsyncIterator[Part]:
        """The parts of all choices; their tokens are counted."""
        async for part in self.continuations.parts():
            self.completion_tokens += len(part.events)
            yield part

    def fail(self, error: ApiError) -> None:
        """Ends the answer with an error."""
        self.continuations.fail(error)
        if self.scoring is not None and not self.scoring.done():
            self.scoring.set_exception(error)

    def close(self) -> None:
        """Ends what still runs, and logs the texts if the server is to."""
        self.deadline.cancel()
        if not self.continuations.closed and self.continuations.left:
            self.server.metrics.left.inc()
        self.continuations.close()
        if self.server.log_prompts:
            for request, result in zip(self.continuations.requests, self.continuations.results, strict=True):
                prompt = self.model.tokenizer.decode(request.ids)
                self.server.log(f"{self.id}: {prompt!r} -> {result.text if result else None!r}")

    def object(self, kind: str, **more: Any) -> dict[str, Any]:
        """The JSON of the answer, or of a chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name, **more}

    def chunk(self, index: int, finish: str | None = None, **more: Any) -> dict[str, Any]:
        """A chunk of one choice. (Where the usage is asked for, other chunks have null.)"""
        usage = {"usage": None} if self.body.usage_chunk else {}
        choice = {"index": index, **more, "finish_reason": finish}
        return self.object(self.chunk_kind, choices=[choice], **usage)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens: each prompt is counted once; EOS and stop strings are part of a completion."""
        prompt = sum(map(len, self.prompts))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt + self.completion_tokens,
        }
