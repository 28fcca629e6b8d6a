"""The tables of tasks in a report: the links from loss to each task, and the forecasts of held-out runs."""

from __future__ import annotations

from llm_jax.core.format import interval
from llm_jax.scaling.report.blocks import Block, Listing, Paragraph, TextTable
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.task_links import QUANTITIES


def link_table(study: Study) -> list[Block]:
    """The constants of the links, and why links are missing."""
    if not study.tasks:
        return []
    rows = []
    for links in study.tasks:
        bits, score = (
            [f"{fit.parameters[name]:.3g} ({interval(fit.intervals_95[name])})" for name in names]
            if fit
            else [""] * 2
            for fit, names in ((links.bits, ("K", "kappa")), (links.score, ("k", "middle")))
        )
        runs = links.bits.settings["runs_used"] if links.bits else 0
        rows.append((links.task, runs, f"{links.chance:.3g}", *bits, *score))
    missing = [
        f"{links.task}: no link to {QUANTITIES[quantity]}: {why.rstrip('.')}."
        for links in study.tasks
        for quantity, why in links.refused.items()
    ]
    return [
        Paragraph(
            "Bits per byte of a task's right answers follow the loss as B = K L^κ. Accuracy follows these "
            "bits as a sigmoid, from chance to 1, of steepness k, half-way where B is the middle."
        ),
        TextTable(
            ["task", ">runs", ">chance", ">K (95 %)", ">κ (95 %)", ">k (95 %)", ">middle (95 %)"], rows
        ),
        *([Listing(missing)] if missing else []),
    ]


def forecast_table(study: Study) -> list[Block]:
    """The forecasts of held-out runs' scores from before their training, and what they measured."""
    rows = []
    for name, entry in study.predictions.items():
        for task, forecasts in entry.get("tasks", {}).items():
            for quantity, one in forecasts.items():
                (low, high), measured = one["interval_95"], one.get("measured")
                where = "not yet" if measured is None else "yes" if low <= measured <= high else "no"
                shown = "not yet" if measured is None else f"{measured:.3f}"
                rows.append(
                    (name, task, QUANTITIES[quantity], f"{one['predicted']:.3f}", f"{low:.3f}", f"{high:.3f}",
                     shown, where)
                )  # fmt: skip
    if not rows:
        return []
    header = ["held-out run", "task", "", ">forecast", ">95 % from", ">to", ">measured", "inside"]
    return [
        TextTable(header, rows),
        Paragraph(
            "Forecasts are from before the runs were trained: the law's loss, through both links. Their "
            "interval has the uncertainty of the law and of the links, and the scatter of runs around the "
            "links."
        ),
    ]
