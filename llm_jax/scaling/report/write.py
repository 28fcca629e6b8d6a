"""Writes the files of a report: report.html, figures/*.png, and each fit's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.figure_style import save, styled
from llm_jax.core.files import write_atomic
from llm_jax.scaling.fit.result import write_json
from llm_jax.scaling.report.blocks import Picture
from llm_jax.scaling.report.figures import (
    envelope,
    isoflop,
    law,
    other_laws,
    repetition,
    runs,
    sensitivity,
    tasks,
)
from llm_jax.scaling.report.page import Figures, make_page
from llm_jax.scaling.report.study import PAIRED_METHODS, Study, StudyOptions, make_study

FIGURES = (
    isoflop.curves,
    isoflop.optima,
    law.against_compute,
    tasks.links,
    law.contours,
    law.residuals,
    sensitivity.curve_choices,
    sensitivity.choices,
    sensitivity.published,
    runs.sweep_figure,
    runs.training,
)
"""The functions that draw figures, in the order in which the page numbers them."""
FIGURES_OF = {
    "envelope": envelope.curves,
    "repetition": repetition.epochs,
    "overtraining": other_laws.overtraining,
    "accuracy": other_laws.accuracy,
}
"""Method → the figure that only its fits have, which comes before the others."""


def write_report(
    data: Path,
    folder: Path,
    **options: Any,
) -> Path:
    """Writes the report on a table of runs into a folder, and returns the path of its page; `options` are
    fields of `StudyOptions`.

    A prediction.json beside the table is compared with the measured losses. fit.json is the requested fit;
    the fit by the other of approaches 2 and 3 is fit_isoflop.json or fit_parametric.json. Raises UserError
    where the table can't be read or has nothing to report, and where `method` has no fit, unless
    strict=False.
    """
    study = make_study(data, StudyOptions(**options))
    if not (study.fits or study.minima or runs.sweeps(study.table, study.runs)):
        whys = (
            dict.fromkeys(study.refusals.values())
            if len(set(study.refusals.values())) == 1
            else (f"{n}: {why}" for n, why in study.refusals.items())
        )
        raise UserError(f"data={data}: nothing to report: {'; '.join(whys)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_fits(study, folder)
    page = make_page(study, draw(study, folder / "figures"))
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


def write_fits(study: Study, folder: Path) -> None:
    """Writes fit.json and the fit of its pair; removes those of an earlier report, even if this one has
    none."""
    for name in ("fit.json", *(f"fit_{method}.json" for method in PAIRED_METHODS)):
        (folder / name).unlink(missing_ok=True)
    for method, fit in study.fits.items():
        write_json(
            {**fit.to_json(), "data": str(study.data), "data_notes": study.notes},
            folder / study.file_of(method),
        )


def draw(study: Study, folder: Path) -> Figures:
    """Writes the figures as PNGs into the folder and returns them for the page: as SVG with a caption, or the
    reason why there is none."""
    folder.mkdir(exist_ok=True)
    made: Figures = {}
    kept: set[str] = set()
    with styled():
        for function in (*(FIGURES_OF[method] for method in study.fits if method in FIGURES_OF), *FIGURES):
            figure = function(study)
            key = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
            if isinstance(figure, str):
                made[key] = figure
                continue
            kept.add(f"{figure.name}.png")
            made[key] = Picture(
                len(kept), figure.name, save(figure.figure, folder / f"{figure.name}.png"), figure.caption
            )
    for path in folder.glob("*.png"):
        if path.name not in kept:  # left by an earlier report
            path.unlink()
    return made
