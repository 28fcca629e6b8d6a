"""The parts that all fits share: checked columns, the fields of a result, and fit.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.arithmetic import finite
from llm_jax.core.errors import UserError
from llm_jax.core.files import write_atomic
from llm_jax.core.format import format_flops, short
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT

SEPARATE = 1.5
"""Runs with more than the largest compute divided by this count as the largest runs, which the extrapolation
test leaves out."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The fields that every method's result has; dicts are keyed by the names of the fitted parameters."""

    method: str
    """The method's name in `methods.METHODS`."""
    objective: float
    """The minimum that was found of what the method minimises."""
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    """From resamples; from the delta method where there are none."""
    intervals_95: dict[str, tuple[float, float]]
    """Percentiles of resamples; from the delta method where there are none."""
    covariance: np.ndarray
    """[P, P], by the delta method."""
    leave_largest_out: dict[str, Any]
    """Extrapolation test: the fit without the runs of the largest compute, against what these runs
    measured."""
    settings: dict[str, Any]
    """All choices that the numbers depend on."""
    warnings: list[str]
    points: dict[str, np.ndarray] = field(repr=False)
    """The columns of the table, a run each, and what the fit adds to them."""
    draws: np.ndarray = field(repr=False)
    """[resamples, P]: the estimates from each resample."""

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, as fit.json holds it."""
        return to_plain(self)


def columns(*, others: Mapping[str, Any] | None = None, **positive: Any) -> dict[str, np.ndarray]:
    """The columns of a table as arrays [n]: `positive` as float64, and `others`, whose values the caller
    checks, as they are.

    A column that is None is left out. Raises UserError unless all columns have one length, which is not 0,
    and those of `positive` are finite and above 0.
    """
    arrays = {
        name: np.asarray(values, np.float64).reshape(-1)
        for name, values in positive.items()
        if values is not None
    }
    every = {
        **{name: np.asarray(v).reshape(-1) for name, v in (others or {}).items() if v is not None},
        **arrays,
    }
    lengths = {name: len(values) for name, values in every.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"columns of different lengths: {', '.join(f'{name} {n}' for name, n in lengths.items())}"
        )
    if not any(lengths.values()):
        raise UserError(f"{', '.join(every)}: the table has no runs")
    for name, values in arrays.items():
        wrong = ~(np.isfinite(values) & (values > 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(
                f"{name}={values[row]} in row {row + 1} of {len(values)}: must be a number above 0"
            )
    return every


def run_text(table: Mapping[str, np.ndarray], row: int) -> str:
    """What a run of a table is called in messages: its name, if the table has names, and its numbers.

    >>> run_text({"parameters": np.array([8e7]), "tokens": np.array([2e9]), "loss": np.array([11.0])}, 0)
    'run of 80M parameters, 2G tokens, loss 11'
    """
    numbers = [
        f"{short(table[name][row])} {text}"
        for name, text in (("parameters", "parameters"), ("tokens", "tokens"))
        if name in table
    ]
    if "flops" in table and "tokens" not in table:
        numbers.append(format_flops(table["flops"][row]))
    numbers += [f"{name} {table[name][row]:.5g}" for name in ("loss", "accuracy") if name in table]
    named = f"run {table['name'][row]} (" if "name" in table else "run of "
    return named + ", ".join(numbers) + (")" if "name" in table else "")


def names_of(table: Mapping[str, np.ndarray], rows: Any) -> list[str]:
    """The names of runs of a table, or the numbers of their rows where it has none."""
    return [str(table["name"][row]) if "name" in table else f"row {row + 1}" for row in rows]


def with_flops(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns with flops = 6 N D [n] where they have none."""
    return (
        table
        if "flops" in table
        else {**table, "flops": FLOPS_A_WEIGHT * table["parameters"] * table["tokens"]}
    )


def largest_runs(flops: np.ndarray, used: np.ndarray) -> np.ndarray:
    """[n], bool: the runs of the largest compute among those used."""
    return used & (flops > flops[used].max() / SEPARATE)


def to_plain(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, numbers as numbers, a number that is not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_plain(entry) for entry in value]
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    if isinstance(value, float | np.floating):
        return finite(float(value))
    return value


def write_json(fit: dict[str, Any], path: Path) -> None:
    """Writes a fit's JSON for programs and people: a key a line, a table of numbers on one line."""
    write_atomic(path, json_text(fit) + "\n")


def json_text(value: Any, indent: str = "") -> str:
    """JSON with a key a line; a list without objects in it is one line.

    >>> print(json_text({"a": 0.5, "draws": [[1, 2], [3, 4]], "minima": [{"flops": 1e18}]}))
    {
      "a": 0.5,
      "draws": [[1, 2], [3, 4]],
      "minima": [
        {
          "flops": 1e+18
        }
      ]
    }
    """
    more = indent + "  "
    if isinstance(value, dict) and value:
        entries, brackets = (
            [f"{json.dumps(key)}: {json_text(entry, more)}" for key, entry in value.items()],
            "{}",
        )
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        entries, brackets = [json_text(entry, more) for entry in value], "[]"
    else:
        return json.dumps(value)
    return f"{brackets[0]}\n" + ",\n".join(more + entry for entry in entries) + f"\n{indent}{brackets[1]}"
