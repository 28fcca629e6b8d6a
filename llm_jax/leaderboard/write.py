"""Writes leaderboard.html and leaderboard.csv. Imports no JAX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_jax.core.arithmetic import finite
from llm_jax.core.files import write_atomic
from llm_jax.evaluate.comparison import BITS_PER_BYTE
from llm_jax.leaderboard.board import Column
from llm_jax.leaderboard.models import Leaderboard

PAGE, TABLE = "leaderboard.html", "leaderboard.csv"
FIELDS = (
    "model", "path", "step", "parameters", "train_flops", "column", "group", "metric", "value", "stderr",
    "low", "high", "n", "clusters", "chance", "may_be_a_guess", "rank_best", "rank_worst",
    "compared_with", "difference", "difference_low", "difference_high", "p", "difference_shown",
    "n_truncated", "n_merged", "contaminated_items", "value_without_contaminated", "weights_hash",
    "task_hash",
)  # fmt: skip
"""The columns of the CSV. group: 1 for a mean of tasks. low, high: the 95% interval."""


def write_page(folder: Path, page: str, board: Leaderboard, columns: Sequence[Column], against: int) -> Path:
    """Writes both files into a folder (made if missing), and returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, FIELDS, lineterminator="\n")
    table.writeheader()
    table.writerows(csv_rows(board, columns, against))
    write_atomic(folder / TABLE, text.getvalue())
    write_atomic(folder / PAGE, page)
    return folder / PAGE


def csv_rows(board: Leaderboard, columns: Sequence[Column], against: int) -> Iterator[dict[str, Any]]:
    """A row for each model and column in which it has a score. What isn't known or finite is empty."""
    for number, model in enumerate(board.models):
        for column in columns:
            if (cell := column.cells[number]) is None:
                continue
            one = cell.estimate
            made: dict[str, Any] = {
                "model": model.name,
                "path": model.path,
                "step": model.step,
                "parameters": model.parameters,
                "train_flops": model.train_flops,
                "column": column.title,
                "group": int(column.is_group),
                "metric": column.metric,
                "value": one.value,
                "stderr": finite(one.stderr),
                "low": finite(one.ci95[0]),
                "high": finite(one.ci95[1]),
                "n": one.n,
                "clusters": one.clusters,
                "chance": column.chance,
                "may_be_a_guess": int(cell.at_chance),
                "rank_best": cell.rank.best,
                "rank_worst": cell.rank.worst,
            }
            if (difference := column.differences[number][against]) is not None:
                made |= {
                    "compared_with": board.models[against].name,
                    "difference": difference.value,
                    "difference_low": finite(difference.ci95[0]),
                    "difference_high": finite(difference.ci95[1]),
                    "p": difference.p,
                    "difference_shown": int(difference.shown),
                }
            if not column.is_group:
                result = model.evaluations[column.tasks[0]].result
                made |= {
                    key: result.get(key) for key in ("n_truncated", "n_merged", "weights_hash", "task_hash")
                }
                if column.metric != BITS_PER_BYTE and (found := result.get("contamination")):
                    made["contaminated_items"] = found["n_items"]
                    made["value_without_contaminated"] = found["value_without"]
            yield made
