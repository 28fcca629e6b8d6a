"""The figure of repeated data: loss against epochs, beside the loss with as many new tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_jax.core.figure_style import INK, new_figure
from llm_jax.core.format import counted, interval, short
from llm_jax.scaling.fit import Law, LawFit, repeated_loss
from llm_jax.scaling.report.bands import ReportFigure, predicted_band
from llm_jax.scaling.report.figures.held_out import draw_held_out, held_out_sentences
from llm_jax.scaling.report.held_out import held_out_runs
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.report.style import log_axes, ordered_colours, size_colour_bar

MOST_PANELS, MOST_SIZES = 6, 5
"""The most amounts of unique text, and sizes on each, that are drawn."""


def epochs(study: Study) -> ReportFigure:
    """A panel for each amount of unique tokens: runs, the fitted law, and the law with all tokens new."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.lines import Line2D

    fit: LawFit = study.fits["repetition"]
    law, points = Law(**fit.settings["base_law"]), fit.points
    n, used, times = points["parameters"], points["used"], points["tokens"] / points["unique_tokens"]
    unique = np.array(
        [float(f"{text:.3g}") for text in points["unique_tokens"]]
    )  # batches that don't divide it leave it a little off
    panels = spread_out(np.unique(unique[used]), MOST_PANELS)
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(0.7 + 2.4 * rows, columns=columns, rows=rows, squeeze=False, sharex=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    held = held_out_runs(study)
    colours, norm, shown = (
        ordered_colours(),
        LogNorm(n[used].min(), max(n[used].max(), 1.01 * n[used].min())),
        0,
    )
    at = np.geomspace(1, max([times[used].max(), *(run.epochs for run in held if run.epochs > 0)]), 80)
    for ax, text in zip(axes.flat, panels, strict=False):
        for size in spread_out(np.unique(n[used & (unique == text)]), MOST_SIZES):
            own, colour = (unique == text) & (n == size) & (times > 0.99), colours(norm(size))
            line = loss_of(fit, law, size, text * at, text)
            ax.plot(at, line, color=colour)
            ax.plot(at, loss_of(fit, law, size, text * at, text * at), "--", color=colour, linewidth=1)
            runs = {"parameters": size, "tokens": text * at, "unique_tokens": text}
            ax.fill_between(at, *predicted_band(fit, runs), color=colour, alpha=0.16, linewidth=0)
            ax.scatter(
                times[own & used], points["loss"][own & used], s=16, color=colour, linewidths=0, zorder=3
            )
            ax.scatter(
                times[own & ~used],
                points["loss"][own & ~used],
                s=14,
                facecolors="white",
                edgecolors=colour,
                linewidths=1,
                zorder=3,
            )
            shown += int((own & used).sum())
        draw_held_out(ax, [run for run in held if float(f"{run.unique_tokens:.3g}") == text], "epochs")
        ax.set(title=f"{short(text)} unique tokens")
        log_axes(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("loss (nats a token)")
    for i in range(columns):
        axes[(len(panels) - 1 - i) // columns, i].set_xlabel("epochs")
        axes[(len(panels) - 1 - i) // columns, i].tick_params(labelbottom=True)
    axes.flat[0].legend(
        [Line2D([], [], color=INK), Line2D([], [], color=INK, linestyle="--", linewidth=1)],
        ["fitted law", "fresh data"],
    )
    if len(np.unique(n[used])) > 1:
        size_colour_bar(figure, [ax for ax in axes.flat if ax.get_visible()], ScalarMappable(norm, colours))
    sentences = [caption(fit, law, shown), *held_out_sentences(held)]
    return ReportFigure("repetition", figure, " ".join(sentences))


def loss_of(fit: LawFit, law: Law, parameters: Any, tokens: Any, unique: Any) -> Any:
    """The loss that the fitted law predicts; with unique = tokens, that of fresh data."""
    return repeated_loss(law, parameters, tokens, unique, fit.parameters["R_D"], fit.parameters["R_N"])


def spread_out(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of sorted values, evenly spaced, including the first and the last.

    >>> spread_out(np.arange(8), 3)
    array([0, 4, 7])
    """
    return values[np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int))]


def caption(fit: LawFit, law: Law, shown: int) -> str:
    """The caption: the constants, the cost of repetition in the run with the most epochs, and how well the
    law fits."""
    points, used = fit.points, fit.points["used"]
    times = points["tokens"] / points["unique_tokens"]
    r_d, r_n = fit.parameters["R_D"], fit.parameters["R_N"]
    most = int(np.flatnonzero(used)[times[used].argmax()])
    n, tokens, unique = (float(points[name][most]) for name in ("parameters", "tokens", "unique_tokens"))
    repeated, fresh = float(loss_of(fit, law, n, tokens, unique)), float(loss_of(fit, law, n, tokens, tokens))
    off = 100 * (points["loss"][used] / points["predicted"][used] - 1)
    sentences = [
        "Loss against epochs: the fitted law (lines, bands 95 %), the same law with every token new "
        f"(dashed), and the {counted(int(used.sum()), 'run')} that repeat tokens"
        + (f", {shown} of them drawn" if shown < used.sum() else "")
        + ("; rings are runs that do not." if (~used).any() else "."),
        f"R_D is {r_d:.3g} ({interval(fit.intervals_95['R_D'], 2)}), so that repeated tokens are worth no "
        f"more than {r_d:.3g} times the unique "
        f"ones; R_N is {r_n:.3g} ({interval(fit.intervals_95['R_N'], 2)}).",
        f"After {times[most]:.3g} epochs of {short(unique)} tokens a model of {short(n)} parameters has a "
        f"loss of {repeated:.3f} by the law; with "
        f"as many new tokens it would have {fresh:.3f}, so repeating costs {repeated - fresh:.3f} nats.",
        f"Half of the runs are within {np.median(abs(off)):.2g} % of the law, the farthest is "
        f"{abs(off).max():.2g} % off.",
    ]
    return " ".join(sentences)
