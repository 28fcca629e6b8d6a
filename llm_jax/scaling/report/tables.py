"""The tables of a report: fits, minima, predictions, published exponents, assumptions, runs and settings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from llm_jax.core.format import counted, factor, format_flops, interval, listed, short, signed_percent
from llm_jax.scaling.fit.methods import METHODS
from llm_jax.scaling.fit.show import EXPONENTS, interval_source, left_out_title
from llm_jax.scaling.published import exponents
from llm_jax.scaling.report.bands import is_set
from llm_jax.scaling.report.blocks import (
    AssumptionList,
    Block,
    Folded,
    Heading,
    Listing,
    Paragraph,
    TextTable,
)
from llm_jax.scaling.report.caveats import Assumption
from llm_jax.scaling.report.held_out import held_out_runs
from llm_jax.scaling.report.study import Study

APPROACHES = {"isoflop": "Approach 2, IsoFLOP minima", "parametric": "Approach 3, a law of N and D"}
MEANINGS = {
    "E": "nats: the loss in the limit of infinite size and text",
    "A": "a finite size costs A/N^α nats",
    "B": "finite text costs B/D^β nats",
    "alpha": "α",
    "beta": "β",
    "K": "nats above the floor at 10^18 FLOPs",
    "R_D": "repetitions of tokens that wear off by 1/e",
    "R_N": "the same of parameters in excess",
    "k": "steepness, per nat",
    "middle": "the loss half-way",
    "low": "accuracy at high losses",
    "high": "accuracy at low losses",
}
OPTIMUM_MEANINGS = {
    "a": "N* ∝ C^a",
    "b": "D* ∝ C^b",
    "G": "N* = G (C/6)^a",
    "N_coefficient": "N* at C = 1",
    "D_coefficient": "D* at C = 1",
}
"""Those of the methods whose `a` is the exponent of N*(C)."""
RUN_COLUMNS = (
    "name",
    "parameters",
    "tokens",
    "flops",
    "loss",
    "accuracy",
    "learning_rate",
    "batch_size",
    "steps",
    "seed",
    "epochs",
    "status",
)
MOST_ROWS_OPEN = 40


def fit_tables(study: Study) -> list[Block]:
    """The estimates of each fit, the reason for each missing one, and the notes on the data."""
    made: list[Block] = []
    for method, fit in study.fits.items():
        s = fit.settings
        used = s.get("runs_used", s["runs"])
        text = f"{s['law'].replace('alpha', 'α').replace('beta', 'β')}: {used} of {counted(s['runs'], 'run')}"
        text += f", {s['budgets_used']} of {counted(s['budgets'], 'budget')}" if "budgets" in s else ""
        text += f". Objective {fit.objective:.6e}. Intervals from {interval_source(s)}."
        meanings = MEANINGS | (OPTIMUM_MEANINGS if method in EXPONENTS else {})
        delta = getattr(fit, "standard_errors_delta", {})
        rows = [
            (name, f"{value:.5g}", f"{fit.standard_errors[name]:.3g}",
             *(f"{end:.5g}" for end in fit.intervals_95[name]),
             f"{delta[name]:.3g}" if name in delta else "", meanings.get(name, ""))
            for name, value in fit.parameters.items()
        ]  # fmt: skip
        header = ["", ">estimate", ">standard error", ">95 % from", ">to", ">delta-method error", ""]
        if not delta:
            rows, header = [row[:5] + row[6:] for row in rows], header[:5] + header[6:]
        made += [Heading(title_of_method(method)), Paragraph(text), TextTable(header, rows)]
        if method not in APPROACHES:
            made.append(TextTable([left_out_title(method), ">"], left_out_rows(fit.leave_largest_out)))
    made += [
        Paragraph(f"{APPROACHES[method]}, has no fit: {why}.", absent=True)
        for method, why in study.refusals.items()
    ]
    if study.notes:
        made += [Heading("The data"), Listing([f"{note}." for note in study.notes])]
    return made


def left_out_rows(out: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows (name, value) of an extrapolation test, without its arrays."""
    values = {name: value for name, value in out.items() if isinstance(value, str | int | float)}
    return [
        (name.replace("_", " "), f"{value:.5g}" if isinstance(value, float) else str(value))
        for name, value in values.items()
    ]


def title_of_method(method: str) -> str:
    """The heading of a method's fit."""
    return APPROACHES.get(method) or f"{method}: {METHODS[method].purpose}"


def minima_table(study: Study) -> list[Block]:
    """The minimum of each budget, or why it is left out."""
    if not study.minima:
        return []
    rows, styles = [], []
    minima: tuple[Any, ...] = study.minima
    for m in minima:
        present = m.parameters is not None
        numbers = (
            (
                short(m.parameters),
                f"{m.log_error:.2f}",
                short(m.tokens),
                f"{m.tokens / m.parameters:.3g}",
                f"{m.loss:.4f}",
            )
            if present
            else ("",) * 5
        )
        rows.append(
            (
                format_flops(m.flops, ""),
                m.sizes,
                *numbers,
                ("edge: " if m.on_edge else "") + m.left_out if m.left_out else "inside",
            )
        )
        styles.append("caveat" if m.left_out else "")
    return [
        TextTable([">FLOPs", ">sizes", ">N*", ">± log N*", ">D*", ">D*/N*", ">loss", "minimum"], rows, styles)
    ]


