"""Colours and axes of a report's figures, on top of `core.figure_style`.

Ordered quantities (compute, size, loss) have the colours of "cividis", without its palest end, on white.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.format import format_flops, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


def ordered_colours() -> Colormap:
    """The colour map for ordered quantities."""
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ordered", mpl.colormaps["cividis"](np.linspace(0, 0.8, 64)))


def ordered_shades(count: int) -> list[Any]:
    """`count` colours in order, dark to light."""
    return [ordered_colours()(i / max(count - 1, 1)) for i in range(count)]


def size_colour_bar(figure: Figure, ax: Axes | list[Axes], shown: Any) -> None:
    """Adds the colour bar of N to a figure whose colours have a logarithmic norm."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    bar = figure.colorbar(shown, ax=ax, pad=0.01, aspect=30)
    decades = math.log10(shown.norm.vmax / shown.norm.vmin)
    bar.ax.yaxis.set_major_locator(
        LogLocator(subs=(1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.4 else (1.0, 2.0, 5.0))
    )
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label("N, parameters")
    bar.outline.set_visible(False)


def log_axes(ax: Axes, x: bool = True, y: bool = False, flops: bool = False) -> None:
    """Makes axes logarithmic, with tick labels as 20M or 5×10¹⁹ (`flops`: of the x or y axis)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, wanted, scale in ((ax.xaxis, x, ax.set_xscale), (ax.yaxis, y, ax.set_yscale)):
        if not wanted:
            continue
        scale("log")
        low, high = sorted(axis.get_view_interval())
        decades = math.log10(max(high / max(low, 1e-300), 1.0))
        subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.4 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=9))
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: format_flops(value, unit="") if flops else short(value))
        )
        axis.set_minor_formatter(NullFormatter())
