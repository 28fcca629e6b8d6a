"""A table of runs, ours or somebody else's, as the columns that a fit needs."""

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
"""What a table's columns can be mapped to."""


def read(
    path: Path, mapping: Mapping[str, str], convention: str, needs: tuple[str, ...], may: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """The columns [n] by our names, the convention of N and FLOPs, and lines about what was assumed or left out.

    `mapping` is {ours: theirs}; what it leaves open is looked for by the names of a table of our runs. Raises UserError for what
    is not there.
    """
    table = load(path)
    said: list[str] = []
    for ours, theirs in mapping.items():
        if ours not in NAMES:
            raise UserError(f"columns.{ours}={theirs}: there is no column {ours!r}; {nearest(ours, NAMES)}")
        if theirs not in table:
            raise UserError(f"columns.{ours}={theirs}: {path.name} has no such column; {nearest(theirs, map(str, table.columns))}")
    table = finished(table, said)
    names, convention = own_names(table, convention, said)
    names |= mapping
    wanted = [name for name in (*needs, *may) if name in names]
    found = {name: table[names[name]] for name in {*wanted, *(name for name in ("parameters", "tokens", "flops") if name in names)}}
    derive(found, (*needs, *may), said)
    for name in needs:
        if name not in found:
            raise UserError(
                f"columns.{name}: {path.name} has no column for it; give it as columns.{name}=NAME (it has {', '.join(map(str, table.columns))})"
            )
    return numbers({name: found[name] for name in (*needs, *may) if name in found}, path, said), convention, said


def load(path: Path, key: str = "data") -> pd.DataFrame:
    """A .csv or .parquet. Raises UserError, naming the key that gave the path, for what can't be read."""
    import pandas as pd

    if not path.is_file():
        raise UserError(f"{key}={path}: there is no such file")
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{key}={path}: must be a .csv or a .parquet")
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:
        raise UserError(f"{key}={path}: not a table ({' '.join(str(error).split())[:200]})") from error
    if table.empty:
        raise UserError(f"{key}={path}: has no rows")
    return table


def finished(table: pd.DataFrame, said: list[str]) -> pd.DataFrame:
    """Without runs that did not finish, and without those that the grid holds out of fits."""
    if "status" in table:
        done = table["status"] == "finished"
        if not done.all():
            said.append(f"{(~done).sum()} of {len(table)} runs left out: " + counts(table["status"][~done]))
        if not done.any():
            raise UserError(f"status: the table has no run that is finished, but {counts(table['status'].fillna('without a status'))}")
        table = table[done]
    if "held_out" in table:
        out = table["held_out"].astype(str).str.lower().isin(("true", "1", "1.0"))
        if out.any():
            said.append(f"left out: {out.sum()} held out by the grid, to be foretold")
        table = table[~out]
        if table.empty:
            raise UserError("held_out: every finished run of the table is held out of fits")
    return table


def counts(values: pd.Series) -> str:
    """How often each value is there: "3 diverged, 1 failed"."""
    return ", ".join(f"{count} {value}" for value, count in values.value_counts().items())


def own_names(table: pd.DataFrame, convention: str, said: list[str]) -> tuple[dict[str, str], str]:
    """Our names for the columns of a table of our own runs, under a convention; and the convention."""
    if convention:
        check_choice("convention", convention, CONVENTIONS)
    named = sorted({str(c) for c in table["convention"].dropna()} & set(CONVENTIONS)) if "convention" in table else []
    ours = "parameters_with_head" in table
    if not convention and ours:
        convention = named[0] if len(named) == 1 else "6nd_with_head"
    names = {name: name for name in NAMES if name in table}
    if convention:
        parameters, flops = CONVENTIONS[convention]
        for column in (parameters, flops):
            if column not in table:
                raise UserError(f"convention={convention}: the table has no column {column}; leave convention out and map columns instead")
        names |= {"parameters": parameters, "flops": flops}
        if named == [convention] and "flops_budget" in table and table["flops_budget"].notna().all():
            names["flops"] = "flops_budget"  # what the design meant: equal for all runs of a budget, which whole steps are not
        said.append(f"convention {convention}: N is {names['parameters']}, C is {names['flops']}")
    if "loss" not in names:
        for column in ("eval_loss", "train_loss"):
            if column in table and table[column].notna().any():
                names["loss"] = column
                said.append(f"loss is {column}")
                break
    return names, convention or "as given"


def derive(found: dict[str, pd.Series], wanted: tuple[str, ...], said: list[str]) -> None:
    """Adds what C = 6 N D gives where a column is missing. What is no number is left for `numbers` to complain of."""
    import pandas as pd

    number = {name: pd.to_numeric(values, errors="coerce") for name, values in found.items() if name in ("parameters", "tokens", "flops")}
    if "tokens" in wanted and "tokens" not in found and {"flops", "parameters"} <= set(found):
        found["tokens"] = number["flops"] / FLOPS_A_WEIGHT / number["parameters"]
        said.append("tokens are flops/(6 N): the table has no column of them")
    if "flops" in wanted and "flops" not in found and {"tokens", "parameters"} <= set(found):
        found["flops"] = FLOPS_A_WEIGHT * number["parameters"] * number["tokens"]
        said.append("flops are 6 N D: the table has no column of them")


def numbers(found: dict[str, pd.Series], path: Path, said: list[str]) -> dict[str, np.ndarray]:
    """The columns as float64, without rows that have a gap. Raises UserError for a column that is no numbers."""
    import pandas as pd

    arrays = {}
    for name, values in found.items():
        if name == "run":
            arrays[name] = values.astype(object).where(values.notna(), "").astype(str).to_numpy(str)
            continue
        try:
            arrays[name] = pd.to_numeric(values).to_numpy(np.float64)
        except (ValueError, TypeError) as error:
            raise UserError(f"columns.{name}={values.name}: {path.name} has something else than numbers there ({error})") from error
    gaps = np.any([values == "" if name == "run" else np.isnan(values) for name, values in arrays.items()], axis=0)
    if gaps.any():
        said.append(f"{gaps.sum()} of {len(gaps)} rows left out: a value is missing")
    if gaps.all():
        raise UserError(f"data={path}: no row has a value in each of {', '.join(arrays)}")
    return {name: values[~gaps] for name, values in arrays.items()}
