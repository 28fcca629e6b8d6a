"""Figures of how far the exponents depend on choices in the fit, and of published exponents."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_jax.core.figure_style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, new_figure
from llm_jax.core.format import interval
from llm_jax.scaling.fit.show import EXPONENTS
from llm_jax.scaling.published import exponents
from llm_jax.scaling.report.bands import ReportFigure, is_set
from llm_jax.scaling.report.figures.isoflop import NAMES
from llm_jax.scaling.report.study import Study

SHOWN = ("alpha", "beta", "a", "E")
COLOURS = {"6nd": BLUE, "6nd_non_embedding": ORANGE, "6nd_with_head": GREEN, "exact": PURPLE}
"""Convention → colour."""


def choice_text(row: dict[str, Any]) -> str:
    """The choice in which a row of a sensitivity table differs from the fit, as text."""
    if "drop_highest_losses" in row:
        return (
            f"{row['drop_highest_losses']} highest loss{'' if row['drop_highest_losses'] == 1 else 'es'} "
            "dropped"
        )
    if "delta" in row:
        return "δ = ∞, least squares" if np.isinf(row["delta"]) else f"δ = {row['delta']:g}"
    if "residuals" in row:
        return f"residuals of {'log loss' if row['residuals'] == 'log' else 'loss'}"
    return ", ".join(
        f"{key} = {value}" for key, value in row.items() if key not in (*SHOWN, "A", "B", "b", "G")
    )


def choices(study: Study) -> ReportFigure | str:
    """The law's parameters under other choices, with the 95 % intervals of the fit."""
    fit = study.parametric
    if fit is None or not fit.sensitivity:
        return (
            f"No table of other choices: {study.refusals.get('parametric', 'no law of N and D was fitted')}."
        )
    rows = list(fit.sensitivity)
    labels = [choice_text(row) for row in rows]
    if "parameters" in fit.leave_largest_out:
        rows.append(fit.leave_largest_out["parameters"])
        labels.append("without the largest runs")
    from matplotlib.ticker import MaxNLocator

    own = next(
        (
            i
            for i, row in enumerate(rows)
            if row.get("drop_highest_losses") == fit.settings["drop_highest_losses"]
        ),
        None,
    )
    set_by_option = {"beta", "a"} if is_set(fit) else set()
    shown = [name for name in SHOWN if fit.standard_errors[name] > 0 and name not in set_by_option]
    figure, axes = new_figure(0.9 + 0.21 * len(rows), columns=len(shown), sharey=True, squeeze=False)
    axes = axes[0]
    y = np.arange(len(rows))[::-1]
    for ax, name in zip(axes, shown, strict=True):
        low, high = fit.intervals_95[name]
        ax.axvspan(low, high, color=BLUE, alpha=0.12, linewidth=0)
        ax.axvline(fit.parameters[name], color=BLUE, linewidth=1)
        values = np.array([row[name] for row in rows])
        inside = (values >= low) & (values <= high)
        ax.scatter(values[inside], y[inside], s=22, color=INK, zorder=3)
        ax.scatter(values[~inside], y[~inside], s=22, marker="D", color=ORANGE, zorder=3)
        ax.set_title({"alpha": "α, of N", "beta": "β, of D", "a": "a, of N*(C)", "E": "E (nats)"}[name])
        ax.margins(x=0.15)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(y, [label + (" (this fit)" if i == own else "") for i, label in enumerate(labels)])
    axes[0].set_ylim(-0.7, len(rows) - 0.3)
    sentences = [
        "The same fit under other choices; the line and the band are this fit and its 95 % interval, "
        "diamonds lie outside of it."
    ]
    drops = [row for row in rows if "drop_highest_losses" in row]
    for name in ("beta", "alpha", "a"):
        values = np.array([row[name] for row in drops])
        if len(values) > 1 and name in shown:
            sentences.append(
                f"{ {'alpha': 'α', 'beta': 'β'}.get(name, name) } goes from {values[0]:.3f} with "
                f"{drops[0]['drop_highest_losses']} losses dropped to "
                f"{values[-1]:.3f} with {drops[-1]['drop_highest_losses']}, "
                f"{abs(values[-1] - values[0]) / fit.standard_errors[name]:.1f} "
                "standard errors."
            )
    main = "a" if "a" in shown else "alpha"
    deltas = [row[main] for row in rows if "delta" in row]
    if deltas:
        sentences.append(f"With other δ, {main} lies between {min(deltas):.3f} and {max(deltas):.3f}.")
    low, high = fit.intervals_95[main]
    outside = [label for label, row in zip(labels, rows, strict=True) if not low <= row[main] <= high]
    sentences.append(
        f"Outside of {main}'s interval: {', '.join(outside)}."
        if outside
        else f"No choice moves {main} out of its interval."
    )
    return ReportFigure("sensitivity", figure, " ".join(sentences))


