"""The numbers of a leaderboard: a score with its interval and its range of ranks for every model in every
task and group, and the paired difference of every two models. All are computed from the samples. Imports no
JAX."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llm_jax.core.errors import UserError
from llm_jax.evaluate import statistics
from llm_jax.evaluate.comparison import BITS_PER_BYTE, compare
from llm_jax.evaluate.ranks import RankRange, rank_ranges
from llm_jax.evaluate.statistics import Difference, Estimate
from llm_jax.evaluate.task_scores import estimate
from llm_jax.leaderboard.models import Evaluation, Leaderboard, RankedModel

AGREES = 1e-9
"""By how much a score that is computed from samples may differ from the one in the result."""


@dataclass(frozen=True)
class Cell:
    """A model's score in a column."""

    estimate: Estimate
    rank: RankRange
    at_chance: bool
    """Whether chance is in the interval: the score may be a guess."""


@dataclass(frozen=True)
class Column:
    """A task, or a group of tasks, in one metric."""

    key: str
    title: str
    tasks: tuple[str, ...]
    """Those that it is of; of a task the one."""
    is_group: bool
    metric: str
    """The primary metric of a task; centred_score for groups; or bits_per_byte, of the right answers."""
    chance: float | None
    """What a guess scores: 0 for groups, whose tasks are centred by their chances; None for bits per
    byte."""
    higher_is_better: bool
    cells: tuple[Cell | None, ...]
    """One for each model; None where it has no score: of a group also where one of its tasks is missing."""
    differences: tuple[tuple[Difference | None, ...], ...]
    """[i][j]: the score of model i minus that of j on the same items."""


def make_columns(board: Leaderboard) -> list[Column]:
    """The columns of a page: groups, then tasks, each in its primary metric, and all of them in bits per byte
    of the right answer. Raises UserError for a result that its samples don't give."""
    scores, bits = [], []
    for name in board.tasks:
        metric = primary_metric(board, name)
        if metric != BITS_PER_BYTE:
            scores.append(task_column(board, name, metric))
        if has_bits(board, name):
            bits.append(task_column(board, name, BITS_PER_BYTE))
    return [
        column
        for tasks, kind in ((scores, "score"), (bits, BITS_PER_BYTE))
        for column in (*group_columns(board, tasks, kind), *tasks)
    ]


def primary_metric(board: Leaderboard, task: str) -> str:
    """The metric of a task's value, as the results name it."""
    found = {m.evaluations[task].result["metric"] for m in board.models if task in m.evaluations}
    assert len(found) == 1, f"{task} in {found}"
    return str(found.pop())


def has_bits(board: Leaderboard, task: str) -> bool:
    """Whether the samples of a task have a right answer whose bits were scored."""
    return all(
        sample.get("choices")
        for model in board.models
        if task in model.evaluations
        for sample in model.evaluations[task].samples
    )


def task_column(board: Leaderboard, name: str, metric: str) -> Column:
    """A task in a metric, computed from samples."""
    task, models = board.tasks[name], board.models
    estimates = [
        estimate(found.samples, task.kind, metric) if (found := model.evaluations.get(name)) else None
        for model in models
    ]
    for model, one in zip(models, estimates, strict=True):
        if one is not None and metric == model.evaluations[name].result["metric"]:
            check_result(model, name, model.evaluations[name], one)
    differences = pairs(
        len(models),
        lambda i, j: (
            None
            if estimates[i] is None or estimates[j] is None
            else compare(
                models[i].evaluations[name].samples, models[j].evaluations[name].samples, task.kind, metric
            )
        ),
    )
    bits = metric == BITS_PER_BYTE
    chance = (
        None
        if bits
        else next((chance_of(model, name) for model in models if name in model.evaluations), None)
    )
    return ranked(
        Column(
            key=f"{name}:bits" if bits else name,
            title=name,
            tasks=(name,),
            is_group=False,
            metric=metric,
            chance=chance,
            higher_is_better=not bits,
            cells=(),
            differences=differences,
        ),
        estimates,
    )


def chance_of(model: RankedModel, task: str) -> float:
    """What a guess scores on the items that a model was asked."""
    return float(model.evaluations[task].result.get("chance") or 0.0)


