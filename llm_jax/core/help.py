"""The text of `--help`, from the docstrings of a command's class and those below its fields
(core/arguments.py)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_jax.core.arguments import Field

WIDTH = 110
COLUMN = 20
"""Where the texts begin, beside their keys."""


def print_help(kind: type, fields: Sequence[Field]) -> None:
    """Prints help: the docstring's paragraphs up to the first that begins "Exit codes", the keys, and the
    rest."""
    print(help_text(kind, fields))


def help_text(kind: type, fields: Sequence[Field]) -> str:
    """The text of `--help`.

    A class with a function `more_help()` puts its text below the keys.
    """
    paragraphs = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    last = [one for one in paragraphs if one.startswith("Exit codes")]
    keys = [entry(field) for field in fields if field.argument.role != "in_order"]
    more = [inspect.cleandoc(kind.more_help())] if hasattr(kind, "more_help") else []
    parts = [
        *(one for one in paragraphs if one not in last),
        "\n".join(keys),
        *more,
        row("--help", "this text"),
        *last,
    ]
    return "\n\n".join(parts)


def entry(field: Field) -> str:
    """A key with its text, choices and default."""
    text = " ".join(field_docs(field.owner).get(field.at, "").split())
    if (valid := field.valid) and not all(choice in text for choice in valid):
        text = f"{text} One of {', '.join(valid)}.".lstrip()
    return row(field.written, text + default_text(field))


def default_text(field: Field) -> str:
    """How an entry ends: with the default, if it has one."""
    if field.argument.role in ("flag", "passed_on"):
        return ""
    if field.default is MISSING:
        return " (required)"
    return "" if field.default in (None, "", (), {}) else f" (default: {written(field.default)})"


def written(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def row(left: str, text: str) -> str:
    """A line of help, wrapped below its column; a long key has a line for itself."""
    lines = textwrap.wrap(text, WIDTH - COLUMN, break_on_hyphens=False) or [""]
    head = [f"{left:<{COLUMN}}{lines[0]}"] if len(left) < COLUMN else [left, " " * COLUMN + lines[0]]
    return "\n".join([*head, *(" " * COLUMN + line for line in lines[1:])]).rstrip()


def field_docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, those of its base classes too; empty where the source
    isn't there."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            is_doc = (
                isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            )
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_doc:
                found[statement.target.id] = inspect.cleandoc(below.value.value)  # type: ignore[attr-defined]
    return found
