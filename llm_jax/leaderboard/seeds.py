"""Runs of a leaderboard that differ only in their seed: their mean scores, with the seed as a level. Imports
no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_jax.core.format import listed
from llm_jax.evaluate.comparison import BITS_PER_BYTE, value_of
from llm_jax.evaluate.seeds import SeedLevel, group_of_seeds, seed_difference, seed_level
from llm_jax.evaluate.statistics import Difference, Estimate
from llm_jax.evaluate.task_scores import clusters_of
from llm_jax.leaderboard.board import Column
from llm_jax.leaderboard.models import Leaderboard, RankedModel


@dataclass(frozen=True)
class Configuration:
    """Runs of one configuration, with different seeds."""

    name: str
    members: tuple[RankedModel, ...]


@dataclass(frozen=True)
class SeedRow:
    """A column's score of a family."""

    column: str
    family: Configuration
    values: tuple[float, ...]
    """Of each run."""
    estimate: Estimate
    """Their mean, with its interval over seeds and items."""
    difference: Difference | None
    """To the first family of the page, on the same items; None for that one, and for groups."""


def families_of(board: Leaderboard) -> list[Configuration]:
    """The configurations of which the page has two runs or more, in its order."""
    found: dict[tuple[str, int], list[RankedModel]] = {}
    for model in board.models:
        if model.family:
            found.setdefault((model.family, model.step), []).append(model)
    return [
        Configuration(family_name([m.name for m in members]), tuple(members))
        for members in found.values()
        if len(members) > 1
    ]


def family_name(names: Sequence[str]) -> str:
    """What runs are called together: what their names begin with, or all of them.

    >>> family_name(["wide-seed0", "wide-seed1"]), family_name(["a", "b"])
    ('wide-seed', 'a and b')
    """
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:same].rstrip("-_/@. ") or listed(list(names))


def seed_rows(board: Leaderboard, columns: Sequence[Column]) -> list[SeedRow]:
    """A row for each family and column of scores. Columns that not all of its runs have are left out."""
    rows: list[SeedRow] = []
    for column in columns:
        if column.metric == BITS_PER_BYTE:
            continue
        first: SeedLevel | None = None
        for family in families_of(board):
            levels = [level_of(board, family, task, columns) for task in column.tasks]
            whole = [level for level in levels if level is not None]
            if len(whole) < len(levels):
                continue
            if column.is_group:
                chances = [chance_of(columns, task) for task in column.tasks]
                values, found = group_of_seeds(whole, chances)
                rows.append(SeedRow(column.title, family, values, found, None))
                continue
            (level,) = whole
            difference = seed_difference(level, first) if first is not None else None
            first = level if first is None else first
            rows.append(SeedRow(column.title, family, level.values, level.estimate(), difference))
    return rows


def level_of(
    board: Leaderboard, family: Configuration, task: str, columns: Sequence[Column]
) -> SeedLevel | None:
    """The scores of a family's runs in a task; None where they weren't asked the same items."""
    metric = next(column.metric for column in columns if column.key == task)
    if not all(task in model.evaluations for model in family.members):
        return None
    every = [model.evaluations[task].samples for model in family.members]
    ids = [[sample["id"] for sample in samples] for samples in every]
    if any(one != ids[0] for one in ids):
        return None
    kind = board.tasks[task].kind
    values_SN = np.array([[value_of(sample, kind, metric) for sample in samples] for samples in every])
    return seed_level(values_SN, clusters_of(every[0]))


def chance_of(columns: Sequence[Column], task: str) -> float:
    """What a guess scores in a task."""
    return next(column.chance for column in columns if column.key == task) or 0.0
