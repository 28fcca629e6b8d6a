"""Figures of the law of N and D: loss against compute with the frontier and held-out runs, contours,
residuals."""

from __future__ import annotations

import numpy as np
from scipy import stats

from llm_jax.core.figure_style import BLUE, INK, MUTED, ORANGE, PURPLE, new_figure
from llm_jax.core.format import counted, factor, format_flops, short, signed_percent
from llm_jax.scaling.fit import ParametricFit
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT
from llm_jax.scaling.fit.predict import predict
from llm_jax.scaling.report.bands import ReportFigure, band, law_of, optimum_bands, predicted_band
from llm_jax.scaling.report.figures.held_out import draw_held_out, held_out_sentences
from llm_jax.scaling.report.held_out import HeldOutRun, held_out_runs
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.report.style import log_axes, ordered_colours, size_colour_bar

DRAWN_ELSEWHERE = {
    "overtraining": "the law is of tokens a parameter too, and is drawn for several of these",
    "repetition": "the law is of epochs too, and is drawn against these",
    "accuracy": "the law is of accuracy, and is drawn against loss",
    "envelope": "the curves are drawn with their envelope",
}
"""Method → why its law has no line in the figure of loss against compute."""
EXTRAPOLATE = 10.0
"""The frontier is drawn up to this many times the largest compute."""
FAR_AWAY = 10.0
"""Runs left out of the fit are in a figure if they are within this factor of the others."""
TREND_P_VALUE = 0.01
"""A rank correlation with a smaller p-value counts as a trend."""


def against_compute(study: Study) -> ReportFigure | str:
    """Loss against compute: all runs, the frontier, and held-out runs where there are any."""
    from matplotlib.colors import LogNorm

    runs = study.fitted
    if study.main is not None and study.main.method in DRAWN_ELSEWHERE:
        return f"No figure of loss against compute alone: {DRAWN_ELSEWHERE[study.main.method]}."
    if runs.empty or not (study.fits or study.minima):
        return "No figure of loss against compute: the table has neither a law nor an IsoFLOP curve."
    figure, ax = new_figure(4.0)
    if runs.parameters.notna().all():
        norm = LogNorm(runs.parameters.min(), max(runs.parameters.max(), 1.01 * runs.parameters.min()))
        style = {"c": runs.parameters, "norm": norm, "cmap": ordered_colours()}
        size_colour_bar(figure, ax, ax.scatter(runs.flops, runs.loss, s=16, linewidths=0, zorder=3, **style))
    else:
        ax.scatter(runs.flops, runs.loss, s=16, linewidths=0, zorder=3, color=BLUE)
    held = [run for run in held_out_runs(study) if np.isfinite(run.flops)]
    last = max([runs.flops.max(), *(run.flops for run in held)])
    at = np.geomspace(runs.flops.min(), last * (1.5 if held else EXTRAPOLATE), 100)
    if fit := study.parametric:
        line = fit.law.loss(*fit.law.optimal(at))
        seen = at <= runs.flops.max()
        ax.plot(at[seen], line[seen], color=INK, label="compute-optimal loss of the law")
        ax.plot(at[~seen], line[~seen], "--", color=INK, linewidth=1.1)
        ends = band(fit, lambda p: law_of(p).loss(*law_of(p).optimal(at)))
        ax.fill_between(at, *ends, color=INK, alpha=0.14, linewidth=0)
        if fit.parameters["E"] > 0:
            ax.axhline(fit.parameters["E"], color=MUTED, linewidth=0.9, linestyle=":")
            ax.annotate(
                f"E = {fit.parameters['E']:.3f}",
                (at[0], fit.parameters["E"]),
                (0, 3),
                textcoords="offset points",
                color=MUTED,
                fontsize=7.5,
            )
    alone = study.fits.get("compute")
    if alone is not None:
        line, seen = predict(alone, {"flops": at}), at <= runs.flops.max()
        ax.plot(at[seen], line[seen], color=PURPLE, label="law of compute alone, 95 %")
        ax.plot(at[~seen], line[~seen], "--", color=PURPLE, linewidth=1.1)
        ax.fill_between(at, *predicted_band(alone, {"flops": at}), color=PURPLE, alpha=0.14, linewidth=0)
    stars = [m for m in study.minima if m.parameters is not None]
    if stars:
        ax.scatter(
            [m.flops for m in stars],
            [m.loss for m in stars],
            marker="*",
            s=80,
            color=BLUE,
            edgecolors="white",
            linewidths=0.5,
            zorder=4,
            label="IsoFLOP minima",
        )
    draw_held_out(ax, held, "flops")
    top = highest_shown(study)
    if top < runs.loss.max():
        ax.set_ylim(top=top)
    ax.set(xlabel="C, FLOPs", ylabel="loss (nats a token)")
    log_axes(ax, flops=True)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper right")
    return ReportFigure("loss_against_compute", figure, compute_caption(study, held))


