"""What all fits have in common: points checked as they come in, and `fit.json`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.arithmetic import finite
from llm_jax.core.errors import UserError
from llm_jax.core.files import write_atomic

SEPARATE = 1.5
"""Runs with more than the largest compute over this are the largest ones, which the extrapolation test leaves out."""


def columns(**given: Any) -> dict[str, np.ndarray]:
    """The columns of a table as float64 arrays [n]. Raises UserError unless they are of one length, not empty, finite and above 0."""
    arrays = {name: np.asarray(values, np.float64).reshape(-1) for name, values in given.items() if values is not None}
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"columns of different lengths: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
    if not any(lengths.values()):
        raise UserError(f"{', '.join(arrays)}: there are no runs")
    for name, values in arrays.items():
        wrong = ~(np.isfinite(values) & (values > 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(f"{name}={values[row]} in row {row + 1} of {len(values)}: must be a number above 0")
    return arrays


def largest(flops: np.ndarray, used: np.ndarray) -> np.ndarray:
    """[n], bool: the runs of the largest compute among those used."""
    return used & (flops > flops[used].max() / SEPARATE)


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, numbers as numbers, what is no finite number as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    if isinstance(value, float | np.floating):
        return finite(float(value))
    return value


def write_json(fit: dict[str, Any], path: Path) -> None:
    """Writes a fit's JSON so that a person can read it too: a key a line, tables of numbers on one line each."""
    write_atomic(path, text_of(fit) + "\n")


def text_of(value: Any, indent: str = "") -> str:
    """JSON with a key a line; a list without tables in it is one line.

    >>> print(text_of({"a": 0.5, "draws": [[1, 2], [3, 4]], "minima": [{"flops": 1e18}]}))
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
        entries, brackets = [f"{json.dumps(key)}: {text_of(entry, more)}" for key, entry in value.items()], "{}"
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        entries, brackets = [text_of(entry, more) for entry in value], "[]"
    else:
        return json.dumps(value)
    return f"{brackets[0]}\n" + ",\n".join(more + entry for entry in entries) + f"\n{indent}{brackets[1]}"
