"""Writes a report's files: report.html, figures/*.png, and each fit's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.figure_style import save, styled
from llm_jax.core.files import write_atomic
from llm_jax.scaling.fit.result import write_json
from llm_jax.scaling.report.blocks import Picture
from llm_jax.scaling.report.figures import envelope, isoflop, law, repetition, runs, sensitivity
from llm_jax.scaling.report.page import Figures, make_page
from llm_jax.scaling.report.study import COMPANIONS, Study, make_study

FIGURES = (
    isoflop.curves,
    isoflop.optima,
    law.against_compute,
    law.contours,
    law.residuals,
    sensitivity.curve_choices,
    sensitivity.choices,
    sensitivity.published,
    runs.sweep_figure,
    runs.training,
)
"""In the order of the page, which numbers them."""
FIGURES_OF = {"envelope": envelope.curves, "repetition": repetition.epochs}
"""By method: what only a fit of that kind has, before the others."""


def write_report(
    data: Path,
    folder: Path,
    *,
    fit: Any = None,
    notes: list[str] | None = None,
    method: str = "",
    mapping: Mapping[str, str] | None = None,
    convention: str = "",
    options: Mapping[str, Any] | None = None,
    insist: bool = True,
) -> Path:
    """Writes the report on a table of runs into a folder, and returns its page's path.

    The runs are fitted by `method` with `options`; or `fit` is such a fit already, and `notes` what was assumed of the data for it.
    Without either, approaches 2 and 3 are both tried. `mapping` is {our column: theirs} for other people's tables, `convention` says
    what N and FLOPs are (as in `llm_jax.scaling.fit`). A prediction.json beside the table is compared with what was measured.

    fit.json is the fit that was asked for; a companion, by the other approach, is fit_isoflop.json or fit_parametric.json.
    Raises UserError where the table can't be read or carries nothing that could be reported; and where `method` refuses, if we
    `insist` on it: else the page says why it did.
    """
    study = make_study(data, fit=fit, notes=notes, method=method, mapping=mapping, convention=convention, options=options, insist=insist)
    if not (study.fits or study.minima or runs.sweeps(study.table, study.runs)):
        whys = dict.fromkeys(study.refused.values()) if len(set(study.refused.values())) == 1 else (f"{n}: {why}" for n, why in study.refused.items())
        raise UserError(f"data={data}: nothing to report: {'; '.join(whys)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_fits(study, folder)
    page = make_page(study, draw(study, folder / "figures"))
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


def write_fits(study: Study, folder: Path) -> None:
    """fit.json and its companion; an earlier report's go, also where this one has none."""
    for name in ("fit.json", *(f"fit_{method}.json" for method in COMPANIONS)):
        (folder / name).unlink(missing_ok=True)
    for method, fit in study.fits.items():
        write_json({**fit.to_json(), "data": str(study.data), "data_notes": study.notes}, folder / study.file_of(method))


def draw(study: Study, folder: Path) -> Figures:
    """All figures as PNGs in the folder, and for the page: by name, each as its SVG with a caption, or a sentence why there is none."""
    folder.mkdir(exist_ok=True)
    made: Figures = {}
    kept: set[str] = set()
    with styled():
        for function in (*(FIGURES_OF[method] for method in study.fits if method in FIGURES_OF), *FIGURES):
            drawn = function(study)
            key = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
            if isinstance(drawn, str):
                made[key] = drawn
                continue
            kept.add(f"{drawn.name}.png")
            made[key] = Picture(len(kept), drawn.name, save(drawn.figure, folder / f"{drawn.name}.png"), drawn.caption)
    for path in folder.glob("*.png"):
        if path.name not in kept:  # of an earlier report
            path.unlink()
    return made
