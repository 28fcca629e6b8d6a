"""What a grid says when its runs are through: the fit, held-out runs foretold and compared, and the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.format import short
from llm_jax.model import accounting
from llm_jax.scaling.grid import Grid, Point, Row
from llm_jax.scaling.predictions import read_predictions, write_predictions


def conclude(grid: Grid, folder: Path, rows: list[Row], log: Callable[[str], None]) -> None:
    """Compares held-out runs with what was foretold, fits the table of runs as the grid says, and writes the report.

    What can't be fitted is said in a line, and is no failure: the runs are there.
    """
    compare(folder, rows, log)
    from llm_jax.scaling.fit.show import print_fit
    from llm_jax.scaling.report import write_report

    fit, notes = None, None
    if grid.method:
        try:
            fit, notes = fitted(grid, folder)
            print_fit(fit, notes)
        except UserError as error:
            log(f"no fit (method={grid.method}): {error}")
    try:
        page = write_report(folder / "runs.csv", folder, fit=fit, notes=notes, method=grid.method, convention=grid.convention, insist=False)
        log(f"report: {page}")
    except UserError as error:
        log(f"no report: {error}")


def fitted(grid: Grid, folder: Path) -> tuple[Any, list[str]]:
    """The fit of runs.csv by the grid's method and convention, and notes about the data. Held-out runs are not in it."""
    from llm_jax.scaling.fit.methods import METHODS
    from llm_jax.scaling.fit.table import read

    method = METHODS[grid.method]
    columns, convention, notes = read(folder / "runs.csv", {}, grid.convention, method.needs, method.may)
    return method.fit(**columns, convention=convention), notes


def predict(grid: Grid, folder: Path, points: list[Point], rows: list[Row], log: Callable[[str], None]) -> None:
    """Writes down what the other runs say of held-out ones, before these have done a step: prediction.json.

    The law is L = E + A/N^alpha + B/D^beta through all finished runs. Its interval is that of the law, from resamples; a single run's
    luck (its seed) comes on top. Points that have been foretold before, or have begun, are left as they are.
    """
    from llm_jax.scaling import fit

    hashes = {point.name: point.hash for point in points}
    # What was said of another configuration of that name, before the experiment was changed, is said of no run any more.
    told = {name: one for name, one in read_predictions(folder).items() if hashes.get(name, one["hash"]) == one["hash"]}
    new = [p for p in points if p.name not in told and p.experiment and not (Path(p.experiment.run_dir) / "metrics.jsonl").exists()]
    if not new:
        return
    used = [row for row in rows if row["status"] == "finished" and row["eval_loss"] is not None]
    column = accounting.columns(grid.convention)[0]
    try:
        law = fit.parametric([row[column] for row in used], [row["tokens"] for row in used], [row["eval_loss"] for row in used])
    except UserError as error:
        log(f"held-out runs can't be foretold: {error}")
        return
    for point in new:
        assert point.experiment
        n, d = accounting.parameters(point.experiment.model)[column], point.tokens
        expected = float(law.law.loss(n, d))
        spread = law.widening * (law.law_draws.loss(n, d) - expected)
        low, high = (expected + float(np.percentile(spread, q)) for q in (2.5, 97.5))
        largest = max(row["flops_exact"] for row in used)
        told[point.name] = {
            "hash": point.hash, "parameters": n, "tokens": d, "convention": grid.convention, "flops_exact": point.cost,
            "from_runs": len(used), "largest_flops_of_them": largest,
            "predicted": expected, "interval_95": [low, high], "law": law.parameters,
        }  # fmt: skip
        log(
            f"foretold: {point.name}, {short(n)} parameters, {short(d)} tokens, {point.cost / largest:.1f} times the FLOPs of the largest run: "
            f"held-out loss {expected:.4f} ({low:.4f} to {high:.4f})"
        )
    write_predictions(folder, told)


def compare(folder: Path, rows: list[Row], log: Callable[[str], None]) -> None:
    """Adds to each prediction what was measured, and says how far it was off."""
    told = read_predictions(folder)
    measured = {row["hash"]: row["eval_loss"] for row in rows if row["status"] == "finished"}
    for name, one in told.items():
        loss = measured.get(one["hash"])
        if loss is not None:
            one |= {"measured": loss, "error": one["predicted"] - loss, "relative_error": one["predicted"] / loss - 1}
            log(f"held out: {name}: foretold {one['predicted']:.4f}, measured {loss:.4f}: {one['relative_error']:+.2%}")
    if told:
        write_predictions(folder, told)
