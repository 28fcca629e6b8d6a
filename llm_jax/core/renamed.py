"""Modules that have moved: their old names raise, with the new one."""

from __future__ import annotations

import sys

from llm_jax.core.errors import EXIT_USER_ERROR


def moved(old: str, new: str) -> None:
    """For the body of the module `old`: raises ImportError; as a command (`python -m old`) prints one line and exits with 2."""
    line = f"{old} was renamed: use {new}"
    if "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == [old]:
        print(f"error: {line}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    raise ImportError(line)
