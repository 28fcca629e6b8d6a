"""IsoFLOP curves, and the compute-optimal size, tokens and their ratio against compute."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_jax.core.figure_style import BLUE, INK, MUTED, ORANGE, RED, new_figure
from llm_jax.core.format import counted, format_flops, interval, short
from llm_jax.scaling.fit import Minimum
from llm_jax.scaling.fit.show import EXPONENTS
from llm_jax.scaling.report.bands import ReportFigure, is_set, optimum, optimum_bands
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.report.style import log_axes, ordered_shades

EXTRAPOLATE = 10.0
"""Lines are drawn up to this many times the largest budget."""
NAMES = {
    "isoflop": "IsoFLOP minima",
    "parametric": "law of N and D",
    "envelope": "envelope of training curves",
}
"""Method → what its fit of N*(C) is called in captions."""
MOST_NAMED = 3
"""The most budgets without a minimum that the caption names."""
ABOVE = 0.9
"""The loss axis ends this part of the minima's span above the highest minimum."""


def curves(study: Study) -> ReportFigure | str:
    """Loss against N at each budget, with the minima."""
    if not study.minima:
        why = study.refusals.get("isoflop", "the runs are of no common budgets")
        return f"No IsoFLOP curves: {why}."
    figure, ax = new_figure(4.3)
    points, colours, top = study.points, ordered_shades(len(study.minima)), highest_shown(study)
    for i, (minimum, colour) in enumerate(zip(study.minima, colours, strict=True)):
        own = (points["budget"] == i) & points["used"]
        n, loss = points["parameters"][own], points["loss"][own]
        if not len(n):
            continue
        out = (points["budget"] == i) & ~points["used"] & (points["loss"] <= top)
        ax.scatter(
            points["parameters"][out],
            points["loss"][out],
            marker="x",
            s=24,
            color=colour,
            linewidths=1.1,
            zorder=3,
        )
        ax.plot(
            minimum.curve_parameters,
            minimum.curve_loss,
            color=colour,
            linestyle="--" if minimum.left_out else "-",
            linewidth=1.2,
        )
        ax.scatter(n, loss, s=16, color=colour, linewidths=0, zorder=3)
        beyond = (
            minimum.on_edge and loss.argmin() == n.argmax()
        )  # the label is then at the other end, clear of the arrow
        seen = np.flatnonzero(loss <= max(top, loss.min()))
        end, shift, side = (n.argmin(), -5, "right") if beyond else (seen[n[seen].argmax()], 5, "left")
        ax.annotate(
            format_flops(minimum.flops, ""),
            (n[end], loss[end]),
            (shift, 0),
            textcoords="offset points",
            color=colour,
            fontsize=7.5,
            ha=side,
            va="center",
        )
        if minimum.parameters is not None and minimum.log_error is not None:
            ends = [
                [minimum.parameters * (1 - np.exp(-minimum.log_error))],
                [minimum.parameters * (np.exp(minimum.log_error) - 1)],
            ]
            ax.errorbar(
                minimum.parameters, minimum.loss, xerr=ends, color=colour, elinewidth=1, capsize=2.5, zorder=4
            )
            ax.scatter(
                minimum.parameters,
                minimum.loss,
                marker="*",
                s=110,
                color=colour,
                edgecolors="white",
                linewidths=0.6,
                zorder=5,
            )
        elif minimum.on_edge:
            best, smallest = loss.argmin(), loss.argmin() == n.argmin()
            ax.scatter(n[best], loss[best], s=90, facecolors="none", edgecolors=RED, linewidths=1.3, zorder=5)
            ax.annotate(
                "edge", (n[best], loss[best]), (-24 if smallest else 24, -13), textcoords="offset points",
                color=RED, fontsize=7.5, ha="center",
                arrowprops={"arrowstyle": "<-", "color": RED, "linewidth": 0.9, "shrinkB": 5},
            )  # fmt: skip
    inside = [m for m in study.minima if m.parameters is not None]
    if len(inside) > 1:
        ax.plot(
            [m.parameters for m in inside], [m.loss for m in inside], ":", color=MUTED, linewidth=1, zorder=2
        )
    lost = study.runs[~study.runs.status.isin(("finished", "unfinished")) & study.runs.parameters.notna()]
    for status, those in lost.groupby("status"):
        ax.plot(
            those.parameters,
            np.full(len(those), 0.98),
            "x",
            color=RED,
            transform=ax.get_xaxis_transform(),
            label=status,
            markersize=5,
        )
    if len(lost):
        ax.legend(loc="upper right")
    ax.margins(x=0.09)
    if top < points["loss"].max():
        ax.set_ylim(top=top)
    ax.set(xlabel="N, parameters", ylabel="loss (nats a token)")
    log_axes(ax)
    return ReportFigure("isoflop_curves", figure, curves_caption(study, inside))