def highest_shown(study: Study) -> float:
    """The end of the loss axis: runs that are left out would take most of the height."""
    fits = [fit for fit in study.fits.values() if "used" in fit.points and "loss" in fit.points]
    if not fits or study.main.method == "compute":
        return float(study.fitted.loss.max())
    return 1.03 * max(float(fit.points["loss"][fit.points["used"]].max()) for fit in fits)


def compute_caption(study: Study, held: list[HeldOutRun]) -> str:
    """The caption of loss against compute: the span, the frontier, and the errors of extrapolation."""
    runs, fit, alone = study.fitted, study.parametric, study.fits.get("compute")
    best = runs.loss.idxmin()
    sentences = [
        f"{counted(len(runs), 'run')} over a factor of {factor(runs.flops.max() / runs.flops.min())} in "
        f"compute; the lowest loss is {runs.loss.min():.3f}"
        + (f", of {short(runs.parameters[best])} parameters." if runs.parameters[best] > 0 else ".")
    ]
    if fit:
        now, then = (
            float(fit.law.loss(*fit.law.optimal(c)))
            for c in (runs.flops.max(), EXTRAPOLATE * runs.flops.max())
        )
        sentences.append(
            f"The law's frontier (line, band 95 %) is at {now:.3f} at the largest budget and {then:.3f} "
            f"at ten times it; {limit_text(fit)}."
        )
        out = fit.leave_largest_out
        if "refused" not in out:
            sentences.append(
                f"Fitted without {largest_text(out['runs'])}, of {format_flops(out['flops_from'])} and "
                "more, the law is "
                f"{signed_percent(out['mean_relative_error'])} off there"
                + (
                    "."
                    if out["runs"] == 1
                    else f" on average and {100 * out['largest_relative_error']:.2f} % at most."
                )
            )
    if alone is not None:
        now, then = (
            float(predict(alone, {"flops": c})) for c in (runs.flops.max(), EXTRAPOLATE * runs.flops.max())
        )
        sentences.append(
            f"The law of compute alone (line, band 95 %), of {alone.settings['runs_used']} runs"
            f"{' on the frontier' if alone.settings['frontier_only'] else ''}, is at {now:.3f} at the "
            f"largest compute and {then:.3f} at ten times it."
        )
    sentences += held_out_sentences(held)
    if above := int((runs.loss > highest_shown(study)).sum()):
        sentences.append(
            f"{counted(above, 'run')} left out of the fit {'is' if above == 1 else 'are'} above the figure."
        )
    return " ".join(sentences)


def limit_text(fit: ParametricFit) -> str:
    """The law's floor as a clause."""
    if not fit.parameters["E"]:
        return "the law has no floor"
    how = "for models of this kind" if fit.settings["floor"] == "free" else "given by floor="
    return f"the limit E {how} is {fit.parameters['E']:.3f}"


def largest_text(runs: int) -> str:
    """The runs that the extrapolation test leaves out, as text."""
    return "the largest run" if runs == 1 else f"the {runs} largest runs"


