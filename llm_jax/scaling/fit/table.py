"""Reads a table of runs, ours or another project's, as the columns that a fit needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.config_tree import BOOLS
from llm_jax.core.errors import UserError, check_choice, nearest
from llm_jax.core.files import lfs_problem, text_problem
from llm_jax.core.format import counted
from llm_jax.model.accounting import CONVENTIONS
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT
from llm_jax.scaling.fit.table_checks import check_units, keep_best, note_repeats, note_schedules, questions

if TYPE_CHECKING:
    import pandas as pd

NAMES = (
    "parameters",
    "tokens",
    "flops",
    "loss",
    "unique_tokens",
    "accuracy",
    "run",
    "name",
    "seeds",
    "held_out",
)
"""Names that columns of a table can be mapped to."""
TEXTS = ("run", "name", "seeds")
"""Those that are no numbers."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (*SEPARATORS, ".jsonl", ".parquet", *(f"{kind}.gz" for kind in (*SEPARATORS, ".jsonl")))
"""The kinds of files that are read, by the end of their name."""
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
NUMBER = re.compile(r"([+-]?(?:\d{1,3}(?:[,_]\d{3})+|\d*)(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([kmgbtpez]?)", re.I)
YES = {
    **BOOLS,
    "y": True,
    "t": True,
    "1.0": True,
    "n": False,
    "f": False,
    "0.0": False,
    "": False,
    "nan": False,
}
"""The spellings of yes and no in a table; a gap is no."""


def read_columns(
    path: Path,
    mapping: Mapping[str, str],
    convention: str,
    needs: tuple[str, ...],
    may: tuple[str, ...],
    spare: tuple[str, ...] = (),
    best_of: tuple[str, ...] = (),
) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """The columns [n] by our names, the convention of N and FLOPs, and notes on what was assumed or left out.

    `mapping` is {our name: the table's name}; other columns are found by their names in a table of our runs.
    `needs` and `may` are the columns that a method needs, and those it can use; `spare` are those it uses
    where they have no gap. `best_of` are columns of the table, over which the run of lowest loss is kept.
    Raises UserError for a column that is missing.
    """
    table = load_table(path)
    notes: list[str] = []
    check_mapping(mapping, table, path)
    table = select_finished(table, notes, mapping.get("held_out", "held_out"))
    names, convention = column_names(table, convention, notes)
    names |= mapping
    if "seeds" not in names and "seed" in table:
        names["seeds"] = "seed"
    wanted = [*needs, *may, "parameters", "tokens", "flops", "unique_tokens", "loss"]
    found = {name: table[names[name]] for name in dict.fromkeys(wanted) if name in names}
    derive_columns(found, (*needs, *may), notes)
    for name in needs:
        if name not in found:
            raise UserError(
                f"columns.{name}: is missing, {path.name} has no column of this name. Add "
                f"columns.{name}=NAME, one of "
                f"{', '.join(map(str, table.columns))}."
            )
    arrays, whole = to_numbers(found, (*needs, *may), path, notes)
    table = table[whole]
    read = {name: arrays[name] for name in arrays if name in (*needs, *may)}
    check_units(read, names, table)
    notes += questions(read, names)
    if best_of:
        kept = keep_best(arrays, table, best_of, names, needs, notes)
        arrays, table = {name: values[kept] for name, values in arrays.items()}, table[kept]
    settings = note_repeats(arrays, table, names, needs, notes)
    note_schedules(table, notes)
    used = {name: arrays[name] for name in (*needs, *may) if name in arrays}
    for name in spare:
        if name == "name":
            used[name] = np.array(run_names(table, names.get(name, "name")))
        elif name == "seeds":
            if name in names and not settings and table[names[name]].notna().all():
                used[name] = table[names[name]].astype(str).to_numpy(str)
        elif name in arrays and np.isfinite(arrays[name]).all():
            used[name] = arrays[name]
    return used, convention, notes


def check_mapping(mapping: Mapping[str, str], table: pd.DataFrame, path: Path) -> None:
    """Raises UserError for a mapping of or to a column that there is not."""
    for ours, theirs in mapping.items():
        if ours not in NAMES:
            raise UserError(f"columns.{ours}={theirs}: there is no column {ours!r}; {nearest(ours, NAMES)}")
        if theirs not in table:
            raise UserError(
                f"columns.{ours}={theirs}: {path.name} has no such column; "
                f"{nearest(theirs, map(str, table.columns))}"
            )


