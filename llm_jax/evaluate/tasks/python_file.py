"""Tasks that a user's .py file defines. Whatever its code raises, when it is read or called later, is one
error line with the file's name and the line."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.evaluate.tasks.task import Item, Task


def tasks_of_module(path: Path) -> list[Task]:
    """The `Task`s that a Python file defines: at its top level, or in a list or tuple there. Raises
    UserError, with the line, for anything that the file raises, and so do the functions of its tasks."""
    path = path.resolve()  # as frames of a traceback have it
    module_name = f"llm_jax_tasks_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look themselves up there
    with user_code(path):
        spec.loader.exec_module(module)
    found: dict[str, Task] = {}
    for value in vars(module).values():
        for task in value if isinstance(value, list | tuple) else [value]:
            if isinstance(task, Task):
                with user_code(path):
                    found.setdefault(task.name, guarded(task, path))
    if not found:
        raise UserError(
            f"tasks={path}: defines no Task; it must have one at its top level "
            "(llm_jax.evaluate.tasks.task.Task)"
        )
    code = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return [dataclasses.replace(task, code=code) for task in found.values()]


@contextlib.contextmanager
def user_code(path: Path) -> Iterator[None]:
    """Raises UserError, with the line of the file, in place of what a user's code raises: sys.exit too, which
    would end the command as if it were done."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise error if text.startswith("tasks=") else UserError(f"tasks={path}: {text}") from error
    except (Exception, SystemExit) as error:
        frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1] if frames else None
        where = f"{path}:{line}" if line else f"{path}"
        raise UserError(f"tasks={where}: {type(error).__name__}: {error}") from error


def guarded(task: Task, path: Path) -> Task:
    """The task with functions that raise only UserError, and return what they must."""

    def call(function: Any, *arguments: Any) -> Any:
        with user_code(path):
            return function(*arguments)

    def listed(function: Callable[[], Iterable[Item]]) -> Callable[[], list[Item]]:
        return lambda: call(lambda: list(function()))  # within `user_code`, since it may be a generator

    def right(item: Item, text: str) -> bool:
        found = call(task.right, item, text)
        if not isinstance(found, bool | int | np.bool_) or found not in (0, 1):
            raise UserError(
                f"tasks={task.name}: item {item.id}: right returned {found!r}; must be True or False"
            )
        return bool(found)

    def program(item: Item, text: str) -> str:
        found = call(task.program, item, text)
        if not isinstance(found, str):
            raise UserError(f"tasks={task.name}: item {item.id}: program returned {found!r}; must be a text")
        return found

    return dataclasses.replace(
        task,
        items=listed(task.items),
        prepared={shots: listed(items) for shots, items in task.prepared.items()},
        examples=listed(task.examples) if task.examples else None,
        available=(lambda: call(task.available)) if task.available else None,
        right=right if task.right else None,
        program=program if task.program else None,
    )
