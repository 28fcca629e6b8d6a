"""prediction.json: predicted losses and task scores of held-out runs, written before these runs are trained,
beside the table of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_jax.core.files import read_json, write_json

FILE = "prediction.json"


def read_predictions(folder: Path) -> dict[str, dict[str, Any]]:
    """Name of a run → its prediction and, once trained, its measured loss; empty without a file. Raises
    UserError for a damaged file."""
    return read_json(folder / FILE)


def write_predictions(folder: Path, predictions: dict[str, dict[str, Any]]) -> None:
    """Writes prediction.json, whole or not at all."""
    write_json(folder / FILE, predictions)