def load_table(path: Path, key: str = "data") -> pd.DataFrame:
    """A table of one of the kinds `TABLES` as a data frame. Raises UserError, naming the key that gave the
    path, for a file that can't be read or is empty."""
    import pandas as pd

    if not path.is_file():
        raise UserError(f"{key}={path}: there is no such file. Give the path of a {' or '.join(TABLES)}.")
    if not path.name.endswith(TABLES):
        raise UserError(f"{key}={path}: must be one of {', '.join(TABLES)}")
    kind = next(suffix for suffix in path.suffixes[::-1] if suffix != ".gz")
    with path.open("rb") as file:
        start = file.read(64)
    text = kind != ".parquet" and path.suffix != ".gz"
    if problem := text_problem(start) if text else lfs_problem(start):
        raise UserError(f"{key}={path}: {problem}")
    twice: Any = ()  # titles that pandas would number
    try:
        if kind == ".parquet":
            table = pd.read_parquet(path)
        elif kind == ".jsonl":
            table = pd.read_json(path, lines=True, dtype=False, precise_float=True, encoding="utf-8-sig")
        else:
            titles = pd.read_csv(path, sep=SEPARATORS[kind], header=None, nrows=1, dtype=str)
            twice = titles.loc[0][titles.loc[0].duplicated()].dropna()
            table = pd.read_csv(path, sep=SEPARATORS[kind], skipinitialspace=True)
            table.columns = [str(title).strip() for title in table.columns]
    except Exception as error:
        raise UserError(f"{key}={path}: not a table ({' '.join(str(error).split())[:200]})") from error
    (first, *others) = map(str, table.columns)
    if not others and (wrong := next((mark for mark in (";", "\t", ",", "|") if mark in first), "")):
        raise UserError(
            f"{key}={path}: its first line, {first[:80]!r}, has {wrong!r} between the columns. Write commas "
            "in a .csv, and tabs in a .tsv."
        )
    if len(twice):
        raise UserError(f"{key}={path}: several columns are named {twice.iloc[0]}; rename all but one")
    if table.empty:
        raise UserError(f"{key}={path}: has no rows")
    return table.reset_index(drop=True)


def select_finished(table: pd.DataFrame, notes: list[str], held_out: str = "held_out") -> pd.DataFrame:
    """The table without runs that did not finish and without held-out runs, by the column of that name;
    appends to `notes` what was left out."""
    if (status := status_of(table)) is not None:
        done = status == "finished"
        if not done.all():
            gone = counts(status[~done].fillna("without a status"))
            notes.append(f"{(~done).sum()} of {len(table)} runs left out: {gone}")
        if not done.any():
            raise UserError(
                f"status: the table has no finished run, but {counts(status.fillna('without a status'))}"
            )
        table = table[done]
    if held_out in table:
        out = yes_or_no(table[held_out], held_out)
        if out.any():
            by = "by the grid" if "parameters_with_head" in table else f"by the column {held_out}"
            notes.append(f"left out: {counted(int(out.sum()), 'run')} held out {by}, to be predicted")
        table = table[~out]
        if table.empty:
            raise UserError(
                "held_out: every finished run of the table is held out of fits. Add runs with held_out=false"
            )
    return table


def status_of(table: pd.DataFrame) -> pd.Series | None:
    """The status of each run in small letters, from the column `status`, or one called state as other
    trackers have it, if that has finished runs; None without."""
    for column in map(str, table.columns):
        if column.lower() not in ("status", "state"):
            continue
        texts = table[column].where(table[column].isna(), table[column].astype(str).str.strip().str.lower())
        if column == "status" or (texts == "finished").any():
            return texts
    return None


def yes_or_no(values: pd.Series, column: str) -> pd.Series:
    """A column of booleans in any of the usual spellings, a gap as False. Raises UserError for another
    value."""
    texts = values.astype(object).where(values.notna(), "").astype(str).str.strip().str.lower()
    found = texts.map(YES)
    if found.isna().any():
        wrong = values[found.isna()].iloc[0]
        raise UserError(
            f"columns.held_out={column}: a value is {wrong!r}. Write true or false (or yes/no, 1/0); an "
            "empty cell is false."
        )
    return found.astype(bool)


def counts(values: pd.Series) -> str:
    """Counts of the values as text: "3 diverged, 1 failed"."""
    return ", ".join(f"{count} {value}" for value, count in values.value_counts().items())


def run_names(table: pd.DataFrame, column: str) -> list[str]:
    """What each run of a table is called: by a column of names, or by the number of its row in the file."""
    rows = [f"row {i + 1}" for i in table.index]
    if column not in table:
        return rows
    return [
        str(name) if (isinstance(name, str) and name) or (name == name and name is not None) else row
        for name, row in zip(table[column], rows, strict=True)
    ]


