"""The paths of the server, and what every request passes: the guard, the counters, the form of errors."""

from __future__ import annotations

import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_jax.core.errors import UserError, nearest
from llm_jax.serve.chat_completions import chat_completions
from llm_jax.serve.completions import completions
from llm_jax.serve.errors import ApiError, of_user_error, server_failed
from llm_jax.serve.models import ServedModel
from llm_jax.serve.responses import ClientLeft, error_response, json_response
from llm_jax.serve.security import SAFE_HEADERS, Guard
from llm_jax.serve.state import ServerState, state_of
from llm_jax.serve.tokens import detokenize, tokenize, tokenizer_info

ALWAYS = ("/health", "/ready", "/metrics")
"""Paths that are there while the server starts and drains."""


async def health(http: HttpRequest) -> Response:
    """GET /health: the process lives."""
    return json_response({"status": "ok"})


async def ready(http: HttpRequest) -> Response:
    """GET /ready: requests are taken. Status 503 while the server compiles, and while it drains."""
    server = state_of(http)
    try:
        server.check_open()
    except ApiError as error:
        return json_response({"status": error.code, "detail": error.message}, error.status, error.headers)
    return json_response({"status": "ready"})


async def metrics(http: HttpRequest) -> Response:
    """GET /metrics: Prometheus's text format."""
    return Response(state_of(http).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def described(model: ServedModel, created: int) -> dict[str, Any]:
    """A model as /v1/models has it."""
    return {
        "id": model.name, "object": "model", "created": created, "owned_by": "llm_jax",
        "max_model_len": model.max_tokens, "step": model.opened.step, "chat": model.template is not None,
    }  # fmt: skip


async def models(http: HttpRequest) -> Response:
    """GET /v1/models."""
    found = [described(model, http.app.state.created) for model in state_of(http).thread.models.values()]
    return json_response({"object": "list", "data": found})


async def one_model(http: HttpRequest) -> Response:
    """GET /v1/models/NAME."""
    model = state_of(http).model(http.path_params["name"])
    return json_response(described(model, http.app.state.created))


ROUTES = (
    Route("/health", health),
    Route("/ready", ready),
    Route("/metrics", metrics),
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", one_model),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info),
)


def make_app(server: ServerState, guard: Guard) -> ASGIApp:
    """The server's ASGI application."""
    app = Starlette(
        routes=ROUTES,
        exception_handlers={
            ApiError: lambda http, error: error_response(error),
            UserError: lambda http, error: error_response(of_user_error(error)),
            ClientLeft: lambda http, error: Response(status_code=499),
            HTTPException: no_such_path,
            Exception: lambda http, error: error_response(server_failed()),
        },
    )
    app.state.server, app.state.created = server, int(time.time())
    return Gate(app, server, guard)


def no_such_path(http: HttpRequest, error: Exception) -> Response:
    """The response to a path or method that isn't there."""
    assert isinstance(error, HTTPException)
    path = http.url.path[:80]
    if error.status_code == 404:
        message = f"{path}: there is no such path; {nearest(path, [route.path for route in ROUTES])}"
    else:
        message = f"{http.method} {path}: {error.detail}"
    return error_response(ApiError(error.status_code, message, headers=dict(error.headers or {})))


class Gate:
    """What every request passes first. Counts requests and adds headers to their responses."""

    def __init__(self, app: ASGIApp, server: ServerState, guard: Guard):
        self.app, self.server, self.guard = app, server, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request, or passes it on."""
        if scope["type"] != "http":  # no WebSockets; a lifespan has nothing to do
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        path, status = scope["path"], 499

        async def send_and_count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in SAFE_HEADERS.items()
                        if name.lower().encode() not in names
                    ),
                ]
            await send(message)

        server = self.server
        counts = path not in ALWAYS
        server.begin(counts)
        try:
            self.guard.check(path, scope["headers"])
            if path not in ALWAYS:
                server.check_open()
            await self.app(scope, receive, send_and_count)
        except ApiError as error:
            await error_response(error)(scope, receive, send_and_count)
        finally:
            server.end(counts)
            known = path if any(route.path == path for route in ROUTES) else "other"
            server.metrics.requests.labels(known, str(status)).inc()
