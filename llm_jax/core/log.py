"""Functions to give as `log`, which is called with each line about what is being done."""

from __future__ import annotations

import sys


def log_to_stderr(line: str) -> None:
    """Prints a line that is no part of a command's output."""
    print(line, file=sys.stderr, flush=True)


def no_log(line: str) -> None:
    """Discards the line."""
