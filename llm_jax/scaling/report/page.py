"""The page of a report: its sections, in order."""

from __future__ import annotations

from pathlib import Path

from llm_jax.core.templates import render
from llm_jax.scaling.report.blocks import Listing, Picture, Section
from llm_jax.scaling.report.caveats import check_assumptions
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.report.summary import summarise
from llm_jax.scaling.report.tables import (
    assumptions_table,
    fit_tables,
    held_out_table,
    minima_table,
    published_table,
    runs_table,
    settings_table,
)
from llm_jax.scaling.report.tasks import forecast_table, link_table

Figures = dict[str, Picture | str]
"""Name of the function that draws a figure → the figure, or the reason why there is none."""


def make_page(study: Study, figures: Figures) -> str:
    """The page as HTML text. figures: as `write.draw` returns them."""
    found = check_assumptions(study)
    summary, cards = summarise(study, found)

    def pictures(*keys: str) -> list[Picture]:
        """The figures that could be drawn; the section "What this table does not show" has the reasons for
        the others."""
        return [figure for key in keys if isinstance(figure := figures.get(key), Picture)]

    against_compute = pictures("law.against_compute")
    reasons = [why for why in figures.values() if isinstance(why, str)]
    sections = [
        Section("fit", "The fit", fit_tables(study)),
        Section("envelope", "Training curves and their envelope", pictures("envelope.curves")),
        Section("repetition", "Loss against epochs", pictures("repetition.epochs")),
        Section("overtraining", "Over-training", pictures("other_laws.overtraining")),
        Section("accuracy", "Accuracy against loss", pictures("other_laws.accuracy")),
        Section("isoflop", "IsoFLOP curves", [*pictures("isoflop.curves"), *minima_table(study)]),
        Section("optimum", "Compute-optimal size and tokens", pictures("isoflop.optima")),
        Section(
            "compute",
            "Loss against compute, and extrapolation" if against_compute else "Held-out runs",
            [*against_compute, *held_out_table(study)],
        ),
        Section(
            "tasks",
            "From loss to tasks",
            [*link_table(study), *pictures("tasks.links"), *forecast_table(study)],
        ),
        Section("contours", "Loss over size and tokens", pictures("law.contours")),
        Section("residuals", "Residuals", pictures("law.residuals")),
        Section(
            "sensitivity",
            "Sensitivity to curves, outliers, δ and the largest runs",
            pictures("sensitivity.curve_choices", "sensitivity.choices"),
        ),
        Section(
            "published", "Published exponents", [*pictures("sensitivity.published"), *published_table(study)]
        ),
        Section("sweep", "Learning rate and batch", pictures("runs.sweep_figure")),
        Section("wrong", "What would make this wrong", assumptions_table(found)),
        Section("training", "Training curves", pictures("runs.training")),
        Section("runs", "The runs", runs_table(study)),
        Section("settings", "Settings", settings_table(study)),
        Section("unseen", "What this table does not show", [Listing(reasons)] if reasons else []),
    ]
    return render(
        "llm_jax.scaling.report",
        "page.html.jinja",
        title=title_of(study.data),
        about=f"{study.data} · {study.rows(len(study.runs))}",
        summary=summary,
        cards=cards,
        sections=[section for section in sections if section.blocks],
    )


def title_of(data: Path) -> str:
    """The page's title: with the name of the grid whose runs.csv `data` is, or of the table."""
    folder = data.resolve().parent
    ours = folder.parent.name if folder.name == "default" else folder.name  # as run folders are named
    return f"Scaling of {ours if data.stem == 'runs' else data.stem}"
