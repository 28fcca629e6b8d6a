"""What a report's figures have besides `figure_style`, and how numbers are written in it.

What is ordered (compute, size, loss) has the colours of "cividis", without its palest end, on white.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.format import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

POWERS_FROM = 1e15
"""FLOPs are powers of ten from here on."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def ordered() -> Colormap:
    """Colours for what is ordered."""
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ordered", mpl.colormaps["cividis"](np.linspace(0, 0.8, 64)))


def shades(count: int) -> list[Any]:
    """So many colours in order, dark to light."""
    return [ordered()(i / max(count - 1, 1)) for i in range(count)]


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


def span(low: float, high: float, number: Callable[[float], str] = short) -> str:
    """A range; one number where its ends are said alike.

    >>> span(2e6, 3e9), span(1e8, 1.0001e8)
    ('2M to 3G', '100M')
    """
    first, last = number(low), number(high)
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
