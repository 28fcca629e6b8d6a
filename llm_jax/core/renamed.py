"""What a module of an old name contains: an error that gives the new name."""

from __future__ import annotations

import sys
from typing import NoReturn

from llm_jax.core.errors import EXIT_USER_ERROR


def raise_renamed(old: str, new: str) -> NoReturn:
    """Raises ImportError with the new name. If `old` was run as a command (`python -m old`), prints the line
    and exits with 2."""
    line = f"{old} was renamed: use {new}"
    if "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == [old]:
        print(f"error: {line}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    raise ImportError(line)