def column_names(table: pd.DataFrame, convention: str, notes: list[str]) -> tuple[dict[str, str], str]:
    """{our name: the table's name} for a table of our runs under a convention of N and FLOPs, and that
    convention.

    An empty `convention` is the one that the table names, else 6nd_with_head. Raises UserError where the
    table lacks its columns.
    """
    if convention:
        check_choice("convention", convention, CONVENTIONS)
    named = (
        sorted({str(c) for c in table["convention"].dropna()} & set(CONVENTIONS))
        if "convention" in table
        else []
    )
    ours = "parameters_with_head" in table
    if not convention and ours:
        convention = named[0] if len(named) == 1 else "6nd_with_head"
    names = {name: name for name in NAMES if name in table}
    if convention:
        parameters, flops = CONVENTIONS[convention]
        for column in (parameters, flops):
            if column not in table:
                raise UserError(
                    f"convention={convention}: the table has no column {column}. Leave convention= out "
                    "and map columns with columns.NAME=."
                )
        names |= {"parameters": parameters, "flops": flops}
        if named == [convention] and "flops_budget" in table and table["flops_budget"].notna().all():
            names["flops"] = (
                # the design's FLOPs: equal for all runs of a budget, unlike those of whole steps
                "flops_budget"
            )
        notes.append(f"convention {convention}: N is {names['parameters']}, C is {names['flops']}")
    if "loss" not in names:
        for column in ("eval_loss", "train_loss"):
            if column in table and table[column].notna().any():
                names["loss"] = column
                notes.append(f"loss is {column}")
                break
    return names, convention or "as given"


def derive_columns(found: dict[str, pd.Series], wanted: tuple[str, ...], notes: list[str]) -> None:
    """Adds missing tokens or flops to `found` by C = 6 N D, with a note. Cells that are no numbers become
    NaN: `to_numbers` raises for them."""
    number = {
        name: as_numbers(values)
        for name, values in found.items()
        if name in ("parameters", "tokens", "flops")
    }
    if "tokens" in wanted and "tokens" not in found and {"flops", "parameters"} <= set(found):
        found["tokens"] = number["flops"] / FLOPS_A_WEIGHT / number["parameters"]
        notes.append("tokens are flops/(6 N): the table has no column of them")
    if "flops" in wanted and "flops" not in found and {"tokens", "parameters"} <= set(found):
        found["flops"] = FLOPS_A_WEIGHT * number["parameters"] * number["tokens"]
        notes.append("flops are 6 N D: the table has no column of them")


def as_numbers(values: pd.Series) -> pd.Series:
    """A column as float64, also of texts such as 31M, 1.3B, 1,234 or 2e9; what is no number is NaN."""
    import pandas as pd

    found = pd.to_numeric(values, errors="coerce").astype(np.float64)
    rest = found.isna() & values.notna()
    if rest.any():
        found = found.where(~rest, values.where(rest).map(number_of, na_action="ignore").astype(np.float64))
    return found


def number_of(text: Any) -> float:
    """A number as people write it; NaN if it is none.

    >>> number_of("31M"), number_of("1,234"), number_of("1.3 B"), number_of("12,5"), number_of("big")
    (31000000.0, 1234.0, 1300000000.0, nan, nan)
    """
    matched = NUMBER.fullmatch(str(text).strip())
    try:
        return float(re.sub("[,_]", "", matched[1])) * UNITS[matched[2].lower()] if matched else np.nan
    except ValueError:
        return np.nan


def to_numbers(
    found: dict[str, pd.Series], needed: tuple[str, ...], path: Path, notes: list[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns as float64 [n] (run: as text), without rows that have a gap in a needed one; and which rows
    of the table these are, bool. Raises UserError for a column that isn't numeric."""
    arrays: dict[str, np.ndarray] = {}
    for name, values in found.items():
        if name in TEXTS:
            arrays[name] = values.astype(object).where(values.notna(), "").astype(str).to_numpy(str)
            continue
        numbers = as_numbers(values)
        wrong = (
            numbers.isna() & values.notna() & ~values.astype(str).str.strip().str.lower().isin(("", "nan"))
        )
        if wrong.any() and name in needed:
            row = wrong.idxmax()
            raise UserError(
                f"columns.{name}={values.name}: {path.name} has something else than numbers in this "
                f"column ({values[row]!r} in row {row + 1})"
            )
        arrays[name] = numbers.to_numpy(np.float64)
    gaps = np.any(
        [
            values == "" if name in TEXTS else ~np.isfinite(values)
            for name, values in arrays.items()
            if name in needed
        ],
        axis=0,
    )
    if gaps.any():
        notes.append(f"{gaps.sum()} of {len(gaps)} rows left out: a value is missing, or not finite")
    if gaps.all():
        raise UserError(
            f"data={path}: no row has a value in each of {', '.join(n for n in arrays if n in needed)}"
        )
    return {name: values[~gaps] for name, values in arrays.items()}, ~gaps
