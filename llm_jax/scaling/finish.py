"""The end of a grid: held-out runs are predicted before and compared after training, the runs are fitted, the
report is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.format import short
from llm_jax.model import accounting
from llm_jax.scaling.fit.approach3 import parametric
from llm_jax.scaling.fit.methods import METHODS
from llm_jax.scaling.fit.show import print_fit
from llm_jax.scaling.fit.table import read_columns
from llm_jax.scaling.grid import Grid, Point, Row
from llm_jax.scaling.predictions import read_predictions, write_predictions
from llm_jax.scaling.report import write_report
from llm_jax.scaling.task_links import QUANTITIES, TaskLinks, forecast, link_tasks, score_column, task_columns


def finish_grid(grid: Grid, folder: Path, rows: list[Row], log: Callable[[str], None]) -> None:
    """Compares held-out runs with their predictions, fits runs.csv by the grid's method, and writes fit.json
    and report.html.

    A fit or report that is impossible is logged in a line and raises nothing: the runs and their table are
    kept.
    """
    compare_predictions(folder, rows, log)
    fit: Any = None
    notes: list[str] = []
    if grid.method:
        try:
            fit, notes = fit_runs(grid, folder)
            print_fit(fit, notes)
        except UserError as error:
            log(f"no fit (method={grid.method}): {error}")
    try:
        page = write_report(
            folder / "runs.csv",
            folder,
            fit=fit,
            notes=notes,
            method=grid.method,
            convention=grid.convention,
            strict=False,
        )
        log(f"report: {page}")
    except UserError as error:
        log(f"no report: {error}")


def fit_runs(grid: Grid, folder: Path) -> tuple[Any, list[str]]:
    """The fit of runs.csv by the grid's method and convention, without held-out runs, and notes about the
    data."""
    method = METHODS[grid.method]
    columns, convention, notes = read_columns(
        folder / "runs.csv", {}, grid.convention, method.needs, method.may, method.spare
    )
    return method.fit(**columns, convention=convention), notes


def predict_held_out(
    grid: Grid, folder: Path, points: list[Point], rows: list[Row], log: Callable[[str], None]
) -> None:
    """Predicts the losses of held-out points, and their scores on the tasks of `evaluate.tasks`, from the
    finished runs, and writes prediction.json.

    The law is L = E + A/N^alpha + B/D^beta, fitted to all finished runs (`rows`). The 95 % interval is that
    of the law, from resamples; the noise of a single run (its seed) comes on top. Points that have a
    prediction, or have begun to train, are left as they are.
    """
    hashes = {point.name: point.hash for point in points}
    # A prediction for another configuration of this name, from before the experiment was changed, belongs to
    # no run any more.
    predictions = {
        name: entry
        for name, entry in read_predictions(folder).items()
        if hashes.get(name, entry["hash"]) == entry["hash"]
    }
    new = [
        p
        for p in points
        if p.name not in predictions
        and p.experiment
        and not (Path(p.experiment.run_dir) / "metrics.jsonl").exists()
    ]
    if not new:
        return
    used = [row for row in rows if row["status"] == "finished" and row["eval_loss"] is not None]
    column = accounting.columns(grid.convention)[0]
    try:
        law = parametric(
            [row[column] for row in used], [row["tokens"] for row in used], [row["eval_loss"] for row in used]
        )
    except UserError as error:
        log(f"held-out runs can't be predicted: {error}")
        return
    links = links_of(used, log)
    for point in new:
        assert point.experiment
        n, d = accounting.parameters(point.experiment.model)[column], point.tokens
        expected = float(law.law.loss(n, d))
        draws = expected + law.widening * (law.law_draws.loss(n, d) - expected)
        low, high = (float(np.percentile(draws, q)) for q in (2.5, 97.5))
        largest = max(row["flops_exact"] for row in used)
        predictions[point.name] = {
            "hash": point.hash, "parameters": n, "tokens": d, "convention": grid.convention,
            "flops_exact": point.cost,
            "from_runs": len(used), "largest_flops_of_them": largest,
            "predicted": expected, "interval_95": [low, high], "law": law.parameters,
        }  # fmt: skip
        log(
            f"predicted: {point.name}, {short(n)} parameters, {short(d)} tokens, "
            f"{point.cost / largest:.1f} times the FLOPs of the largest run: "
            f"held-out loss {expected:.4f} ({low:.4f} to {high:.4f})"
        )
        for link in links:
            scores = forecast(link, expected, draws)
            predictions[point.name].setdefault("tasks", {})[link.task] = {
                quantity: {"predicted": one.predicted, "interval_95": list(one.interval_95)}
                for quantity, one in scores.items()
            }
            for quantity, one in scores.items():
                log(
                    f"predicted: {point.name}, {link.task}: {QUANTITIES[quantity]} {one.predicted:.4f} "
                    f"({one.interval_95[0]:.4f} to {one.interval_95[1]:.4f})"
                )
    write_predictions(folder, predictions)


def links_of(rows: list[Row], log: Callable[[str], None]) -> list[TaskLinks]:
    """The links from loss to tasks of finished runs; logs why a task has none."""
    import pandas as pd

    names = dict.fromkeys(name for row in rows for name in task_columns(row))
    scores = pd.DataFrame(rows, columns=list(names))
    links = link_tasks(scores, [row["eval_loss"] for row in rows], [row["name"] for row in rows])
    for link in links:
        for quantity, why in link.refused.items():
            log(f"no forecast of {link.task}'s {QUANTITIES[quantity]}: {why}")
    return links


def compare_predictions(folder: Path, rows: list[Row], log: Callable[[str], None]) -> None:
    """Adds the measured loss and its difference to each prediction in prediction.json, and measured scores of
    tasks to their forecasts, and logs the relative error."""
    predictions = read_predictions(folder)
    finished = {row["hash"]: row for row in rows if row["status"] == "finished"}
    for name, entry in predictions.items():
        row = finished.get(entry["hash"], {})
        add_measured_scores(name, entry, row, log)
        loss = row.get("eval_loss")
        if loss is not None:
            entry |= {
                "measured": loss,
                "error": entry["predicted"] - loss,
                "relative_error": entry["predicted"] / loss - 1,
            }
            log(
                f"held-out run: {name}: predicted {entry['predicted']:.4f}, measured {loss:.4f}: "
                f"{entry['relative_error']:+.2%}"
            )
    if predictions:
        write_predictions(folder, predictions)


def add_measured_scores(
    name: str, entry: dict[str, Any], row: Row | dict[str, Any], log: Callable[[str], None]
) -> None:
    """Adds what a held-out run measured on tasks, from its row of the table, to their forecasts."""
    for task, forecasts in entry.get("tasks", {}).items():
        for quantity, one in forecasts.items():
            measured = row.get(score_column(task, quantity))
            if measured is None:
                continue
            one["measured"] = measured
            low, high = one["interval_95"]
            log(
                f"held-out run: {name}, {task}: {QUANTITIES[quantity]} predicted {one['predicted']:.4f}, "
                f"measured {measured:.4f}: {'inside' if low <= measured <= high else 'outside'} the interval"
            )