def contours(study: Study) -> ReportFigure | str:
    """Contours of the law's loss over N and D, with the runs and the compute-optimal line."""
    fit = study.parametric
    if fit is None:
        return f"No contours of loss: {study.refusals.get('parametric', 'no law of N and D was fitted')}."
    points, used = fit.points, fit.points["used"]
    n, d, loss = points["parameters"], points["tokens"], points["loss"]
    near = np.ones(len(n), bool)
    for x in (n, d):
        near &= (x > x[used].min() / FAR_AWAY) & (x < x[used].max() * FAR_AWAY)
    wide = (n[near].min() / 1.8, n[near].max() * 1.8), (d[near].min() / 1.8, d[near].max() * 1.8)
    crosses = near & ~used
    grid_n, grid_d = np.meshgrid(np.geomspace(*wide[0], 140), np.geomspace(*wide[1], 140))
    surface = fit.law.loss(grid_n, grid_d)
    lowest, highest = min(loss[used].min(), surface.min()), np.quantile(loss[used], 0.98)
    levels = np.linspace(lowest, highest, 12)
    figure, ax = new_figure(4.6)
    colours = ordered_colours()
    ax.contourf(grid_n, grid_d, surface, levels=levels, cmap=colours, alpha=0.28, extend="max")
    lines = ax.contour(grid_n, grid_d, surface, levels=levels[1::2], colors=MUTED, linewidths=0.6)
    ax.clabel(lines, fmt="%.2f", fontsize=7)
    shown = ax.scatter(
        n[used],
        d[used],
        c=loss[used],
        cmap=colours,
        vmin=lowest,
        vmax=highest,
        s=26,
        edgecolors="white",
        linewidths=0.5,
        zorder=4,
    )
    if crosses.any():
        ax.scatter(
            n[crosses],
            d[crosses],
            marker="x",
            s=24,
            color=ORANGE,
            linewidths=1.1,
            zorder=4,
            label="left out of the fit",
        )
    at = np.geomspace(FLOPS_A_WEIGHT * wide[0][0] * wide[1][0], FLOPS_A_WEIGHT * wide[0][1] * wide[1][1], 120)
    best_n, best_d = fit.law.optimal(at)
    ax.plot(best_n, best_d, color=INK, zorder=3, label="compute-optimal")
    low, high = optimum_bands(fit, at)[0]  # at one C each: D follows from N
    each = at / FLOPS_A_WEIGHT
    edge = np.concatenate([np.stack([low, each / low], -1), np.stack([high, each / high], -1)[::-1]])
    ax.fill(edge[:, 0], edge[:, 1], color=INK, alpha=0.13, linewidth=0, zorder=2)
    ax.set(xlabel="N, parameters", ylabel="D, tokens")
    log_axes(ax, y=True)
    ax.set(xlim=wide[0], ylim=wide[1])
    bar = figure.colorbar(shown, ax=ax, pad=0.01, aspect=30)
    bar.set_label("measured loss (nats a token)")
    bar.outline.set_visible(False)
    ax.legend(loc="upper left")
    ratio = d[used] / n[used]
    p = fit.parameters
    at_middle = float(np.median(n[used])), float(np.median(d[used]))
    from_n, from_d = p["A"] / at_middle[0] ** p["alpha"], p["B"] / at_middle[1] ** p["beta"]
    caption = (
        "The fitted law over N and D (contours), the runs by their measured loss, and the "
        "compute-optimal line with its 95 % band. The runs have "
        f"{factor(ratio.min())} to {factor(ratio.max())} tokens a parameter. At their median, "
        f"{short(at_middle[0])} parameters and "
        f"{short(at_middle[1])} tokens, "
        f"the model's size costs {from_n:.3f} nats and the finite data {from_d:.3f}, above E = {p['E']:.3f}."
    )
    if dropped := int(crosses.sum()):
        highest = " of highest loss," if dropped == fit.settings["drop_highest_losses"] else ""
        caption += f" Crosses: {counted(dropped, 'run')}{highest} left out of the fit."
    if beyond := int((~used & ~crosses).sum()):
        is_are = "is" if beyond == 1 else "are"
        caption += f" {counted(beyond, 'run')} left out of the fit {is_are} beyond the figure."
    return ReportFigure("loss_contours", figure, caption)


