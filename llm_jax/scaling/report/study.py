"""What a report is about: the runs of a table, the fits through them, and what was foretold of runs that are not in the fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.format import counted
from llm_jax.model.accounting import CONVENTIONS
from llm_jax.scaling.fit import IsoflopFit, Minimum, ParametricFit, approach2
from llm_jax.scaling.fit.methods import METHODS
from llm_jax.scaling.fit.result import columns as checked
from llm_jax.scaling.fit.table import column_names, derive_columns, load_table, read_columns, select_finished
from llm_jax.scaling.predictions import read_predictions

if TYPE_CHECKING:
    import pandas as pd

COMPANIONS = ("isoflop", "parametric")
"""Fits that a report shows beside each other: if one is asked for, the other is tried."""
SHARED_OPTIONS = ("bootstrap", "seed")
"""Options that the other fit is given too."""
REFIT_BOOTSTRAP = 200
"""Resamples of the refits under other conventions."""
NUMBERS = ("parameters", "tokens", "flops", "loss")
WHAT_N_COUNTS = {
    "6nd": "all weights, embeddings included",
    "6nd_non_embedding": "all weights but the embeddings, an untied head among these",
    "6nd_with_head": "all weights that a token is multiplied with: no embeddings, but the head, tied or not",
    "exact": "all weights that a token is multiplied with: no embeddings, but the head, tied or not",
}
WHAT_C_COUNTS = {"exact": "6 FLOPs for each weight of a matrix product, head included, and causal attention's products"}


@dataclass(frozen=True)
class Study:
    """All that a report shows."""

    data: Path
    table: pd.DataFrame
    """The table of runs as it is."""
    runs: pd.DataFrame
    """A row each, in the same order: parameters, tokens, flops, loss (in `convention`; NaN where unknown), name, status, reason,
    held_out, run_dir."""
    convention: str
    notes: list[str]
    """What was assumed or left out."""
    asked: str
    """The method that was asked for; empty: none in particular."""
    fits: dict[str, Any]
    """By method. Empty for a table that is no more than a sweep."""
    refused: dict[str, str]
    """Why a method has no fit."""
    minima: tuple[Minimum, ...]
    """Of the IsoFLOP curves, also where these are too few for a line; empty where there are no such budgets."""
    points: Mapping[str, np.ndarray]
    """The runs of these curves: parameters, loss, budget."""
    foretold: dict[str, dict[str, Any]]
    """By run: what was predicted of it before it was trained, and what was measured."""
    other_conventions: dict[str, ParametricFit] = field(default_factory=dict)
    """The law refitted with N counted otherwise."""

    @property
    def main(self) -> Any:
        """The fit that was asked for, or the first that there is; None where there is none."""
        return next(iter(self.fits.values()), None)

    def rows(self, count: int) -> str:
        """So many rows of the table, in words: runs, or points of training curves where the fit is of these."""
        main = self.main
        if main is None or main.method != "envelope":
            return counted(count, "run")
        return f"{counted(count, 'point')} of {counted(main.settings['runs'], 'training curve')}"

    def file_of(self, method: str) -> str:
        """The file of a fit."""
        return "fit.json" if method == (self.asked or next(iter(self.fits))) else f"fit_{method}.json"

    @property
    def isoflop(self) -> IsoflopFit | None:
        """Approach 2."""
        return self.fits.get("isoflop")

    @property
    def parametric(self) -> ParametricFit | None:
        """Approach 3."""
        return self.fits.get("parametric")

    @property
    def done(self) -> pd.DataFrame:
        """The runs that finished and have all numbers, held-out ones among them."""
        runs = self.runs[self.runs.status == "finished"]
        return runs[runs[list(NUMBERS)].notna().all(axis=1)]

    @property
    def fitted(self) -> pd.DataFrame:
        """Those of them that fits may see."""
        return self.done[~self.done.held_out]


def make_study(
    data: Path,
    *,
    fit: Any = None,
    notes: list[str] | None = None,
    method: str = "",
    mapping: Mapping[str, str] | None = None,
    convention: str = "",
    options: Mapping[str, Any] | None = None,
    insist: bool = True,
) -> Study:
    """Reads the table and fits it: by `method` with `options`, or takes a `fit` of it that is there already; and by the companion.

    Without a method both are tried. Raises UserError where the table can't be read, and, if we `insist`, where the method refuses.
    """
    mapping, options = dict(mapping or {}), dict(options or {})
    table = load_table(data)
    said: list[str] = []
    names, known = column_names(select_finished(table, said), convention, said)
    runs = numbers_of(table, names | mapping)
    asked = fit.method if fit else method
    fits = {asked: fit} if fit else {}
    refused: dict[str, str] = {}
    heard = list(notes or [])
    for name in dict.fromkeys([asked or COMPANIONS[0], *(COMPANIONS if asked in ("", *COMPANIONS) else ())]):
        if name in fits:
            continue
        own = options if name == asked else {key: options[key] for key in SHARED_OPTIONS if key in options}
        try:
            fits[name], told = one_fit(data, name, mapping, convention, own)
        except UserError as error:
            if name == asked and insist:
                raise
            refused[name] = str(error)
            continue
        heard += [line for line in told if line not in heard]
    minima, points = budget_curves(fits.get("isoflop"), runs)
    return Study(
        data=data,
        table=table,
        runs=runs,
        convention=known,
        notes=heard or said,
        asked=asked,
        fits=fits,
        refused=refused,
        minima=minima,
        points=points,
        foretold=read_predictions(data.parent),
        other_conventions=refits(data, table, mapping, known, fits.get("parametric")),
    )


def one_fit(data: Path, name: str, mapping: Mapping[str, str], convention: str, options: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The table's fit by a method, and what was assumed."""
    method = METHODS[name]
    columns, convention, said = read_columns(data, mapping, convention, method.needs, method.may)
    return method.fit(**columns, **options, convention=convention), said


