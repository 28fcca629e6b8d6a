"""What a user can get wrong: one line that names the key, the value and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake in what was asked for. The entry points print it as one line on stderr and exit with 2.

    Anything else that is raised is a bug of ours (or of the machine) and keeps its traceback.
    """


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
    """Raises UserError, naming the key, its value and what would be right, unless `right`. A comparison with NaN is not."""
    if not right:
        raise UserError(f"{key}={value}: must be {expected}")


def check_choice(key: str, value: str, valid: Iterable[str]) -> None:
    """Raises UserError unless `value` is one of `valid`."""
    valid = list(valid)
    if value not in valid:
        raise UserError(f"{key}={value}: {one_of(value, valid)}")