def curve_choices(study: Study) -> ReportFigure | str:
    """The exponent of the IsoFLOP minima under other curves, weights and budgets."""
    fit = study.isoflop
    if fit is None or not fit.sensitivity:
        return (
            "No other readings of the IsoFLOP curves: "
            f"{study.refusals.get('isoflop', 'the runs were not fitted by budgets')}."
        )
    total = fit.settings["budgets"]
    names = [
        row["curve"] if "curve" in row else row["weights"].replace("all alike", "all budgets weighted alike")
        for row in fit.sensitivity
    ]
    labels = [
        f"{text} ({row['budgets']} of {total})" for text, row in zip(names, fit.sensitivity, strict=True)
    ]
    values = np.array([row["a"] for row in fit.sensitivity])
    low, high = fit.a_interval_95
    wide_low, wide_high = fit.a_interval_95_delta
    figure, ax = new_figure(0.75 + 0.21 * len(labels))
    y = np.arange(len(labels))[::-1]
    ax.axvspan(wide_low, wide_high, color=BLUE, alpha=0.07, linewidth=0)
    ax.axvspan(low, high, color=BLUE, alpha=0.13, linewidth=0)
    ax.axvline(fit.a, color=BLUE, linewidth=1)
    inside = (values >= low) & (values <= high)
    ax.scatter(values[inside], y[inside], s=22, color=INK, zorder=3)
    ax.scatter(values[~inside], y[~inside], s=22, marker="D", color=ORANGE, zorder=3)
    ax.set_yticks(y, labels)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="a, the exponent of N* ∝ Cᵃ", ylim=(-0.7, len(labels) - 0.3))
    caption = (
        f"The exponent of the minima with other curves and weights: {values.min():.3f} to "
        f"{values.max():.3f}, where the fit has {fit.a:.3f}. The "
        f"inner band is "
        f"its interval from the noise of each minimum ({interval((low, high))}), the outer one from how "
        "the minima scatter about their line "
        f"({interval((wide_low, wide_high))}). "
    )
    outside = [label for label, present in zip(labels, inside, strict=True) if not present]
    caption += (
        f"Outside of the inner band (diamonds): {'; '.join(outside)}."
        if outside
        else "All are in the inner band."
    )
    return ReportFigure("sensitivity_isoflop", figure, caption)


def published(study: Study) -> ReportFigure | str:
    """The exponent of N*(C), under other conventions too, among published ones."""
    fits = {name: fit for name, fit in study.fits.items() if name in EXPONENTS and not is_set(fit)}
    if not fits:
        return "No comparison with published exponents: no exponent of N* was fitted."
    rows: list[tuple[str, float, Any, str, bool]] = [
        (f"this table, {NAMES[method]}", fit.parameters["a"], fit.intervals_95["a"], study.convention, True)
        for method, fit in fits.items()
    ]
    rows += [
        (f"this table, law, N as in {name}", fit.parameters["a"], fit.intervals_95["a"], name, True)
        for name, fit in study.other_conventions.items()
        if not is_set(fit)
    ]
    mine = len(rows)
    rows += [(row.name, row.a, row.a_interval, row.convention, False) for row in exponents()]
    figure, ax = new_figure(0.8 + 0.21 * len(rows))
    y = np.arange(len(rows))[::-1]
    low, high = rows[0][2]
    ax.axvspan(low, high, color=INK, alpha=0.08, linewidth=0)
    for height, (_, a, ends, convention, ours) in zip(y, rows, strict=True):
        colour = COLOURS.get(convention, INK)
        if ends is not None:
            ax.plot(ends, [height, height], color=colour, linewidth=1.4 if ours else 1, solid_capstyle="butt")
        ax.scatter(a, height, s=34 if ours else 22, marker="D" if ours else "o", color=colour, zorder=3)
    ax.axhline(len(rows) - mine - 0.5, color=MUTED, linewidth=0.6)
    ax.set_yticks(y, [row[0] for row in rows])
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="a, the exponent of N* ∝ Cᵃ", ylim=(-0.7, len(rows) - 0.3))
    present = dict.fromkeys(row[3] for row in rows)
    for convention in present:
        ax.plot([], [], "o", color=COLOURS.get(convention, INK), label=convention, markersize=4.5)
    ax.legend(title="N and C as", title_fontsize=7.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ReportFigure("published", figure, published_caption(study, rows, mine))


def published_caption(study: Study, rows: list[tuple[str, float, Any, str, bool]], mine: int) -> str:
    """The caption of published exponents: those within the interval, and the effect of the convention."""
    _, a, (low, high), convention, _ = rows[0]
    others = rows[mine:]
    near = min(others, key=lambda row: abs(row[1] - a))
    inside = [row[0] for row in others if low <= row[1] <= high]
    sentences = [
        f"Our exponent, {a:.3f} ({interval((low, high))}), among published ones (intervals as printed "
        f"there). Nearest is {near[0]}, {near[1]:.3f}."
    ]
    sentences.append(
        f"{len(inside)} of the {len(others)} lie in our interval"
        + (f": {'; '.join(inside)}." if inside else ".")
    )
    same = [row for row in others if row[3] == convention]
    if same:
        sentences.append(
            f"Published in our convention, {convention}: {min(row[1] for row in same):.2f} to "
            f"{max(row[1] for row in same):.2f}."
        )
    elif convention == "as given":
        sentences.append(
            "The table's convention of N is unknown; exponents are comparable within one convention only."
        )
    if study.other_conventions and study.parametric and not is_set(study.parametric):
        base = study.parametric.parameters["a"]
        moved = [
            f"{fit.parameters['a'] - base:+.3f} ({name})".replace("-", "−")
            for name, fit in study.other_conventions.items()
        ]
        sentences.append(f"Another convention of N moves the exponent of the law by {', '.join(moved)}.")
    return " ".join(sentences)