def group_columns(board: Leaderboard, tasks: Sequence[Column], kind: str) -> list[Column]:
    """A column for each group with two tasks or more of this kind, and one for all tasks."""
    by_name = {column.tasks[0]: column for column in tasks}
    groups = {name: [by_name[task] for task in of if task in by_name] for name, of in board.groups.items()}
    if len(groups) != 1 or len(next(iter(groups.values()))) != len(tasks):
        groups = {"all": list(tasks), **groups}
    return [group_column(board, name, of, kind) for name, of in groups.items() if len(of) > 1]


def group_column(board: Leaderboard, name: str, tasks: Sequence[Column], kind: str) -> Column:
    """The mean of several tasks, each centred by its chance (bits per byte have none). A model without one of
    the tasks has no mean."""
    count, bits = len(board.models), kind == BITS_PER_BYTE
    chances = [0.0 if column.chance is None else column.chance for column in tasks]
    estimates: list[Estimate | None] = []
    for i in range(count):
        cells = [column.cells[i] for column in tasks]
        whole = [cell.estimate for cell in cells if cell is not None]
        estimates.append(statistics.group(whole, chances) if len(whole) == len(cells) else None)

    def difference(i: int, j: int) -> Difference | None:
        found = [column.differences[i][j] for column in tasks]
        whole = [one for one in found if one is not None]
        return statistics.group_difference(whole, chances) if len(whole) == len(found) else None

    column = Column(
        key=f"group:{name}:bits" if bits else f"group:{name}",
        title=name,
        tasks=tuple(column.tasks[0] for column in tasks),
        is_group=True,
        metric=BITS_PER_BYTE if bits else "centred_score",
        chance=None if bits else 0.0,
        higher_is_better=not bits,
        cells=(),
        differences=pairs(count, difference),
    )
    return ranked(column, estimates)


def ranked(column: Column, estimates: Sequence[Estimate | None]) -> Column:
    """A column with its cells: models without a score take no part in the ranks of the others."""
    there = [i for i, one in enumerate(estimates) if one is not None]
    rows = [[None if i == j else column.differences[i][j] for j in there] for i in there]
    ranges = dict(zip(there, rank_ranges(rows, column.higher_is_better), strict=True))
    cells = tuple(
        None if one is None else Cell(one, ranges[i], is_at_chance(one, column.chance))
        for i, one in enumerate(estimates)
    )
    return replace(column, cells=cells)


def is_at_chance(found: Estimate, chance: float | None) -> bool:
    """Whether a guess would score within the interval. Where a guess is never right, no score is one."""
    return bool(chance is not None and found.ci95[0] <= chance <= found.ci95[1])


Pairs = tuple[tuple[Difference | None, ...], ...]


def pairs(count: int, difference: Callable[[int, int], Difference | None]) -> Pairs:
    """[i][j] of a difference (i, j), which is computed once for two models; None on the diagonal."""
    found: dict[tuple[int, int], Difference | None] = {}
    for i, j in itertools.combinations(range(count), 2):
        one = difference(i, j)
        found[i, j], found[j, i] = one, None if one is None else reversed_difference(one)
    return tuple(tuple(found.get((i, j)) for j in range(count)) for i in range(count))


def reversed_difference(one: Difference) -> Difference:
    """The difference of the second model and the first.

    >>> reversed_difference(Difference(0.5, 0.1, (0.25, 0.75), 0.01, 9, 6, 1)).ci95
    (-0.75, -0.25)
    """
    low, high = one.ci95
    return one._replace(value=-one.value, ci95=(-high, -low), higher=one.lower, lower=one.higher)


def check_result(model: RankedModel, task: str, found: Evaluation, computed: Estimate) -> None:
    """Raises UserError where a result has another value than its samples give."""
    value = found.result["value"]
    if value is None or not math.isclose(value, computed.value, rel_tol=AGREES, abs_tol=AGREES):
        raise UserError(
            f"{model.path}: its result of {task} is {value}, and its samples give {computed.value:.6g}: a "
            "file is damaged. Remove both, and evaluate again"
        )
