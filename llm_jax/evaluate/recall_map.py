"""The command `python -m llm_jax.evaluate.recall_map`: draws the scores of copying and recall as a map of
distance and length."""

from __future__ import annotations

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.command import output_file, run_command
from llm_jax.core.errors import UserError
from llm_jax.core.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llm_jax.evaluate.suites.recall import RecallCell

CELL = re.compile(r"distance (\d+), length (\d+)")


@dataclass(frozen=True, kw_only=True)
class RecallMapCommand:
    """Draws the scores of tasks=recall by distance and length: python -m llm_jax.evaluate.recall_map
    SCORES.json out=MAP.png

      python -m llm_jax.evaluate runs/quickstart/default tasks=recall too_long=skip out=scores.json
      python -m llm_jax.evaluate.recall_map scores.json out=map.png

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """

    scores: Path = positional("SCORES.json")
    """A file of scores, as `python -m llm_jax.evaluate` writes it with tasks= and out=FILE.json."""
    out: Path = argument(
        shown="MAP.png", read=functools.partial(output_file, endings=(".png", ".svg", ".pdf"))
    )
    """The picture."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(draw, arguments)


def draw(arguments: list[str]) -> int:
    """Reads the scores and draws the maps. Raises UserError."""
    command = read_command(arguments, RecallMapCommand)
    if command is None:
        return 0
    from llm_jax.core.figure_style import DPI, styled

    maps = maps_of(command.scores)
    with styled():
        figure_of(maps).savefig(command.out, dpi=DPI)
    print("\n".join(line for name, cells in maps.items() for line in table(name, cells)))
    print(f"written: {command.out}")
    return 0


def maps_of(file: Path) -> dict[str, dict[RecallCell, dict[str, Any]]]:
    """Task → its score and interval at each distance and length. Raises UserError for a file without any."""
    from llm_jax.evaluate.suites.recall import RecallCell

    if not file.is_file():
        raise UserError(f"SCORES.json={file}: no such file. Write one with tasks=recall out={file}")
    content = read_json(file)
    maps = {}
    results = content.get("results", [content])
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise UserError(f"SCORES.json={file}: its results are no list of objects. Write it with tasks=recall")
    for result in results:
        cells = {
            RecallCell(int(found[1]), int(found[2])): part
            for name, part in result.get("groups", {}).items()
            if (found := CELL.fullmatch(name))
        }
        if cells:
            maps[str(result["task"])] = cells
    if not maps:
        raise UserError(
            f"SCORES.json={file}: has no scores of copying or recall_by_name. Write them with tasks=recall"
        )
    return maps


def table(name: str, cells: dict[RecallCell, dict[str, Any]]) -> list[str]:
    """A map as lines of text: a row for each length, a column for each distance."""
    distances = sorted({cell.distance for cell in cells})
    lengths = sorted({cell.length for cell in cells})
    lines = [f"{name}: share of right answers, by words (rows) and characters between (columns)"]
    lines.append("      " + "".join(f"{distance:>8,}" for distance in distances))
    for length in lengths:
        parts = {cell.distance: part for cell, part in cells.items() if cell.length == length}
        shown = (f"{parts[d]['value']:>8.0%}" if d in parts else f"{'-':>8}" for d in distances)
        lines.append(f"{length:>6}" + "".join(shown))
    return lines


def figure_of(maps: dict[str, dict[RecallCell, dict[str, Any]]]) -> Figure:
    """A map for each task: white at chance, dark where every answer is right, with the half width of the 95%
    interval."""
    from llm_jax.core.figure_style import INK, new_figure

    figure, axes = new_figure(2.9, columns=max(2, len(maps)), squeeze=False)
    for ax in axes[0, len(maps) :]:
        ax.remove()
    for ax, (name, cells) in zip(axes[0], maps.items(), strict=False):
        distances = sorted({cell.distance for cell in cells})
        lengths = sorted({cell.length for cell in cells})
        values = [
            [next((p["value"] for c, p in cells.items() if c == (d, n)), float("nan")) for d in distances]
            for n in lengths
        ]
        ax.imshow(values, cmap="Blues", vmin=0.5, vmax=1, aspect="auto", origin="lower")
        for cell, part in cells.items():
            low, high = part["ci95"]
            ax.text(
                distances.index(cell.distance), lengths.index(cell.length),
                f"{part['value']:.0%}\n±{(high - low) / 2:.0%}",
                ha="center", va="center", fontsize=5.5, color="white" if part["value"] > 0.8 else INK,
            )  # fmt: skip
        ax.grid(False)
        ax.set_xticks(range(len(distances)), [f"{d:,}" for d in distances])
        ax.set_yticks(range(len(lengths)), list(map(str, lengths)))
        ax.set_title(name)
        ax.set_xlabel("characters between")
        ax.set_ylabel("words")
    return figure


if __name__ == "__main__":
    sys.exit(main())
