"""The page of a report: its sections in order."""

from __future__ import annotations

from pathlib import Path

from llm_jax.core.templates import render
from llm_jax.scaling.report.blocks import Listing, Picture, Section
from llm_jax.scaling.report.caveats import checks
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.report.summary import in_short
from llm_jax.scaling.report.tables import checks_table, fit_tables, held_out_table, minima_table, published_table, runs_table, settings_table

Figures = dict[str, Picture | str]
"""By function: the figure, or why there is none."""


def make_page(study: Study, figures: Figures) -> str:
    """The whole page as HTML."""
    found = checks(study)
    summary, cards = in_short(study, found)

    def drawn(*keys: str) -> list[Picture]:
        """Those figures that there are; for the others "What this table does not show" says why."""
        return [figure for key in keys if isinstance(figure := figures.get(key), Picture)]

    unseen = [why for why in figures.values() if isinstance(why, str)]
    sections = [
        Section("fit", "The fit", fit_tables(study)),
        Section("envelope", "Training curves and their envelope", drawn("envelope.curves")),
        Section("repetition", "Loss against epochs", drawn("repetition.epochs")),
        Section("isoflop", "IsoFLOP curves", [*drawn("isoflop.curves"), *minima_table(study)]),
        Section("optimum", "Compute-optimal size and tokens", drawn("isoflop.optima")),
        Section("compute", "Loss against compute, and extrapolation", [*drawn("law.against_compute"), *held_out_table(study)]),
        Section("contours", "Loss over size and tokens", drawn("law.contours")),
        Section("residuals", "Residuals", drawn("law.residuals")),
        Section("sensitivity", "Sensitivity to curves, outliers, δ and the largest runs", drawn("sensitivity.curve_choices", "sensitivity.choices")),
        Section("published", "Beside published exponents", [*drawn("sensitivity.published"), *published_table(study)]),
        Section("sweep", "Learning rate and batch", drawn("runs.sweep_figure")),
        Section("wrong", "What would make this wrong", checks_table(found)),
        Section("training", "Training curves", drawn("runs.training")),
        Section("runs", "The runs", runs_table(study)),
        Section("settings", "Settings", settings_table(study)),
        Section("unseen", "What this table does not show", [Listing(unseen)] if unseen else []),
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
    """The grid's name, or the table's."""
    folder = data.resolve().parent
    ours = folder.parent.name if folder.name == "default" else folder.name  # as run folders are named
    return f"Scaling of {ours if data.stem == 'runs' else data.stem}"