def residuals(study: Study) -> ReportFigure | str:
    """Measured over predicted loss against N, D and predicted loss."""
    fit = study.parametric
    if fit is None:
        return f"No residuals: {study.refusals.get('parametric', 'no law of N and D was fitted')}."
    points, used = fit.points, fit.points["used"]
    off = 100 * (points["loss"] / points["predicted"] - 1)
    spread = 1.4826 * np.median(abs(off[used]))
    figure, axes = new_figure(2.7, columns=3, sharey=True)
    for ax, key, label in zip(
        axes,
        ("parameters", "tokens", "predicted"),
        ("N, parameters", "D, tokens", "predicted loss (nats a token)"),
        strict=True,
    ):
        x = points[key]
        near = ~used & (x > x[used].min() / FAR_AWAY) & (x < x[used].max() * FAR_AWAY)
        ax.axhspan(-2 * spread, 2 * spread, color=MUTED, alpha=0.12, linewidth=0)
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.scatter(x[used], off[used], s=12, color=BLUE, alpha=0.75, linewidths=0, zorder=3)
        ax.scatter(x[near], off[near], marker="x", s=20, color=ORANGE, linewidths=1, zorder=3)
        if used.sum() >= 20:
            middle, height = running_median(x[used], off[used])
            ax.plot(middle, height, color=PURPLE, linewidth=1.5, zorder=4)
        ax.set_xlabel(label)
        if key != "predicted":
            log_axes(ax)
    limit = 1.15 * max(np.quantile(abs(off[used]), 0.99), 3 * spread)
    beyond = int((abs(off) > limit).sum())
    if np.isfinite(limit) and limit > 0:
        axes[0].set_ylim(-limit, limit)
    axes[0].set_ylabel("measured over predicted, %")
    worst = int(np.flatnonzero(used)[abs(off[used]).argmax()])
    outside = int((abs(off[used]) > 3 * spread).sum())
    sentences = [
        "Measured over predicted loss. Half of the runs in the fit are within "
        f"{np.median(abs(off[used])):.2g} % of the law; the root mean square is "
        f"{np.sqrt(np.mean(off[used] ** 2)):.2g} %, the largest {signed_percent(off[worst] / 100)} "
        f"({short(points['parameters'][worst])} parameters, "
        f"{short(points['tokens'][worst])} tokens). "
        f"{counted(outside, 'run')} of {int(used.sum())} {'is' if outside == 1 else 'are'} beyond three "
        f"robust standard deviations ({spread:.2g} % each; grey: two)."
    ]
    for what, (rank, chance) in residual_trends(fit).items():
        trend = (
            "a trend that the law does not explain" if chance < TREND_P_VALUE else "no trend beyond chance"
        )
        sentences.append(
            f"Against {what} there is {trend} (rank correlation {f'{rank:+.2f}'.replace('-', '−')}, p = "
            f"{chance:.2g})."
        )
    if used.sum() >= 20:
        sentences.append("The line is a running median.")
    if (~used).any():
        sentences.append("Crosses, where they are on the figure, were left out of the fit.")
    if beyond:
        ours = int((abs(off[used]) > limit).sum())
        sentences.append(
            f"Beyond the figure's edge: {counted(ours, 'run')} of the fit"
            + (f" and {beyond - ours} left out of it." if beyond > ours else ".")
        )
    return ReportFigure("residuals", figure, " ".join(sentences))


def residual_trends(fit: ParametricFit) -> dict[str, tuple[float, float]]:
    """Spearman's rank correlation of the residuals with N and with D, each with its p-value."""
    points, used = fit.points, fit.points["used"]
    off = points["loss"][used] / points["predicted"][used]
    found = {
        what: stats.spearmanr(points[key][used], off) for what, key in (("N", "parameters"), ("D", "tokens"))
    }
    return {what: (float(test.statistic), float(test.pvalue)) for what, test in found.items()}


def running_median(x: np.ndarray, y: np.ndarray, parts: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Medians of y over `parts` groups of points of rising x: (geometric means of x, medians of y)."""
    groups = [g for g in np.array_split(np.argsort(x, kind="stable"), parts) if len(g)]
    return np.array([np.exp(np.log(x[g]).mean()) for g in groups]), np.array(
        [np.median(y[g]) for g in groups]
    )
