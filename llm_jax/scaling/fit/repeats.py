"""Runs that repeat one size and one number of tokens: their cells, and the noise that repeated seeds show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAME = 1e-9
"""Numbers that differ by less than this part are one."""
LEAST_FREEDOM = 3
"""Fewer repeats of seeds (beyond the first of each cell) don't measure their noise."""


@dataclass(frozen=True)
class SeedNoise:
    """How much losses differ between seeds."""

    noise: float
    """The standard deviation of loss between runs that differ in their seed alone, pooled over the cells."""
    repeats: int
    """The number of runs beyond the first of each cell."""


def cell_numbers(table: Mapping[str, np.ndarray], by: Sequence[str]) -> np.ndarray:
    """The number [n] of each run's cell: runs with equal values in all columns `by`, in order of their first
    run.

    >>> cell_numbers({"parameters": np.array([2.0, 1.0, 2.0]), "tokens": np.array([1.0, 1.0, 1.0])}, ("parameters", "tokens")).tolist()
    [0, 1, 0]
    """  # noqa: E501
    codes = [np.unique(rounded(table[name]), return_inverse=True)[1].reshape(-1) for name in by]
    _, first, cells = np.unique(np.stack(codes, -1), axis=0, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[cells.reshape(-1)]


def rounded(values: np.ndarray) -> np.ndarray:
    """Positive numbers as steps of `SAME` on a logarithmic scale, so that rounding makes no two of one; other
    values as they are."""
    if values.dtype.kind != "f" or not (values > 0).all():
        return values
    return np.round(np.log(values) / SAME)


def seed_noise(table: Mapping[str, np.ndarray], by: Sequence[str]) -> SeedNoise | None:
    """The noise between the runs of cells `by` that have different `seeds`; None without such a column, where
    a seed is in a cell twice, or with too few repeats."""
    if "seeds" not in table:
        return None
    cells = cell_numbers(table, by)
    if len(np.unique(cell_numbers(table, (*by, "seeds")))) < len(cells):
        return None
    count = np.bincount(cells)
    repeats = int((count - 1).sum())
    means = np.bincount(cells, table["loss"]) / count
    spread = np.sqrt(((table["loss"] - means[cells]) ** 2).sum() / max(repeats, 1))
    return SeedNoise(float(spread), repeats) if repeats >= LEAST_FREEDOM and spread > 0 else None
