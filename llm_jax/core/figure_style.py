"""The style of figures in scaling reports and inspect pages.

The colours, on white, differ for readers who confuse red and green (Okabe and Ito 2008).
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1f2933", "#66727f", "#d9dee3"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#b3261e", "#8e5a9b", "#56b4e9"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "llm_jax",  # the same data make the same file
}
WIDTH = 7.4
"""Inches of a figure across the page."""
DPI = 200


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """A context in which matplotlib has this style; afterwards the user's own style is back."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        for key, value in STYLE.items():
            mpl.rcParams[key] = value
        yield


def new_figure(height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of the page's width, and its axes. height: inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, path: Path) -> str:
    """Writes the PNG, and returns the figure as an SVG's data URI, for the page."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    figure.set_layout_engine("none")  # it is laid out now
    held = io.BytesIO()
    figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(held.getvalue()).decode()
