"""What all processes of a run do together: run on all and fail together, broadcast from rank 0, collect the
first error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llm_jax.core.errors import Fault, UserError
from llm_jax.processes.group import Group

T = TypeVar("T")


def run_on_all(group: Group, name: str, body: Callable[[], T], runs: bool = True) -> T:
    """Runs body() on every process and returns its result. Where it raises on one process, it raises on all.

    The others raise UserError or Fault with the name and error line of the first process that failed. The
    name is that of the exchange, for messages about processes that don't come. runs: whether this process
    runs the body; where not, it waits, and returns None.
    """
    result: Any = None
    error: Exception | None = None
    try:
        if runs:
            result = body()
    except Exception as raised:
        error = raised
    mine = (
        None
        if error is None
        else {"text": one_line(error), "user": isinstance(error, UserError), "host": group.task.name}
    )
    failed = next((theirs for theirs in group.exchange(name, mine) if theirs), None)
    if error is not None:
        raise error
    if failed:
        raise (UserError if failed["user"] else Fault)(f"{failed['host']}: {failed['text']}")
    return result


def broadcast_from_first(group: Group, name: str, body: Callable[[], Any]) -> Any:
    """Runs body() on rank 0 and returns its result, which can be written as JSON, on every process. Where it
    raises, all raise."""
    result = run_on_all(group, f"{name} of the first", body, runs=group.task.rank == 0)
    return group.exchange(name, result)[0] if group.task.size > 1 else result


def first_error(group: Group, name: str, problem: str) -> str:
    """The problem of the first process that has one, with that process's name; "" where all gave ""."""
    problems = group.exchange(name, [problem, group.task.name])
    return next(
        (text + (f" ({where})" if group.task.size > 1 else "") for text, where in problems if text), ""
    )


def one_line(error: BaseException) -> str:
    """The first line of an exception's text, with its class before it unless it is a UserError or Fault."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text if isinstance(error, (UserError, Fault)) else f"{type(error).__name__}: {text}"[:500]
