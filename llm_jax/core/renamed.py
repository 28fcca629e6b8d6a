"""Names of other modules: what a module of an old name contains, an error that gives the new name; and public
names that a module has from another one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from llm_jax.core.errors import EXIT_USER_ERROR


def raise_renamed(old: str, new: str) -> NoReturn:
    """Raises ImportError with the new name. If `old` was run as a command (`python -m old`), prints the line
    and exits with 2."""
    line = f"{old} was renamed: use {new}"
    if "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == [old]:
        print(f"error: {line}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    raise ImportError(line)


def also_in(module: str, other: str, names: Collection[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module some of whose public names are defined in another one, which is imported
    when one of them is used.

    For names that users look for in a room below the one that defines them: `llm_jax.huggingface.load_model`
    needs `pretrained`. The room itself must not use them, so no module of it imports what is above it.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"{module} has no {name}")
        return getattr(importlib.import_module(other), name)

    return get


def run_main_of(other: str) -> NoReturn:
    """Runs the command of another module, and exits with its code."""
    sys.exit(importlib.import_module(other).main())
