"""The figures of the laws of over-training and of accuracy: the law with its band, runs, held-out runs."""

from __future__ import annotations

import numpy as np

from llm_jax.core.figure_style import BLUE, INK, ORANGE, new_figure
from llm_jax.core.format import counted, factor, interval, span
from llm_jax.scaling.fit import LawFit
from llm_jax.scaling.fit.predict import predict
from llm_jax.scaling.report.bands import ReportFigure, predicted_band
from llm_jax.scaling.report.figures.held_out import draw_held_out, held_out_sentences
from llm_jax.scaling.report.figures.repetition import spread_out
from llm_jax.scaling.report.held_out import held_out_runs
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.report.style import log_axes, ordered_shades

MOST_LINES = 5
"""The most tokens a parameter for which the law is drawn."""
EXTRAPOLATE = 10.0
"""Lines are drawn up to this many times the largest compute, if no held-out run is beyond."""


def overtraining(study: Study) -> ReportFigure:
    """Loss against compute, a line of the law for each of a few tokens a parameter."""
    fit: LawFit = study.fits["overtraining"]
    points, used = fit.points, fit.points["used"]
    ratio = points["tokens"] / points["parameters"]
    lines = spread_out(np.unique([float(f"{m:.2g}") for m in ratio[used]]), MOST_LINES)
    near = abs(np.log(ratio[:, None] / lines)).argmin(1)
    held = held_out_runs(study)
    flops = points["flops"]
    last = max([flops[used].max(), *(run.flops for run in held)])
    at = np.geomspace(flops[used].min(), last * (1.5 if held else EXTRAPOLATE), 80)
    figure, ax = new_figure(4.0)
    for i, (m, colour) in enumerate(zip(lines, ordered_shades(len(lines)), strict=True)):
        n = np.sqrt(at / 6 / m)
        columns = {"parameters": n, "tokens": m * n}
        line, seen = predict(fit, columns), at <= flops[used].max()
        ends = predicted_band(fit, columns)
        ax.plot(at[seen], line[seen], color=colour, label=f"{m:g} tokens a parameter")
        ax.plot(at[~seen], line[~seen], "--", color=colour, linewidth=1.1)
        ax.fill_between(at, *ends, color=colour, alpha=0.14, linewidth=0)
        own = used & (near == i)
        ax.scatter(flops[own], points["loss"][own], s=16, color=colour, linewidths=0, zorder=3)
    out = ~used & (points["loss"] <= points["loss"][used].max() * 1.05)
    ax.scatter(flops[out], points["loss"][out], marker="x", s=24, color=ORANGE, linewidths=1.1, zorder=4)
    draw_held_out(ax, held, "flops")
    ax.set(xlabel="C, FLOPs", ylabel="loss (nats a token)")
    log_axes(ax, flops=True)
    ax.legend(loc="upper right")
    p = fit.parameters
    sentences = [
        f"The law of over-training (lines, bands 95 %) at {span(lines[0], lines[-1], factor)} tokens a "
        f"parameter, and {counted(int(used.sum()), 'run')} in the colour of the nearest line. The exponent "
        f"eta is {p['eta']:.4f} ({interval(fit.intervals_95['eta'], 4)}), the floor E {p['E']:.3f} "
        f"({interval(fit.intervals_95['E'])}).",
        residual_sentence(fit, "loss"),
        *left_out_sentences(fit),
        *held_out_sentences(held),
    ]
    return ReportFigure("overtraining", figure, " ".join(sentences))


def accuracy(study: Study) -> ReportFigure:
    """Accuracy against loss, with the link."""
    fit: LawFit = study.fits["accuracy"]
    points, used = fit.points, fit.points["used"]
    held = held_out_runs(study)
    losses = np.concatenate([points["loss"], [run.loss for run in held]])
    margin = 0.1 * np.ptp(losses)
    at = np.linspace(max(losses.min() - margin, 0.0), losses.max() + margin, 120)
    line, ends = predict(fit, {"loss": at}), predicted_band(fit, {"loss": at})
    figure, ax = new_figure(4.0)
    ax.plot(at, line, color=BLUE, label="link, 95 %")
    ax.fill_between(at, *np.clip(ends, 0, 1), color=BLUE, alpha=0.16, linewidth=0)
    ax.scatter(points["loss"][used], points["accuracy"][used], s=16, color=INK, linewidths=0, zorder=3)
    ax.scatter(
        points["loss"][~used],
        points["accuracy"][~used],
        marker="x",
        s=24,
        color=ORANGE,
        linewidths=1.1,
        zorder=4,
    )
    draw_held_out(ax, held, "loss")
    ax.set(xlabel="loss", ylabel="accuracy", ylim=(-0.02, 1.02))
    ax.legend(loc="upper right")
    p, s = fit.parameters, fit.settings
    low, high = p.get("low", s["chance"]), p.get("high", s["ceiling"])
    sentences = [
        f"Accuracy against loss of {counted(int(used.sum()), 'run')} with the fitted link (line, band 95 %). "
        f"It goes from {low:.3f}{'' if 'low' in p else ' (given)'} to {high:.3f}"
        f"{'' if 'high' in p else ' (given)'}, and is half-way at a loss of {p['middle']:.3f} "
        f"({interval(fit.intervals_95['middle'])}).",
        residual_sentence(fit, "accuracy"),
        *left_out_sentences(fit),
        *held_out_sentences(held),
    ]
    return ReportFigure("accuracy", figure, " ".join(sentences))


def residual_sentence(fit: LawFit, target: str) -> str:
    """How well a law describes its runs, as a sentence."""
    used = fit.points["used"]
    measured, predicted = fit.points[target][used], fit.points["predicted"][used]
    if target == "accuracy":
        off = abs(measured - predicted)
        most = f"{off.max():.2g} off"
        return f"Half of the runs are within {np.median(off):.2g} of the link; the farthest is {most}."
    off = 100 * abs(measured / predicted - 1)
    most = f"{off.max():.2g} % off"
    return f"Half of the runs are within {np.median(off):.2g} % of the law; the farthest is {most}."


def left_out_sentences(fit: LawFit) -> list[str]:
    """A sentence on the crosses of a figure, if there are runs that the fit leaves out."""
    out = int((~fit.points["used"]).sum())
    return (
        [f"Crosses: {counted(out, 'run')} left out of the fit, where they are on the figure."] if out else []
    )
