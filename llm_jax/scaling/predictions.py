"""prediction.json: what a grid wrote down of held-out runs before it trained them, beside its table of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_jax.core.files import read_json, write_json

FILE = "prediction.json"


def read_predictions(folder: Path) -> dict[str, dict[str, Any]]:
    """By run: what was predicted of it, and what was measured; empty where there is none. Raises UserError for a damaged file."""
    return read_json(folder / FILE)


def write_predictions(folder: Path, told: dict[str, dict[str, Any]]) -> None:
    """Writes it, whole or not at all."""
    write_json(folder / FILE, told)
