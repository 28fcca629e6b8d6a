"""Errors that are printed as one line (the key, its value, the fix), and the exit codes of commands."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAULT = 1
"""A bug (with its traceback), or a fault of the machine."""
EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_STOPPED = 85
"""Stopped by SIGTERM, SIGUSR1 or the end of the time limit, with everything saved: start the same command
again. A job script requeues on it."""
EXIT_PEER = 86
"""Another process of the run failed; it is named on stderr."""
EXIT_REPEATED = 87
"""Given up: the same fault at the same step twice. Starting again would not help."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, with everything saved unless it was pressed twice."""
EXIT_UNREAD = 141
"""stdout was closed: the exit code that a shell reports for a program that SIGPIPE ended."""


class UserError(Exception):
    """A mistake of the user. The entry points print it as one line on stderr and exit with 2.

    Every other exception is a bug, and keeps its traceback; or it is a Fault. Its text is one line, whatever
    messages of libraries are in it.
    """

    def __str__(self) -> str:
        return " ".join(part for line in super().__str__().splitlines() if (part := line.strip()))


class Fault(Exception):
    """The machine failed: a host is missing, a disk is full. The entry points print it as one line on stderr
    and exit with 1."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error line: the valid name that is most like `name`, or all of them.

    >>> nearest("adamv", ["adamw", "lion"])
    "did you mean 'adamw'?"
    """
    valid = sorted(valid)
    close = closest(name, valid)
    if close:
        return f"did you mean '{close}'?"
    return f"valid: {', '.join(valid)}" if valid else "there are none"


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that is most like `name`; None if none is much like it."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if not close:  # the last part of a dotted key often is what was meant: batch_size for train.batch_size
        close = [v for v in valid if v.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    return close[0] if close else None


def one_of(name: str, valid: Iterable[str]) -> str:
    """The end of an error line about a choice of a few: all of them, and the nearest."""
    valid = list(valid)
    close = closest(name, valid)
    return f"must be one of {', '.join(valid)}" + (f"; did you mean '{close}'?" if close else "")


def require(right: bool, key: str, value: object, expected: str) -> None:
    """Raises UserError, naming the key, its value and what would be right, unless `right`. (A comparison with
    NaN is never right.)"""
    if not right:
        raise UserError(f"{key}={value}: must be {expected}")


def check_choice(key: str, value: str, valid: Iterable[str]) -> None:
    """Raises UserError unless `value` is one of `valid`."""
    valid = list(valid)
    if value not in valid:
        raise UserError(f"{key}={value}: {one_of(value, valid)}")


class Stopped(BaseException):
    """A signal stopped the run. Like KeyboardInterrupt it is no Exception, so that no handler of failures
    catches it."""

    def __init__(self, number: int, reason: str = ""):
        super().__init__(f"stopped by {reason or signal.Signals(number).name}")
        self.number = number

    @property
    def early(self) -> str:
        """The message where no step was done yet."""
        return f"{self} before a step was done, nothing is lost; rerun the command to start"

    @property
    def code(self) -> int:
        """The exit code of a run that it ends."""
        return EXIT_INTERRUPTED if self.number == signal.SIGINT else EXIT_STOPPED
