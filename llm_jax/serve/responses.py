"""Responses: JSON, errors, and streams of events; and what ends when the client leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm_jax.serve.errors import ApiError, server_failed

Value = TypeVar("Value")

QUIET = 10.0
"""Seconds without an event after which a stream has a comment: clients and tunnels close what is silent."""


class ClientLeft(Exception):
    """The client closed the connection before its response ended."""


to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""JSON in one line. NaN is a bug."""


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with JSON."""
    return Response(to_json(value), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """The response to a request that is refused."""
    return json_response(error.body, error.status, error.headers)


async def until_gone(receive: Receive, work: Coroutine[Any, Any, Value]) -> Value:
    """The result of `work`, which is cancelled when the client leaves. Raises ClientLeft then.

    The request's body must have been read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Waits until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: one for each object, and `data: [DONE]` in the end. An error that comes in the
    middle is an event too."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], close: Callable[[], None]):
        """close: is called when the stream has ended, or the client has left."""
        super().__init__(headers={"X-Accel-Buffering": "no"})  # proxies pass events on at once
        del self.headers["content-length"]
        self.chunks, self.close = chunks, close
        self.sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await until_gone(receive, self.send_events(send))
        except (ClientLeft, OSError):
            pass  # `close` frees what runs
        finally:
            self.close()

    async def send_events(self, send: Send) -> None:
        """Sends all events, and comments while none comes."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        quiet = asyncio.ensure_future(self.send_comments(send))
        try:
            async for chunk in self.chunks:
                await self.send_text(send, f"data: {to_json(chunk)}\n\n")
        except ApiError as error:
            await self.send_text(send, f"data: {to_json(error.body)}\n\n")
        except Exception:  # a bug: the log has it, and the client a word
            await self.send_text(send, f"data: {to_json(server_failed().body)}\n\n")
            raise
        finally:
            quiet.cancel()
        await self.send_text(send, "data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send_text(self, send: Send, text: str) -> None:
        """Sends a part of the body."""
        self.sent = time.monotonic()
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    async def send_comments(self, send: Send) -> None:
        """Sends a comment whenever nothing was sent for a while."""
        self.sent = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, self.sent + QUIET - time.monotonic()))
            if time.monotonic() - self.sent >= QUIET:
                await self.send_text(send, ": waiting\n\n")
