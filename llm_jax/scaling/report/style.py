"""How all figures of a report look, and how numbers are written in it.

Colours are told apart by eyes that confuse red and green (Okabe and Ito 2008); what is ordered (compute, size, loss) has the
colours of "cividis", without its palest end, on white.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.train.metrics import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
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
POWERS_FROM = 1e15
"""FLOPs are powers of ten from here on."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Within it figures are made in the report's style, whatever the user's own is; it is his again afterwards."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        for key, value in STYLE.items():
            mpl.rcParams[key] = value
        yield


def new_figure(height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure across the page, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def ordered() -> Colormap:
    """Colours for what is ordered."""
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ordered", mpl.colormaps["cividis"](np.linspace(0, 0.8, 64)))


def shades(count: int) -> list[Any]:
    """So many colours in order, dark to light."""
    return [ordered()(i / max(count - 1, 1)) for i in range(count)]


def save(figure: Figure, path: Path) -> str:
    """Writes the PNG, and returns the figure as an SVG's data URI, for the page."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    figure.set_layout_engine("none")  # it is laid out now
    held = io.BytesIO()
    figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(held.getvalue()).decode()


def size_bar(figure: Figure, ax: Axes | list[Axes], shown: Any) -> None:
    """The scale of colours that say N, for what is drawn with a logarithmic norm."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    bar = figure.colorbar(shown, ax=ax, pad=0.01, aspect=30)
    decades = math.log10(shown.norm.vmax / shown.norm.vmin)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.4 else (1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label("N, parameters")
    bar.outline.set_visible(False)


def say_numbers(ax: Axes, x: bool = True, y: bool = False, flops: bool = False) -> None:
    """Logarithmic axes whose ticks are numbers as people say them: 20M, 5e19."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, wanted, scale in ((ax.xaxis, x, ax.set_xscale), (ax.yaxis, y, ax.set_yscale)):
        if not wanted:
            continue
        scale("log")
        low, high = sorted(axis.get_view_interval())
        decades = math.log10(max(high / max(low, 1e-300), 1.0))
        subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.4 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, _: say_flops(value, unit="") if flops else short(value)))
        axis.set_minor_formatter(NullFormatter())


def say_flops(flops: float, unit: str = " FLOPs", powers: bool = False) -> str:
    """FLOPs as people say them: with a letter up to a quadrillion, as a power of ten beyond.

    >>> say_flops(2.5e11), say_flops(3e19), say_flops(5.76e23, unit="")
    ('250G FLOPs', '3×10¹⁹ FLOPs', '5.76×10²³')
    """
    if flops < POWERS_FROM and not powers:
        return short(flops) + unit
    exponent = math.floor(math.log10(flops) + 1e-9)
    digits = f"{flops / 10**exponent:.3g}"
    return ("" if digits == "1" else f"{digits}×") + f"10{str(exponent).translate(SUPERSCRIPTS)}{unit}"


def percent(part: float, digits: int = 2) -> str:
    """A part as a signed percentage.

    >>> percent(-0.00102), percent(0.0259, 1)
    ('−0.10 %', '+2.6 %')
    """
    return f"{100 * part:+.{digits}f} %".replace("-", "−")


def factor(times: float) -> str:
    """A ratio as people say it.

    >>> factor(9272.3), factor(2.512), factor(0.4561)
    ('9,270', '2.51', '0.456')
    """
    if times < 100:
        return f"{times:.3g}"
    return f"{round(times, 2 - math.floor(math.log10(times))):,.0f}"


def interval(ends: Any, digits: int = 3) -> str:
    """An interval: "0.45 to 0.52".

    >>> interval((0.4512, 0.5234))
    '0.451 to 0.523'
    """
    low, high = ends
    return f"{low:.{digits}f} to {high:.{digits}f}"


def many(count: int, what: str) -> str:
    """A count with its noun.

    >>> many(1, "run"), many(3, "run")
    ('1 run', '3 runs')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


def span(low: float, high: float, say: Callable[[float], str] = short) -> str:
    """A range; one number where its ends are said alike.

    >>> span(2e6, 3e9), span(1e8, 1.0001e8)
    ('2M to 3G', '100M')
    """
    first, last = say(low), say(high)
    return first if first == last else f"{first} to {last}"


def flops_span(low: float, high: float) -> str:
    """A range of FLOPs, both ends said alike.

    >>> flops_span(5e14, 2e15), flops_span(5e12, 2e14)
    ('5×10¹⁴ to 2×10¹⁵ FLOPs', '5T to 200T FLOPs')
    """
    return span(low, high, lambda flops: say_flops(flops, "", powers=high >= POWERS_FROM)) + " FLOPs"


def listed(words: list[str]) -> str:
    """Words as a sentence has them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