def curves_caption(study: Study, inside: list[Any]) -> str:
    """The caption of the IsoFLOP curves: budgets, minima, their sharpness, and budgets that are left out."""
    total = len(study.minima)
    first, last = study.minima[0], study.minima[-1]
    sentences = [
        f"Loss against model size at {counted(total, 'budget')} from {format_flops(first.flops, '')} to "
        f"{format_flops(last.flops)}"
        + ("; stars are minima, with one standard error of log N." if inside else ".")
    ]
    if inside:
        low, high = inside[0], inside[-1]
        sentences.append(
            f"The best size is {short(low.parameters)} at {format_flops(low.flops)}, with a loss of "
            f"{low.loss:.3f}."
            if len(inside) == 1
            else f"The best size goes from {short(low.parameters)} at {format_flops(low.flops, '')} to "
            f"{short(high.parameters)} at "
            f"{format_flops(high.flops)}, "
            f"where the loss is {high.loss:.3f}."
        )
        if rises := [rise for m in inside if (rise := cost_of_twice(m)) is not None]:
            text = (
                f"{min(rises):.3f}"
                if f"{min(rises):.3f}" == f"{max(rises):.3f}"
                else f"{min(rises):.3f} to {max(rises):.3f}"
            )
            sentences.append(
                f"A model of half or twice the best size costs {text} nats on average of the two, which "
                "is the sharpness of the minima."
            )
    if beyond := int((study.points["loss"] > highest_shown(study)).sum()):
        sentences.append(
            f"{counted(beyond, 'run')} of higher loss {'is' if beyond == 1 else 'are'} above the figure."
        )
    out = [m for m in study.minima if m.left_out]
    edges = [m for m in out if m.on_edge]
    if edges:
        sentences.append(
            f"{len(edges)} of {total} minima {'lies' if len(edges) == 1 else 'lie'} on an edge (ringed, "
            f"dashed){', and left out of the fit' if study.isoflop else ''}: "
            + "; ".join(f"{format_flops(m.flops)}: {m.left_out}" for m in edges)
            + "."
        )
    elif not out:
        sentences.append("All minima are inside their curves.")
    if few := [m for m in out if not m.on_edge]:
        sentences.append(
            "Without a minimum: "
            + "; ".join(f"{format_flops(m.flops)}, {m.left_out}" for m in few[:MOST_NAMED])
            + (f"; and {len(few) - MOST_NAMED} more." if len(few) > MOST_NAMED else ".")
        )
    if out_of_curves := int((~study.points["used"]).sum()):
        sentences.append(f"Crosses: {counted(out_of_curves, 'run')} left out of the curves.")
    return " ".join(sentences)


def highest_shown(study: Study) -> float:
    """The end of the loss axis: the far ends of curves would leave too little height for the minima."""
    lowest = [m.curve_loss.min() for m in study.minima]
    return max(lowest) + ABOVE * (max(lowest) - min(lowest))


def cost_of_twice(minimum: Minimum) -> float | None:
    """The mean of the losses at half and at twice N*, in nats above the minimum; None where the curve does
    not reach both."""
    if minimum.parameters is None or minimum.loss is None:
        return None
    log_n, star = np.log(minimum.curve_parameters), np.log(minimum.parameters)
    sides = [star - np.log(2), star + np.log(2)]
    if sides[0] < log_n[0] or sides[1] > log_n[-1]:
        return None
    return float(np.interp(sides, log_n, minimum.curve_loss).mean() - minimum.loss)


