"""Approach 1: training curves with their envelope, and the sizes that are best along it."""

from __future__ import annotations

import numpy as np

from llm_jax.core.figure_style import BLUE, INK, ORANGE, new_figure
from llm_jax.core.format import counted, factor, format_flops, interval, short, span
from llm_jax.scaling.fit import EnvelopeFit
from llm_jax.scaling.report.bands import ReportFigure, optimum, optimum_bands
from llm_jax.scaling.report.figures.runs import MOST_CURVES, MOST_POINTS
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.report.style import log_axes, ordered_colours, size_colour_bar

ABOVE = 0.25
"""The loss axis ends this part of the envelope's span above it: the first steps would take most of the
height."""


def curves(study: Study) -> ReportFigure:
    """Loss against compute of every curve, with their envelope; beside it the sizes along the envelope, and
    the line through them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    fit: EnvelopeFit = study.fits["envelope"]
    points, front = fit.points, fit.frontier
    sizes, used = np.unique(points["parameters"]), front["used"]
    figure, (left, right) = new_figure(3.5, columns=2)
    norm, colours = LogNorm(sizes.min(), sizes.max()), ordered_colours()
    numbers = np.unique(points["run"])
    for number in numbers[
        np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), MOST_CURVES)).round().astype(int))
    ]:
        rows = np.flatnonzero(points["run"] == number)
        rows = rows[np.argsort(points["flops"][rows])]
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_POINTS)).round().astype(int))]
        left.plot(
            points["flops"][rows],
            points["loss"][rows],
            color=colours(norm(points["parameters"][rows[0]])),
            linewidth=0.8,
            alpha=0.8,
        )
    left.plot(
        front["flops"], np.where(used, front["loss"], np.nan), color=INK, linewidth=1.3, label="envelope"
    )
    if not used.all():
        outside = np.where(used, np.nan, front["loss"])
        left.plot(
            front["flops"],
            outside,
            ":",
            color=ORANGE,
            linewidth=1.5,
            label="smallest or largest size: left out",
        )
    highest, lowest = front["loss"][used].max(), front["loss"].min()
    top = highest + ABOVE * (highest - lowest)
    left.set(
        ylim=(lowest - 0.05 * (highest - lowest), top),
        xlim=(front["flops"][front["loss"] <= top].min() / 2, front["flops"].max() * 2),
    )
    left.set(xlabel="C, FLOPs", ylabel="loss (nats a token)", title="Training curves")
    left.legend(loc="upper right")

    right.scatter(
        front["flops"][used],
        front["parameters"][used],
        s=7,
        color=INK,
        linewidths=0,
        zorder=3,
        label="best size",
    )
    right.scatter(
        front["flops"][~used], front["parameters"][~used], s=7, color=ORANGE, linewidths=0, zorder=3
    )
    line = optimum(fit, front["flops"])[0]
    right.plot(front["flops"], line, color=BLUE, label=f"line through them, a = {fit.a:.3f}")
    right.fill_between(
        front["flops"],
        *optimum_bands(fit, front["flops"])[0],
        color=BLUE,
        alpha=0.16,
        linewidth=0,
    )
    right.set(xlabel="C, FLOPs", title="N, parameters, of the lowest curve")
    right.legend(loc="upper left")
    for ax in (left, right):
        log_axes(ax, flops=True)
    log_axes(right, x=False, y=True)
    size_colour_bar(figure, left, ScalarMappable(norm, colours))
    return ReportFigure("envelope", figure, caption(fit, len(numbers), sizes))


def caption(fit: EnvelopeFit, count: int, sizes: np.ndarray) -> str:
    """The caption: the envelope, the sizes along it with the line's exponent, and how far apart these sizes
    are."""
    front, used = fit.frontier, fit.frontier["used"]
    c, loss, best = (front[name][used] for name in ("flops", "loss", "parameters"))
    inside = np.unique(best)
    sentences = [
        f"{counted(count, 'training curve')} of {counted(len(sizes), 'size')}, "
        f"{span(sizes.min(), sizes.max())} parameters"
        + (f" ({MOST_CURVES} of them drawn)" if count > MOST_CURVES else "")
        + f", and the lowest loss at each compute: from {loss[0]:.3f} at {format_flops(c[0], '')} to "
        f"{loss[-1]:.3f} at {format_flops(c[-1])}.",
        f"{counted(len(inside), 'size')} from {short(inside[0])} to {short(inside[-1])} are best "
        f"somewhere on it; N* ∝ C^{fit.a:.3f} "
        f"({interval(fit.a_interval_95)}; band 95 %, from curves resampled with replacement).",
        f"Sizes on it are up to a factor of {factor(float((inside[1:] / inside[:-1]).max()))} apart, "
        "which limits the resolution of N*.",
    ]
    if not used.all():
        sentences.append(
            f"Of the computes {100 * np.mean(~used):.0f} % have the smallest or the largest size of those "
            "present as the best (orange): the optimum "
            "may be beyond, and they are left out of the line."
        )
    return " ".join(sentences)
