"""The figure of tasks: bits per byte of right answers against loss, and accuracy against these bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.figure_style import BLUE, INK, MUTED, ORANGE, new_figure
from llm_jax.core.format import counted
from llm_jax.scaling.fit.accuracy_link import sigmoid_link
from llm_jax.scaling.fit.fit_law import LawFit
from llm_jax.scaling.fit.task_bits import power_of_loss
from llm_jax.scaling.report.bands import ReportFigure
from llm_jax.scaling.report.held_out import held_out_rows
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.task_links import column_or_nan, score_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TASKS = 6
"""The most tasks that are drawn, the first ones of the table."""


def links(study: Study) -> ReportFigure | str:
    """A row for each task: the two links with their runs, and the held-out runs."""
    drawn = [task for task in study.tasks if task.bits][:MOST_TASKS]
    if not drawn:
        return (
            "No figure from loss to tasks: the table has no task with enough scores "
            "(evaluate.tasks=NAMES scores runs)."
        )
    figure, axes = new_figure(2.3 * len(drawn), columns=2, rows=len(drawn), squeeze=False)
    held = held_out_rows(study).to_numpy()
    for task, (left, right) in zip(drawn, axes, strict=True):
        assert task.bits
        bits, score = (
            column_or_nan(study.table, score_column(task.task, quantity))
            for quantity in ("bits_per_byte", "accuracy")
        )
        loss = np.asarray(study.runs.loss, float)
        draw_link(left, task.bits, "loss", "bits_per_byte", power_of_loss, loss[held], bits[held])
        left.set(title=task.task, xlabel="held-out loss, nats a token", ylabel="bits per byte")
        if not task.score:
            words = {"color": MUTED, "ha": "center", "va": "center", "transform": right.transAxes}
            right.text(0.5, 0.5, "no link to accuracy", **words)
            right.set(xticks=[], yticks=[])
            continue
        given = {"low": task.chance, "high": 1.0}
        draw_link(
            right,
            task.score,
            "loss",  # the link's own name for what accuracy depends on: here bits per byte
            "accuracy",
            lambda p, at, given=given: sigmoid_link({**given, **p}, at),
            bits[held],
            score[held],
        )
        right.axhline(task.chance, color=MUTED, linewidth=0.9, linestyle=":")
        right.set(xlabel="bits per byte of the right answers", ylabel="accuracy")
    more = len(study.tasks) - len(drawn)
    sentences = [
        f"{counted(len(drawn), 'task')}: bits per byte of the right answers against loss (left), accuracy "
        "against these bits (right), with the fitted links and 95 % bands. Dotted: chance.",
        *([f"{counted(more, 'more task')} in the table."] if more else []),
        *(["Orange: held-out runs, which are in no link."] if held.any() else []),
    ]
    return ReportFigure("tasks", figure, " ".join(sentences))


def draw_link(
    ax: Axes, fit: LawFit, x: str, y: str, link: Any, held_x: np.ndarray, held_y: np.ndarray
) -> None:
    """A link with its band, its runs, and the held-out runs."""
    points, used = fit.points, fit.points["used"]
    every = np.concatenate([points[x], held_x[np.isfinite(held_x)]])
    margin = 0.06 * np.ptp(every)
    at = np.linspace(every.min() - margin, every.max() + margin, 80)
    ax.plot(at, link(fit.parameters, at), color=BLUE)
    if len(fit.draws):
        draws = dict(zip(fit.parameters, (column[:, None] for column in fit.draws.T), strict=True))
        low, high = np.nanquantile(link(draws, at), [0.025, 0.975], axis=0)
        ax.fill_between(at, low, high, color=BLUE, alpha=0.16, linewidth=0)
    ax.scatter(points[x][used], points[y][used], s=14, color=INK, linewidths=0, zorder=3)
    ax.scatter(points[x][~used], points[y][~used], marker="x", s=20, color=ORANGE, linewidths=1.1, zorder=4)
    ax.scatter(
        held_x, held_y, marker="D", s=30, facecolors="none", edgecolors=ORANGE, linewidths=1.4, zorder=6
    )
