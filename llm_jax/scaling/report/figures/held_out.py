"""Held-out runs in figures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llm_jax.core.figure_style import ORANGE
from llm_jax.core.format import interval, signed_percent
from llm_jax.scaling.report.held_out import HeldOutRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 4
"""The most held-out runs that a caption names."""


def draw_held_out(ax: Axes, held: Sequence[HeldOutRun], key: str) -> None:
    """Draws predictions with their intervals and measured values, against the runs' `key`."""
    for i, run in enumerate(held):
        x, (low, high) = getattr(run, key), run.interval
        if not np.isfinite(x):
            continue
        ax.errorbar(
            x,
            run.predicted,
            yerr=[[max(run.predicted - low, 0)], [max(high - run.predicted, 0)]],
            fmt="_",
            color=ORANGE,
            capsize=4,
            markersize=11,
            zorder=5,
            label="held out: predicted, 95 %" if i == 0 else None,
        )
        if run.measured is not None:
            ax.scatter(
                x,
                run.measured,
                marker="D",
                s=34,
                facecolors="none",
                edgecolors=ORANGE,
                linewidths=1.4,
                zorder=6,
                label="held out: measured" if i == 0 else None,
            )


def held_out_sentences(held: Sequence[HeldOutRun]) -> list[str]:
    """A sentence for each measured held-out run, or one for all of many."""
    measured = [run for run in held if run.relative_error is not None]
    if len(measured) > MOST_NAMED:
        errors = [abs(run.relative_error) for run in measured if run.relative_error is not None]
        return [
            f"{len(measured)} held-out runs: errors of {100 * float(np.median(errors)):.2g} % (median) and "
            f"{100 * max(errors):.2g} % (largest); {sum(run.inside for run in measured)} are inside their "
            "interval."
        ]
    return [
        f"Held-out run {run.name}: predicted {run.predicted:.3f} ({interval(run.interval)}), "
        f"measured {run.measured:.3f}, an error of {signed_percent(run.relative_error or 0.0)}, "
        f"{'inside' if run.inside else 'outside'} the interval."
        for run in measured
    ]
