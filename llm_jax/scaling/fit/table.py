"""Reads a table of runs, ours or another project's, as the columns that a fit needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_jax.core.errors import UserError, check_choice, nearest
from llm_jax.model.accounting import CONVENTIONS
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("parameters", "tokens", "flops", "loss", "unique_tokens", "accuracy", "run")
"""Names that columns of a table can be mapped to."""


def read_columns(
    path: Path, mapping: Mapping[str, str], convention: str, needs: tuple[str, ...], may: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """The columns [n] by our names, the convention of N and FLOPs, and notes on what was assumed or left out.

    `mapping` is {our name: the table's name}; other columns are found by their names in a table of our runs.
    `needs` and `may` are the columns that a method needs, and those it can use. Raises UserError for a column
    that is missing.
    """
    table = load_table(path)
    notes: list[str] = []
    for ours, theirs in mapping.items():
        if ours not in NAMES:
            raise UserError(f"columns.{ours}={theirs}: there is no column {ours!r}; {nearest(ours, NAMES)}")
        if theirs not in table:
            raise UserError(
                f"columns.{ours}={theirs}: {path.name} has no such column; "
                f"{nearest(theirs, map(str, table.columns))}"
            )
    table = select_finished(table, notes)
    names, convention = column_names(table, convention, notes)
    names |= mapping
    wanted = [name for name in (*needs, *may) if name in names]
    found = {
        name: table[names[name]]
        for name in {*wanted, *(name for name in ("parameters", "tokens", "flops") if name in names)}
    }
    derive_columns(found, (*needs, *may), notes)
    for name in needs:
        if name not in found:
            raise UserError(
                f"columns.{name}: is missing, {path.name} has no column of this name. Add "
                f"columns.{name}=NAME, one of "
                f"{', '.join(map(str, table.columns))}."
            )
    return (
        to_numbers({name: found[name] for name in (*needs, *may) if name in found}, path, notes),
        convention,
        notes,
    )


def load_table(path: Path, key: str = "data") -> pd.DataFrame:
    """A .csv or .parquet as a data frame. Raises UserError, naming the key that gave the path, for a file
    that can't be read or is empty."""
    import pandas as pd

    if not path.is_file():
        raise UserError(f"{key}={path}: there is no such file. Give the path of a .csv or .parquet.")
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{key}={path}: must be a .csv or a .parquet")
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:
        raise UserError(f"{key}={path}: not a table ({' '.join(str(error).split())[:200]})") from error
    if table.empty:
        raise UserError(f"{key}={path}: has no rows")
    return table


def select_finished(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The table without runs that did not finish and without held-out runs; appends to `notes` what was left
    out."""
    if "status" in table:
        done = table["status"] == "finished"
        if not done.all():
            notes.append(f"{(~done).sum()} of {len(table)} runs left out: " + counts(table["status"][~done]))
        if not done.any():
            raise UserError(
                "status: the table has no finished run, but "
                f"{counts(table['status'].fillna('without a status'))}"
            )
        table = table[done]
    if "held_out" in table:
        out = table["held_out"].astype(str).str.lower().isin(("true", "1", "1.0"))
        if out.any():
            notes.append(f"left out: {out.sum()} held out by the grid, to be predicted")
        table = table[~out]
        if table.empty:
            raise UserError(
                "held_out: every finished run of the table is held out of fits. Add runs with held_out=false"
            )
    return table


def counts(values: pd.Series) -> str:
    """Counts of the values as text: "3 diverged, 1 failed"."""
    return ", ".join(f"{count} {value}" for value, count in values.value_counts().items())


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
    import pandas as pd

    number = {
        name: pd.to_numeric(values, errors="coerce")
        for name, values in found.items()
        if name in ("parameters", "tokens", "flops")
    }
    if "tokens" in wanted and "tokens" not in found and {"flops", "parameters"} <= set(found):
        found["tokens"] = number["flops"] / FLOPS_A_WEIGHT / number["parameters"]
        notes.append("tokens are flops/(6 N): the table has no column of them")
    if "flops" in wanted and "flops" not in found and {"tokens", "parameters"} <= set(found):
        found["flops"] = FLOPS_A_WEIGHT * number["parameters"] * number["tokens"]
        notes.append("flops are 6 N D: the table has no column of them")


def to_numbers(found: dict[str, pd.Series], path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    """The columns as float64 [n] (run: as text), without rows that have a gap. Raises UserError for a column
    that isn't numeric."""
    import pandas as pd

    arrays = {}
    for name, values in found.items():
        if name == "run":
            arrays[name] = values.astype(object).where(values.notna(), "").astype(str).to_numpy(str)
            continue
        try:
            arrays[name] = pd.to_numeric(values).to_numpy(np.float64)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"columns.{name}={values.name}: {path.name} has something else than numbers in this "
                f"column ({error})"
            ) from error
    gaps = np.any(
        [values == "" if name == "run" else np.isnan(values) for name, values in arrays.items()], axis=0
    )
    if gaps.any():
        notes.append(f"{gaps.sum()} of {len(gaps)} rows left out: a value is missing")
    if gaps.all():
        raise UserError(f"data={path}: no row has a value in each of {', '.join(arrays)}")
    return {name: values[~gaps] for name, values in arrays.items()}