def optima(study: Study) -> ReportFigure | str:
    """N*, D* and D*/N* against compute, with 95 % bands."""
    fits = {name: fit for name, fit in study.fits.items() if name in EXPONENTS}
    if not fits:
        return "No compute-optimal sizes: there is neither an IsoFLOP fit nor a law of N and D."
    figure, axes = new_figure(2.9, columns=3)
    low, high = study.fitted.flops.min(), study.fitted.flops.max()
    at = np.geomspace(low, high * EXTRAPOLATE, 80)
    for (name, fit), colour in zip(fits.items(), (BLUE, ORANGE), strict=False):
        n, d = optimum(fit, at)
        for ax, line, ends in zip(axes, (n, d, d / n), optimum_bands(fit, at), strict=True):
            ax.plot(at[at <= high], line[at <= high], color=colour, label=NAMES[name])
            ax.plot(at[at >= high * 0.97], line[at >= high * 0.97], "--", color=colour, linewidth=1.1)
            ax.fill_between(at, *ends, color=colour, alpha=0.16, linewidth=0)
    if study.isoflop:
        used = [m for m in study.isoflop.minima if not m.left_out]
        c, n, d, e = (
            np.array([getattr(m, name) for m in used])
            for name in ("flops", "parameters", "tokens", "log_error")
        )
        for ax, y, error in zip(
            axes, (n, d, d / n), (e, e, 2 * e), strict=True
        ):  # D is C/(6 N): their errors are opposite
            ax.errorbar(
                c,
                y,
                yerr=[y * (1 - np.exp(-error)), y * (np.exp(error) - 1)],
                fmt="*",
                color=INK,
                markersize=6,
                elinewidth=0.8,
                capsize=2,
            )
    axes[2].axhline(20, color=MUTED, linewidth=0.9, linestyle=":")
    axes[2].annotate(
        "20",
        (at[-1], 20),
        (0, 2),
        textcoords="offset points",
        color=MUTED,
        fontsize=7.5,
        ha="right",
        va="bottom",
    )
    for ax, title in zip(axes, ("N*, parameters", "D*, tokens", "D*/N*, tokens a parameter"), strict=True):
        ax.set(xlabel="C, FLOPs", title=title)
        log_axes(ax, y=True, x=False)
        log_axes(ax, x=True, flops=True)
    axes[0].legend(loc="upper left")
    return ReportFigure("optima", figure, optima_caption(study, fits, high))


def optima_caption(study: Study, fits: dict, largest: float) -> str:
    """The caption of the optima: the exponents, the optimum at the largest budget and at ten times it, and
    whether two fits agree."""
    sentences = [
        "Compute-optimal size, tokens and tokens a parameter; bands are 95 %, dashed beyond the largest run."
    ]
    for name, fit in fits.items():
        n, d = optimum(fit, np.array([largest, EXTRAPOLATE * largest]))
        (low, high), _, (low_r, high_r) = optimum_bands(fit, np.array([largest, EXTRAPOLATE * largest]))
        a, ends = fit.parameters["a"], fit.intervals_95["a"]
        sentences.append(
            f"By the {NAMES[name]}, N* ∝ C^{a:.3f} ({'set' if is_set(fit) else interval(ends)}); at the "
            f"largest budget, {format_flops(largest)}, N* is {short(n[0])} ({short(low[0])} to "
            f"{short(high[0])}) with "
            f"{d[0] / n[0]:.3g} tokens a parameter ({low_r[0]:.3g} to {high_r[0]:.3g}), at ten times that "
            f"{short(n[1])} ({short(low[1])} to {short(high[1])}) with {d[1] / n[1]:.3g}."
        )
    if len(fits) == 2 and not is_set(fits["parametric"]):
        difference = fits["isoflop"].parameters["a"] - fits["parametric"].parameters["a"]
        spread = float(np.hypot(*(fit.standard_errors["a"] for fit in fits.values())))
        same = "agree" if abs(difference) < 2 * spread else "do not agree"
        sentences.append(
            f"The two {same}: their exponents differ by {abs(difference):.3f}, "
            f"{abs(difference) / max(spread, 1e-12):.1f} of their joint "
            f"standard errors."
        )
    sentences.append("The dotted line is Chinchilla's 20 tokens a parameter.")
    return " ".join(sentences)
