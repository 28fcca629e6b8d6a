"""What the processes of a run do alike: the first one's word, and a failure of one that is a failure of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llm_jax.core.errors import Fault, UserError
from llm_jax.processes.group import Group

T = TypeVar("T")


def run_on_all(group: Group, name: str, body: Callable[[], T], runs: bool = True) -> T:
    """What body() returns, on every process. Where it raises on one, all raise: the first to fail names itself in the others' error.

    runs: whether this process runs it; the others wait, and have None.
    """
    result: Any = None
    error: Exception | None = None
    try:
        if runs:
            result = body()
    except Exception as raised:
        error = raised
    said = None if error is None else {"text": one_line(error), "user": isinstance(error, UserError), "host": group.task.name}
    failed = next((told for told in group.exchange(name, said) if told), None)
    if error is not None:
        raise error
    if failed:
        raise (UserError if failed["user"] else Fault)(f"{failed['host']}: {failed['text']}")
    return result


def broadcast_from_first(group: Group, name: str, body: Callable[[], Any]) -> Any:
    """What body() returns on the first process (something that JSON can say), on all."""
    result = run_on_all(group, f"{name} of the first", body, runs=group.task.rank == 0)
    return group.exchange(name, result)[0] if group.task.size > 1 else result


def first_error(group: Group, name: str, problem: str) -> str:
    """The first of the processes' problems, with the process that has it; empty where nobody has one."""
    told = group.exchange(name, [problem, group.task.name])
    return next((text + (f" ({where})" if group.task.size > 1 else "") for text, where in told if text), "")


def one_line(error: BaseException) -> str:
    """An exception in a line; a UserError's own."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text if isinstance(error, (UserError, Fault)) else f"{type(error).__name__}: {text}"[:500]