def held_out_table(study: Study) -> list[Block]:
    """The predictions of held-out runs, and their measured losses."""
    rows = held_out_runs(study)
    if not rows:
        return []
    header = [
        "held-out run",
        ">N",
        ">D",
        ">FLOPs",
        ">of the largest fitted",
        ">predicted",
        ">95 % from",
        ">to",
        ">measured",
        ">error",
        "prediction made",
    ]
    cells = []
    for run in rows:
        cells.append(
            (
                run.name,
                *(short(value) if value > 0 else "" for value in (run.parameters, run.tokens)),
                format_flops(run.flops, "") if run.flops > 0 else "",
                f"{factor(run.times_largest)} ×" if run.times_largest else "",
                f"{run.predicted:.4f}",
                *(f"{end:.4f}" for end in run.interval),
                "not yet" if run.measured is None else f"{run.measured:.4f}",
                "" if run.relative_error is None else signed_percent(run.relative_error),
                "before training" if run.before else "after training, by the law above",
            )
        )
    return [
        TextTable(header, cells),
        Paragraph("The interval is that of the law; the noise of a run's seed comes on top."),
    ]


def published_table(study: Study) -> list[Block]:
    """The published exponents with conventions and sources."""
    if not any(method in EXPONENTS and not is_set(fit) for method, fit in study.fits.items()):
        return []
    rows = [
        (
            row.name,
            f"{row.a:.3f}",
            interval(row.a_interval) if row.a_interval else "",
            row.convention,
            row.source,
        )
        for row in exponents()
    ]
    return [
        Folded(
            "The published exponents and their sources",
            TextTable(["", ">a", "interval", "convention", "source"], rows),
        )
    ]


def assumptions_table(found: list[Assumption]) -> list[Block]:
    """The assumptions with their verdicts, caveats first."""
    if not found:
        return [Paragraph("The report has no conclusion, hence no caveats.", absent=True)]
    counts = Counter(assumption.verdict for assumption in found)
    text = (
        f"Assumptions that the conclusion rests on: {len(found)}. Caveats: {counts['caveat']}; unknown from "
        f"this table: {counts['unknown']}; holding: {counts['holds']}. Caveats come first."
    )
    return [Paragraph(text), AssumptionList(found)]


def runs_table(study: Study) -> list[Block]:
    """Every run, including those that no fit uses."""
    runs = study.runs.assign(
        **{name: study.table[name] for name in RUN_COLUMNS if name in study.table and name not in study.runs}
    )
    left_out = study.main.settings.get("left_out", []) if study.main is not None else []
    shown = [name for name in RUN_COLUMNS if name in runs and runs[name].notna().any()]
    formats: dict[str, Any] = {
        "flops": lambda v: format_flops(v, ""),
        "loss": "{:.4f}".format,
        "accuracy": "{:.4f}".format,
        "parameters": short,
        "tokens": short,
        "learning_rate": "{:.3g}".format,
        "steps": "{:,.0f}".format,
    }
    rows, styles = [], []
    for _, run in runs.iterrows():
        status = run.status + (", held out" if run.held_out else "") + (", not the best" if run.aside else "")
        status += ", left out" if run["name"] in left_out else ""
        cells = []
        for name in shown:
            value = status if name == "status" else run[name]
            number = not isinstance(value, str)
            cells.append(
                value
                if not number
                else ""
                if value is None or not np.isfinite(float(value))
                else formats.get(name, lambda v: f"{v:.4g}")(value)
            )
        rows.append(cells)
        styles.append("gone" if run.status != "finished" else "aside" if run.held_out or run.aside else "")
    texts = ("name", "status")
    header = [name.replace("_", " ") if name in texts else f">{name.replace('_', ' ')}" for name in shown]
    gone = study.runs[study.runs.status != "finished"]
    counts = [f"{count} {status}" for status, count in study.runs.status.value_counts().items()]
    text = f"{study.rows(len(runs))}: {listed(counts)}"
    text += f"; {int(study.runs.held_out.sum())} held out of the fits" if study.runs.held_out.any() else ""
    text += f"; {int(study.runs.aside.sum())} left aside by best_of" if study.runs.aside.any() else ""
    made: list[Block] = [Paragraph(text + ". Numbers are as in the fit.")]
    if len(gone):
        lost = [(run["name"], run.status, run.reason) for _, run in gone.iterrows()]
        made.append(TextTable(["not finished", "status", "reason"], lost, ["gone"] * len(lost)))
    made.append(TextTable(header, rows, styles, style="runs", tall=len(rows) > MOST_ROWS_OPEN))
    return made


def settings_table(study: Study) -> list[Block]:
    """The settings of each fit, a table for each method."""
    made: list[Block] = []
    for method, fit in study.fits.items():
        rows = [
            (name.replace("_", " "), f"{value:.5g}" if isinstance(value, float) else value)
            for name, value in fit.settings.items()
        ]
        made += [Heading(f"{title_of_method(method)} ({study.file_of(method)})"), TextTable(["", ""], rows)]
    return made
