"""Published exponents and laws, read from `published.toml`."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Exponents:
    """Published exponents of compute-optimal size and tokens, with intervals as printed in the paper."""

    name: str
    """The paper, and which of its fits."""
    a: float
    """The exponent of N* ~ C^a."""
    convention: str
    """The convention of N and C: a name of `model.accounting.CONVENTIONS`."""
    source: str
    """Where the paper states them."""
    a_interval: tuple[float, float] | None = None
    b: float | None = None
    """The exponent of D* ~ C^b."""
    b_interval: tuple[float, float] | None = None


@functools.cache
def exponents() -> tuple[Exponents, ...]:
    """All published exponents, the oldest first."""
    rows = []
    for row in _table()["exponents"]:
        intervals: dict[str, Any] = {
            key: tuple(row[key]) for key in ("a_interval", "b_interval") if key in row
        }
        rows.append(Exponents(**{**row, **intervals}))
    return tuple(rows)


def constants(kind: str, name: str) -> dict[str, Any]:
    """The constants of a published law: the row of the table `kind` ("laws", "repetition") whose name (its
    paper) is `name`."""
    (row,) = (row for row in _table()[kind] if row["name"] == name)
    return dict(row)


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text())
