"""The page: the values that `page.html.jinja` and `page.js` are filled with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.core.arithmetic import finite
from llm_jax.core.format import counted, format_flops, parameter_count, short
from llm_jax.core.templates import render
from llm_jax.evaluate.comparison import BITS_PER_BYTE
from llm_jax.evaluate.statistics import Difference
from llm_jax.leaderboard.board import Cell, Column
from llm_jax.leaderboard.disagreements import ShownItems, as_data
from llm_jax.leaderboard.models import Leaderboard, RankedModel
from llm_jax.leaderboard.seeds import seed_rows


def make_page(
    board: Leaderboard, columns: Sequence[Column], shown: Mapping[str, ShownItems], against: int, command: str
) -> str:
    """The page as HTML. against: the model that the others are compared with when it opens. command: the line
    that made it."""
    return render(
        "llm_jax.leaderboard",
        "page.html.jinja",
        cards=cards(board, columns),
        columns=[head(column) for column in columns],
        rows=[row(board, columns, i) for i in range(len(board.models))],
        tasks=[task_facts(board, name) for name in board.tasks],
        models=[model_facts(model) for model in board.models],
        contaminated=contamination_rows(board),
        seeds=seed_texts(board, columns),
        data=script_data(board, columns, shown, against),
        command=command,
    )


def cards(board: Leaderboard, columns: Sequence[Column]) -> list[tuple[str, str]]:
    """The headline numbers of the page: (number, description)."""
    items = sum(
        max(len(m.evaluations[task].samples) if task in m.evaluations else 0 for m in board.models)
        for task in board.tasks
    )
    decided = total = 0
    for column in (column for column in columns if not column.is_group):
        for i, differences in enumerate(column.differences):
            for one in differences[i + 1 :]:
                total, decided = total + (one is not None), decided + bool(one and one.shown)
    return [
        (str(len(board.models)), "models"),
        (str(len(board.tasks)), f"tasks, {items:,} items"),
        (f"{decided} of {total}", "comparisons of two models in a task show a difference"),
    ]


def head(column: Column) -> dict[str, Any]:
    """The head of a column."""
    return {
        "title": column.title,
        "is_group": column.is_group,
        "bits": column.metric == BITS_PER_BYTE,
        "metric": column.metric.replace("_", " "),
        "chance": None if column.chance is None or column.is_group else shown_value(column, column.chance),
        "tasks": ", ".join(column.tasks) if column.is_group else "",
    }


def row(board: Leaderboard, columns: Sequence[Column], i: int) -> dict[str, Any]:
    """A row of the table."""
    return {"model": model_facts(board.models[i]), "cells": [cell_text(c, c.cells[i]) for c in columns]}


def cell_text(column: Column, cell: Cell | None) -> dict[str, Any] | None:
    """What a cell shows."""
    if cell is None:
        return None
    low, high = cell.estimate.ci95
    return {
        "value": shown_value(column, cell.estimate.value),
        "interval": f"{shown_value(column, low)} to {shown_value(column, high)}",
        "rank": str(cell.rank),
        "at_chance": cell.at_chance,
        "n": cell.estimate.n,
    }


def shown_value(column: Column, value: float) -> str:
    """A score as a percentage, bits per byte with three decimals."""
    if finite(value) is None:
        return "?"
    return (f"{value:.3f}" if column.metric == BITS_PER_BYTE else f"{100 * value:.1f}").replace("-", "−")


def model_facts(model: RankedModel) -> dict[str, Any]:
    """What a page shows of a model."""
    results = [one.result for one in model.evaluations.values()]

    def said(key: str) -> str:
        return "; ".join(sorted({str(result[key]) for result in results if result.get(key) is not None}))

    return {
        "name": model.name,
        "path": str(model.path),
        "step": model.step,
        "parameters": parameter_count(model.parameters),
        "flops": None if model.train_flops is None else format_flops(model.train_flops, unit=""),
        "dtype": said("dtype"),
        "bos": said("bos"),
        "weights": said("weights_hash")[:12],
        "layout": said("layout"),
        "code": said("code_version"),
        "tokens": short(sum(result.get("tokens") or 0 for result in results)),
        "seconds": f"{sum(result.get('seconds') or 0 for result in results):,.0f}",
    }


def task_facts(board: Leaderboard, name: str) -> dict[str, Any]:
    """What a page shows of a task."""
    task = board.tasks[name]
    results = [m.evaluations[name].result for m in board.models if name in m.evaluations]

    def most(key: str) -> int:
        return max((result.get(key) or 0 for result in results), default=0)

    return {
        "name": name,
        "about": task.about,
        "language": task.language,
        "kind": task.kind,
        "formulation": task.formulation,
        "metric": str(results[0]["metric"]).replace("_", " ") if results else task.metric,
        "n": most("n"),
        "shots": most("shots"),
        "chance": results[0].get("chance") if results else None,
        "truncated": most("n_truncated"),
        "merged": most("n_merged"),
        "hash": results[0].get("task_hash", "") if results else "",
    }


def contamination_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """Tasks some of whose items share text with a model's own training corpus."""
    rows = []
    for model in board.models:
        for name, one in model.evaluations.items():
            found = one.result.get("contamination")
            if found and found.get("n_items"):
                rows.append({"model": model.name, "task": name, "value": one.result["value"], **found})
    return rows


