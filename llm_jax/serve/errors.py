"""Errors of requests in the form that OpenAI's clients read: a status, and {"error": {"message", "type",
"param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.core.errors import UserError

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""Status → the error's `type`; of all others it is invalid_request_error."""


class ApiError(Exception):
    """A request that is refused, or can't be finished."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        """status: of HTTP. param: the field of the body that is wrong. code: for programs
        (context_length_exceeded)."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def of_user_error(error: UserError, param: str | None = None) -> ApiError:
    """A mistake in a request, as the rest of the package reports it, with status 400. param: the field;
    None: what stands before "=" in the error."""
    message = str(error)
    name = message.partition("=")[0]
    return ApiError(400, message, param=param or (name if name.isidentifier() else None))


def context_too_long(most: int, prompt: int, completion: int, where: str, param: str) -> ApiError:
    """A prompt with its continuation that doesn't fit. Clients parse this message. where: "messages" or
    "prompt"."""
    return ApiError(
        400,
        f"This model's maximum context length is {most} tokens. However, you requested {prompt + completion} "
        f"tokens ({prompt} in the {where}, {completion} in the completion). Please reduce the length of the "
        f"{where} or completion.",
        param=param,
        code="context_length_exceeded",
    )


def starting(status: str) -> ApiError:
    """The server isn't ready yet. status: what it is doing."""
    return ApiError(503, f"The server is starting: {status}.", code="starting", headers={"Retry-After": "2"})


def server_failed() -> ApiError:
    """A bug."""
    return ApiError(500, "The server failed at this request; its log has the reason.")


def engine_failed() -> ApiError:
    """What waits when the engine's thread ends with a fault."""
    return ApiError(500, "The engine failed, and the server ends.", code="engine_failed")


def draining() -> ApiError:
    """The server takes no more requests."""
    return ApiError(
        503, "The server is shutting down and takes no more requests.", code="draining",
        headers={"Retry-After": "30"},
    )  # fmt: skip
