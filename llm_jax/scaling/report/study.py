"""The data of a report: the runs of a table, the fits to them, and predictions of held-out runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.format import counted
from llm_jax.model.accounting import CONVENTIONS
from llm_jax.scaling.fit import IsoflopFit, Minimum, ParametricFit
from llm_jax.scaling.fit.approach2 import LOSS_NOISE
from llm_jax.scaling.fit.methods import METHODS
from llm_jax.scaling.fit.minima import budget_numbers, find_minimum, leave_out_outliers, make_budget
from llm_jax.scaling.fit.result import columns as check_columns
from llm_jax.scaling.fit.table import (
    as_numbers,
    check_mapping,
    column_names,
    derive_columns,
    load_table,
    read_columns,
    run_names,
    select_finished,
    status_of,
    yes_or_no,
)
from llm_jax.scaling.fit.table_checks import keep_best
from llm_jax.scaling.predictions import read_predictions
from llm_jax.scaling.task_links import TaskLinks, link_tasks, task_columns

if TYPE_CHECKING:
    import pandas as pd

PAIRED_METHODS = ("isoflop", "parametric")
"""Methods that a report compares: if one is requested, the other is tried too."""
SHARED_OPTIONS = ("bootstrap", "seed")
"""Options of the requested method that its pair is given too."""
REFIT_BOOTSTRAP = 200
"""Resamples of each refit under another convention of N."""
NUMBERS = ("parameters", "tokens", "flops", "loss")
COLUMNS = (*NUMBERS, "unique_tokens", "accuracy")
WHAT_N_COUNTS = {
    "6nd": "all weights, embeddings included",
    "6nd_non_embedding": "all weights but the embeddings, an untied head among these",
    "6nd_with_head": "all weights that a token is multiplied with: no embeddings, but the head, tied or not",
    "exact": "all weights that a token is multiplied with: no embeddings, but the head, tied or not",
}
WHAT_C_COUNTS = {
    "exact": "6 FLOPs for each weight of a matrix product, head included, and causal attention's products"
}


@dataclass(frozen=True)
class Study:
    """The data of a report: table, runs, fits and predictions."""

    data: Path
    """The file of the table of runs."""
    table: pd.DataFrame
    """The table of runs, unchanged."""
    runs: pd.DataFrame
    """A row for each row of the table: parameters, tokens, flops, loss, unique_tokens, accuracy (in
    `convention`; NaN where unknown), name, status, reason, held_out, run_dir, aside (not the best, by
    `best_of`)."""
    convention: str
    """The convention of N and FLOPs."""
    notes: list[str]
    """Notes on what was assumed or left out of the data."""
    requested: str
    """The requested method; empty: none in particular."""
    fits: dict[str, Any]
    """Method → its result. Empty for a table that is only a sweep."""
    refusals: dict[str, str]
    """Method → why it has no fit."""
    minima: tuple[Minimum, ...]
    """The minima of the IsoFLOP curves, even if too few for a line; empty where the runs have no common
    budgets."""
    points: Mapping[str, np.ndarray]
    """The runs of the IsoFLOP curves: parameters, loss, budget."""
    predictions: dict[str, dict[str, Any]]
    """Name of a held-out run → its prediction from before training, and its measured loss."""
    tasks: list[TaskLinks] = field(default_factory=list)
    """The links from loss to each task that the table has scores of."""
    other_conventions: dict[str, ParametricFit] = field(default_factory=dict)
    """Convention → the law refitted with N counted by it."""

    @property
    def main(self) -> Any:
        """The requested fit, or else the first one; None without fits."""
        return next(iter(self.fits.values()), None)

    def rows(self, count: int) -> str:
        """A number of rows in words: runs, or points of training curves where the fit is of curves."""
        main = self.main
        if main is None or main.method != "envelope":
            return counted(count, "run")
        return f"{counted(count, 'point')} of {counted(main.settings['runs'], 'training curve')}"

    def file_of(self, method: str) -> str:
        """The file name of a method's fit."""
        return "fit.json" if method == (self.requested or next(iter(self.fits))) else f"fit_{method}.json"

    @property
    def isoflop(self) -> IsoflopFit | None:
        """The fit by approach 2, if there is one."""
        return self.fits.get("isoflop")

    @property
    def parametric(self) -> ParametricFit | None:
        """The fit by approach 3, if there is one."""
        return self.fits.get("parametric")

    @property
    def law(self) -> Any:
        """The fit whose law predicts the loss (or accuracy) of a run: the requested one, or that of N and D;
        None without."""
        main = self.main
        return main if main is not None and main.method not in ("isoflop", "envelope") else self.parametric

    @property
    def finished(self) -> pd.DataFrame:
        """The finished runs that have all numbers that the fits need, including held-out ones."""
        runs = self.runs[self.runs.status == "finished"]
        needed = METHODS[self.main.method].needs if self.main is not None else NUMBERS
        return runs[runs[[name for name in needed if name in runs]].notna().all(axis=1)]

    @property
    def fitted(self) -> pd.DataFrame:
        """The finished runs that fits use: without held-out ones, and those that the main fit leaves out."""
        left_out = self.main.settings.get("left_out", []) if self.main is not None else []
        runs = self.finished
        return runs[~runs.held_out & ~runs.aside & ~runs.name.isin(left_out)]


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a table of runs is read and fitted for a report."""

    fit: Any = None
    """A result of fitting the table, to be reported as it is."""
    notes: list[str] = field(default_factory=list)
    """Notes on the data behind `fit`."""
    method: str = ""
    """The method to fit by, if there is no `fit`; empty: approaches 2 and 3 are both tried."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """{our column: the table's column}, for another project's table."""
    convention: str = ""
    """The convention of N and FLOPs (as in `llm_jax.scaling.fit`); empty: the table's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method."""
    best_of: tuple[str, ...] = ()
    """Columns over which the run of lowest loss is kept."""
    strict: bool = True
    """Whether an error of the requested method is raised; if not, the report has it as the reason why there
    is no fit."""


def make_study(data: Path, how: StudyOptions) -> Study:
    """Reads the table and fits it by the requested method, and by its pair (approach 2 or 3).

    Raises UserError where the table can't be read, and, if `how.strict`, where the requested method has no
    fit.
    """
    mapping, convention = dict(how.mapping), how.convention
    table = load_table(data)
    table_notes: list[str] = []
    check_mapping(mapping, table, data)
    held_out = mapping.get("held_out", "held_out")
    names, known = column_names(select_finished(table, table_notes, held_out), convention, table_notes)
    runs = numeric_runs(table, names | mapping, how.best_of)
    requested = how.fit.method if how.fit else how.method
    fits = {requested: how.fit} if how.fit else {}
    refusals: dict[str, str] = {}
    fit_notes = list(how.notes)
    for name in dict.fromkeys(
        [requested or PAIRED_METHODS[0], *(PAIRED_METHODS if requested in ("", *PAIRED_METHODS) else ())]
    ):
        if name in fits:
            continue
        own = (
            how.options
            if name == requested
            else {key: how.options[key] for key in SHARED_OPTIONS if how.options.get(key)}
        )
        try:
            fits[name], more = fit_table(data, name, mapping, convention, own, how.best_of)
        except UserError as error:
            if name == requested and how.strict:
                raise
            refusals[name] = str(error)
            continue
        fit_notes += [note for note in more if note not in fit_notes]
    minima, points = budget_curves(fits.get("isoflop"), runs)
    return Study(
        data=data,
        table=table,
        runs=runs,
        convention=known,
        notes=fit_notes or table_notes,
        requested=requested,
        fits=fits,
        refusals=refusals,
        minima=minima,
        points=points,
        predictions=read_predictions(data.parent),
        tasks=task_links(table, runs),
        other_conventions=refit_conventions(data, table, mapping, known, fits.get("parametric"), how.best_of),
    )


def task_links(table: pd.DataFrame, runs: pd.DataFrame) -> list[TaskLinks]:
    """The links from loss to tasks of the finished runs that are not held out."""
    used = ((runs.status == "finished") & ~runs.held_out & runs.loss.notna()).to_numpy()
    scores = table[task_columns(table.columns)].loc[used].apply(as_numbers)
    return link_tasks(scores, runs.loss[used], runs.name[used])


def fit_table(
    data: Path,
    name: str,
    mapping: Mapping[str, str],
    convention: str,
    options: Mapping[str, Any],
    best_of: tuple[str, ...] = (),
) -> tuple[Any, list[str]]:
    """Fits the table by a method; also returns notes on the data. Raises UserError where the method has no
    fit."""
    method = METHODS[name]
    columns, convention, notes = read_columns(
        data, mapping, convention, method.needs, method.may, method.spare, best_of
    )
    return method.fit(**columns, **options, convention=convention), notes


def numeric_runs(
    table: pd.DataFrame, names: Mapping[str, str], best_of: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Every run of the table with its numbers for fits (NaN where unknown), including runs that no fit uses;
    as `Study.runs`."""
    import pandas as pd

    found = {name: as_numbers(table[names[name]]) for name in COLUMNS if name in names}
    found = {name: v if name == "accuracy" else v.where(v > 0) for name, v in found.items()}
    derive_columns(found, NUMBERS, [])
    runs = pd.DataFrame({name: found.get(name, pd.Series(np.nan, table.index)) for name in COLUMNS})
    status = status_of(table)
    runs["status"] = "finished" if status is None else status.astype(object).where(status.notna(), "unknown")
    for name, default in (("reason", ""), ("run_dir", "")):
        runs[name] = (
            table[name].astype(object).where(table[name].notna(), default).astype(str)
            if name in table
            else default
        )
    runs["name"] = run_names(table, names.get("name", "name"))
    held_out = names.get("held_out", "held_out")
    runs["held_out"] = yes_or_no(table[held_out], held_out) if held_out in table else False
    runs["aside"] = False
    if best_of:
        there = ((runs.status == "finished") & ~runs.held_out & runs.loss.notna()).to_numpy()
        arrays = {name: runs[name].to_numpy()[there] for name in NUMBERS if runs[name][there].notna().all()}
        runs.loc[there, "aside"] = ~keep_best(arrays, table[there], best_of, names, (), [])
    return runs


def budget_curves(
    fit: IsoflopFit | None, runs: pd.DataFrame
) -> tuple[tuple[Minimum, ...], Mapping[str, np.ndarray]]:
    """The minima and points of the IsoFLOP curves: the fit's, or without a fit (e.g. too many minima on an
    edge) those that there are."""
    if fit:
        return fit.minima, fit.points
    used = runs[(runs.status == "finished") & ~runs.held_out & ~runs.aside].dropna(subset=list(NUMBERS))
    try:
        table = check_columns(**{name: used[name] for name in NUMBERS})
        if not len(used):
            return (), {}
        numbers = budget_numbers(table["flops"])
    except UserError:
        return (), {}
    budgets = [make_budget(table, numbers == i) for i in range(numbers.max() + 1)]
    if sum(len(budget.loss) >= 3 for budget in budgets) < 2:
        return (), {}
    budgets, out = leave_out_outliers(budgets, LOSS_NOISE)
    rng = np.random.default_rng(0)
    minima = tuple(find_minimum(budget, "akima", 25, LOSS_NOISE, 1000, "noise", rng)[0] for budget in budgets)
    kept = ~np.isin(np.arange(len(numbers)), [row for row, _ in out])
    return minima, {**table, "budget": numbers, "used": kept}


def refit_conventions(
    data: Path,
    table: pd.DataFrame,
    mapping: Mapping[str, str],
    convention: str,
    fit: ParametricFit | None,
    best_of: tuple[str, ...],
) -> dict[str, ParametricFit]:
    """Convention → the law fitted with N and C = 6 N D by that convention, for the other conventions whose
    columns the table has."""
    if fit is None or convention not in CONVENTIONS or {"parameters", "flops"} & set(mapping):
        return {}
    kept = ("residuals", "delta", "tied", "drop_highest_losses", "floor", "outliers")
    settings = {key: fit.settings[key] for key in kept}
    counted, found = {CONVENTIONS[convention][0]}, {}
    for name, (parameters, flops) in CONVENTIONS.items():
        if parameters in counted or parameters not in table or flops not in table:
            continue
        counted.add(parameters)
        try:
            found[name], _ = fit_table(
                data, "parametric", mapping, name, {**settings, "bootstrap": REFIT_BOOTSTRAP}, best_of
            )
        except UserError:
            continue  # the page has no row of this convention
    return found