def numbers_of(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Every run with the numbers that fits use, the ones that no fit sees among them."""
    import pandas as pd

    found = {name: pd.to_numeric(table[names[name]], errors="coerce") for name in NUMBERS if name in names}
    derive_columns(found, NUMBERS, [])
    runs = pd.DataFrame({name: found.get(name, pd.Series(np.nan, table.index)) for name in NUMBERS})
    for name, default in (("status", "finished"), ("reason", ""), ("run_dir", ""), ("held_out", "")):
        runs[name] = table[name].astype(object).where(table[name].notna(), default).astype(str) if name in table else default
    runs["name"] = table["name"].astype(str) if "name" in table else [f"row {i + 1}" for i in range(len(table))]
    runs["held_out"] = runs.held_out.str.lower().isin(("true", "1", "1.0"))
    return runs


def budget_curves(fit: IsoflopFit | None, runs: pd.DataFrame) -> tuple[tuple[Minimum, ...], Mapping[str, np.ndarray]]:
    """The IsoFLOP curves: the fit's, or where it refused (too many minima on an edge, say) those that there are."""
    if fit:
        return fit.minima, fit.points
    used = runs[(runs.status == "finished") & ~runs.held_out].dropna(subset=list(NUMBERS))
    try:
        table = checked(**{name: used[name] for name in NUMBERS})
        if not len(used):
            return (), {}
        numbers = approach2.budget_numbers(table["flops"])
    except UserError:
        return (), {}
    budgets = [approach2.make_budget(table, numbers == i) for i in range(numbers.max() + 1)]
    if sum(len(budget.loss) >= 3 for budget in budgets) < 2:
        return (), {}
    rng = np.random.default_rng(0)
    minima = tuple(approach2.find_minimum(budget, "akima", 25, 0.002, 1000, "noise", rng)[0] for budget in budgets)
    return minima, {**table, "budget": numbers}


def refits(data: Path, table: pd.DataFrame, mapping: Mapping[str, str], convention: str, fit: ParametricFit | None) -> dict[str, ParametricFit]:
    """The same law with N counted otherwise, where the table has these counts. C is 6 N D with the same N."""
    if fit is None or convention not in CONVENTIONS or {"parameters", "flops"} & set(mapping):
        return {}
    taken = {key: fit.settings[key] for key in ("residuals", "delta", "tied", "drop_highest_losses")}
    seen, found = {CONVENTIONS[convention][0]}, {}
    for name, (parameters, flops) in CONVENTIONS.items():
        if parameters in seen or parameters not in table or flops not in table:
            continue
        seen.add(parameters)
        try:
            found[name], _ = one_fit(data, "parametric", mapping, name, {**taken, "bootstrap": REFIT_BOOTSTRAP})
        except UserError:
            continue  # said in the page: the convention has no row
    return found