def seed_texts(board: Leaderboard, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """What the table of seeds shows."""
    by_title = {column.title: column for column in columns if column.metric != BITS_PER_BYTE}
    rows = []
    for row in seed_rows(board, columns):
        column, one = by_title[row.column], row.difference

        def shown(value: float, column: Column = column) -> str:
            return shown_value(column, value)

        rows.append(
            {
                "column": row.column,
                "family": row.family.name,
                "runs": len(row.values),
                "values": ", ".join(map(shown, row.values)),
                "between": shown(float(np.std(row.values, ddof=1))),
                "value": shown(row.estimate.value),
                "interval": " to ".join(map(shown, row.estimate.ci95)),
                "difference": "" if one is None else shown(one.value),
                "difference_interval": "" if one is None else " to ".join(map(shown, one.ci95)),
                "verdict": "" if one is None else "shown" if one.shown else "no difference shown",
            }
        )
    return rows


def script_data(
    board: Leaderboard, columns: Sequence[Column], shown: Mapping[str, ShownItems], against: int
) -> dict[str, Any]:
    """Data for page.js: every score and every paired difference."""
    return {
        "against": against,
        "models": [
            {
                "name": model.name,
                "parameters": model.parameters,
                "flops": model.train_flops,
                "flops_per_token": model.flops_per_token,
                "inspect": f"python -m llm_jax.inspect {shlex.quote(str(model.path))}"
                + (f" step={model.step}" if model.step else ""),
            }
            for model in board.models
        ],
        "columns": [
            {
                "key": column.key,
                "title": column.title,
                "group": column.is_group,
                "bits": column.metric == BITS_PER_BYTE,
                "tasks": column.tasks,
                "chance": column.chance,
                "higher": column.higher_is_better,
                "cells": [cell_data(cell) for cell in column.cells],
                "differences": [[difference_data(one) for one in of] for of in column.differences],
            }
            for column in columns
        ],
        "items": as_data(shown, list(board.tasks)),
        "words": dict(board.words),
        "keys": {
            task: "".join(f" {key}={shlex.quote(str(value))}" for key, value in keys.items())
            for task, keys in board.keys.items()
        },
    }


def cell_data(cell: Cell | None) -> list[Any] | None:
    """[value, low, high, best rank, worst rank] of a cell."""
    if cell is None:
        return None
    one = cell.estimate
    return [*(rounded(x) for x in (one.value, *one.ci95)), *cell.rank]


def difference_data(one: Difference | None) -> list[Any] | None:
    """[value, low, high, items on which the first is higher, and the second] of a paired difference."""
    if one is None:
        return None
    return [*(rounded(x) for x in (one.value, *one.ci95)), one.higher, one.lower]


def rounded(value: float) -> float | None:
    """A number with as many digits as a page needs; None for what isn't finite."""
    return None if finite(value) is None else float(f"{value:.7g}")


def summary_lines(board: Leaderboard, columns: Sequence[Column]) -> list[str]:
    """The first column as lines for the terminal: rank range, score and interval of each model."""
    if not columns:
        return []
    column, lines = columns[0], []
    there = [(cell, model.name) for cell, model in zip(column.cells, board.models, strict=True) if cell]
    what = "mean, centred by chance" if column.is_group and column.chance is not None else column.metric
    lines.append(f"{column.title} ({what}; {counted(len(column.tasks), 'task')}):")
    for cell, name in sorted(there, key=lambda one: (one[0].rank, -one[0].estimate.value)):
        text = cell_text(column, cell)
        assert text is not None
        guess = "  may be a guess" if cell.at_chance else ""
        lines.append(f"{text['rank']:>5}  {name:<24} {text['value']:>6}  ({text['interval']}){guess}")
    return lines
