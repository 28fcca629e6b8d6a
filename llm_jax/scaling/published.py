"""Published exponents and laws: `published.toml` as dataclasses."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Exponents:
    """Exponents of compute-optimal size and tokens."""

    name: str
    """Paper and variant."""
    a: float
    """Of N* ~ C^a."""
    convention: str
    """Of N and C: a name of `scaling.flops.CONVENTIONS`."""
    source: str
    a_interval: tuple[float, float] | None = None
    b: float | None = None
    """Of D* ~ C^b."""
    b_interval: tuple[float, float] | None = None


@functools.cache
def exponents() -> tuple[Exponents, ...]:
    """All published exponents, the oldest first."""
    rows = []
    for row in _table()["exponents"]:
        intervals: dict[str, Any] = {key: tuple(row[key]) for key in ("a_interval", "b_interval") if key in row}
        rows.append(Exponents(**{**row, **intervals}))
    return tuple(rows)


def constants(kind: str, name: str) -> dict[str, Any]:
    """The constants of one published law: `kind` is "laws", say, `name` its paper."""
    (row,) = (row for row in _table()[kind] if row["name"] == name)
    return dict(row)


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text())
