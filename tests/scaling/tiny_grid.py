"""The smallest grids: the runs of tests/tiny_run.py, a second or two each."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tests.tiny_run import write_experiment

GRID = """

from llm_jax.scaling.designs import *
from llm_jax.scaling.grid import *


def experiment():
    return Grid(base_with({fields}), {grid})


def base_with(**fields):
    import dataclasses

    return dataclasses.replace(base(), **fields)
"""


def write_grid(folder: Path, grid: str, name: str = "tinygrid", more: str = "", fields: str = "") -> Path:
    """An experiment file that returns Grid(base, <grid>)."""
    path = write_experiment(folder, name)
    text = (
        path.read_text().replace("def experiment()", "def base()")
        + GRID.replace("{grid}", grid).replace("{fields}", fields)
        + more
    )
    path.write_text(text)
    return path


def table(folder: Path) -> pd.DataFrame:
    """runs.csv of a grid's folder, by name."""
    return pd.read_csv(folder / "runs.csv", keep_default_na=True).set_index("name")
