"""The page of a report: its sections in order, with tables and the sentences between figures."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from llm_jax.scaling.fit.methods import METHODS
from llm_jax.scaling.fit.show import EXPONENTS
from llm_jax.scaling.published import exponents
from llm_jax.scaling.report import html
from llm_jax.scaling.report.doubts import Check, checks
from llm_jax.scaling.report.drawn import optimum
from llm_jax.scaling.report.figures.law import held_out_rows, largest_text
from llm_jax.scaling.report.study import WHAT_C_COUNTS, WHAT_N_COUNTS, Study
from llm_jax.scaling.report.style import factor, flops_span, interval, listed, many, percent, say_flops, span
from llm_jax.train.metrics import short

Figures = dict[str, str | tuple[str, str, str]]
"""By function: (name, data URI, caption), or why there is none."""
APPROACHES = {"isoflop": "Approach 2, IsoFLOP minima", "parametric": "Approach 3, a law of N and D"}
MEANINGS = {
    "E": "nats: the loss that no size and no amount of text goes below",
    "A": "what finite size costs is A/N^α",
    "B": "what finite text costs is B/D^β",
    "alpha": "α",
    "beta": "β",
    "a": "N* ∝ C^a",
    "b": "D* ∝ C^b",
    "G": "N* = G (C/6)^a",
    "N_coefficient": "N* at C = 1",
    "D_coefficient": "D* at C = 1",
}
VERDICTS = {"doubt": "▲ DOUBT", "holds": "● HOLDS", "unknown": "○ NOT KNOWN"}
RUN_COLUMNS = ("name", "parameters", "tokens", "flops", "loss", "learning_rate", "batch_size", "steps", "seed", "epochs", "status")
MOST_ROWS_OPEN = 40


def make_page(study: Study, figures: Figures) -> str:
    """The whole page as HTML."""
    found, title = checks(study), title_of(study.data)
    numbered = Numbered({key: entry for key, entry in figures.items() if not isinstance(entry, str)})
    sections = {
        "fit": ("The fit", fit_tables(study)),
        "isoflop": ("IsoFLOP curves", numbered("isoflop.curves") + minima_table(study)),
        "optimum": ("Compute-optimal size and tokens", numbered("isoflop.optima")),
        "compute": ("Loss against compute, and extrapolation", numbered("law.against_compute") + held_out_table(study)),
        "contours": ("Loss over size and tokens", numbered("law.contours")),
        "residuals": ("Residuals", numbered("law.residuals")),
        "sensitivity": (
            "Sensitivity to curves, outliers, δ and the largest runs",
            numbered("sensitivity.curve_choices") + numbered("sensitivity.choices"),
        ),
        "published": ("Beside published exponents", numbered("sensitivity.published") + published_table(study)),
        "sweep": ("Learning rate and batch", numbered("runs.sweep_figure")),
        "wrong": ("What would make this wrong", checks_table(found)),
        "training": ("Training curves", numbered("runs.training")),
        "runs": ("The runs", runs_table(study)),
        "settings": ("Settings", settings_table(study)),
        "unseen": ("What this table does not show", html.listing(entry for entry in figures.values() if isinstance(entry, str))),
    }
    sections = {key: (name, content) for key, (name, content) in sections.items() if content}
    links = " ".join(html.tag("a", html.escape(name.split(",")[0]), href=f"#{key}") for key, (name, _) in sections.items())
    body = [
        html.paragraph(f"Scaling report · {study.data} · {many(len(study.runs), 'run')}", "kicker"),
        html.tag("h1", html.escape(title)),
        in_short(study, found),
        html.tag("nav", links),
        *(html.section(key, name, content) for key, (name, content) in sections.items()),
    ]
    template = Template((Path(__file__).with_name("page.template")).read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(f"Scaling report: {title}"), body="\n".join(body))


def title_of(data: Path) -> str:
    """The grid's name, or the table's."""
    folder = data.resolve().parent
    ours = folder.parent.name if folder.name == "default" else folder.name  # as run folders are named
    return f"Scaling of {ours if data.stem == 'runs' else data.stem}"


class Numbered:
    """The figures that there are, which count themselves as they are placed."""

    def __init__(self, figures: dict[str, Any]) -> None:
        self.figures, self.count = figures, 0

    def __call__(self, key: str) -> str:
        """A figure with its caption; nothing where there is none, as "What this table does not show" says why."""
        if key not in self.figures:
            return ""
        self.count += 1
        name, picture, caption = self.figures[key]
        image = f'<img src="{picture}" alt="Figure {self.count}">'
        text = f"<b>Figure {self.count}.</b> {html.escape(caption)} <code>figures/{name}.png</code>"
        return html.tag("figure", image + html.tag("figcaption", text), id=f"figure-{name}")


def in_short(study: Study, found: list[Check]) -> str:
    """The result in a few sentences, and its numbers."""
    cards, said = [], []
    runs = study.fitted
    if len(runs):
        said.append(
            f"{many(len(runs), 'run')} of {span(runs.parameters.min(), runs.parameters.max())} parameters on "
            f"{span(runs.tokens.min(), runs.tokens.max())} tokens, {flops_span(runs.flops.min(), runs.flops.max())} each. {conventions_text(study)}"
        )
    main = study.main
    if main is not None and main.method in EXPONENTS:
        a, ends = main.parameters["a"], main.intervals_95["a"]
        cards.append((f"{a:.3f}", f"a of N* ∝ C^a, {interval(ends)}; {title_of_method(main.method)}"))
        if len(runs):
            c = np.array([runs.flops.max()])
            n, d = optimum(main, c)
            cards.append(
                (f"{d[0] / n[0]:.3g}", f"tokens a parameter at the largest budget, {say_flops(c[0])}: N* = {short(n[0])}, D* = {short(d[0])}")
            )
            faster = "faster than" if ends[0] > 0.5 else "slower than" if ends[1] < 0.5 else "about as fast as"
            said.append(
                f"Compute-optimal models grow as C^{a:.3f} (95 %: {interval(ends)}), {faster} their data. At {say_flops(c[0])} the best has "
                f"{short(n[0])} "
                f"parameters and {short(d[0])} tokens."
            )
    if main is not None and main.method not in APPROACHES:
        numbers = listed([f"{name} {value:.4g}" for name, value in main.parameters.items()])
        said.append(f"{main.settings['law']}, with {numbers}.")
    if fit := study.parametric:
        p = fit.parameters
        said.append(f"The law is L = {p['E']:.4g} + {p['A']:.4g}/N^{p['alpha']:.4f} + {p['B']:.4g}/D^{p['beta']:.4f}.")
    measured = [row for row in held_out_rows(study) if row["measured"] is not None]
    if measured:
        largest = max(measured, key=lambda row: row["flops"])
        ahead = f", {factor(largest['cost'] / largest['largest'])} times the FLOPs of the largest run fitted" if largest["cost"] else ""
        cards.append((percent(largest["relative_error"]), f"error of the loss foretold of {largest['name']}{ahead}"))
        said.append(
            f"Of a held-out run{ahead} the loss was foretold as {largest['predicted']:.3f} ({interval(largest['interval'])}); measured was "
            f"{largest['measured']:.3f}."
        )
    elif fit and "refused" not in fit.leave_largest_out:
        out = fit.leave_largest_out
        cards.append(
            (
                percent(out["mean_relative_error"]),
                f"error of loss on {largest_text(out['runs'])}{' (mean)' if out['runs'] > 1 else ''}, left out of the fit for this",
            )
        )
    if main is None:
        said.append("No scaling law could be fitted; below it is said why.")
    doubts, unknown = (sum(check.verdict == verdict for check in found) for verdict in ("doubt", "unknown"))
    if found:
        cards.append(
            (
                many(doubts, "doubt"),
                f"and {unknown} not known, of {many(len(found), 'thing')} that the conclusion rests on: see “What would make this wrong”",
            )
        )
    lost = study.runs[study.runs.status != "finished"]
    if len(lost):
        said.append(f"{many(len(lost), 'run')} did not finish and {'is' if len(lost) == 1 else 'are'} listed below.")
    made = "".join(html.tag("div", f"<b>{html.escape(number)}</b><span>{html.escape(about)}</span>", class_="card") for number, about in cards)
    return html.paragraph(" ".join(said)) + (html.tag("div", made, class_="cards") if made else "")


def conventions_text(study: Study) -> str:
    """What N and C are."""
    if study.convention in WHAT_N_COUNTS:
        c = WHAT_C_COUNTS.get(study.convention, "6 N D with this N")
        return f"Convention {study.convention}: N counts {WHAT_N_COUNTS[study.convention]}; C is {c}."
    return "N and C are as the table gives them; it does not say which convention they follow."


def fit_tables(study: Study) -> str:
    """Each fit's numbers, or why there is none."""
    made = []
    for method, fit in study.fits.items():
        s = fit.settings
        made.append(html.tag("h3", html.escape(title_of_method(method))))
        used = s.get("runs_used", s["runs"])
        text = f"{s['law'].replace('alpha', 'α').replace('beta', 'β')}: {used} of {many(s['runs'], 'run')}"
        text += f", {s['budgets_used']} of {many(s['budgets'], 'budget')}" if "budgets" in s else ""
        text += f". Objective {fit.objective:.6e}. Intervals from " + (
            f"{s['bootstrap']} {s['resampling']} resamples." if s["bootstrap"] else "the delta method."
        )
        made.append(html.paragraph(text))
        delta = getattr(fit, "standard_errors_delta", {})
        rows = [
            (name, f"{value:.5g}", f"{fit.standard_errors[name]:.3g}", *(f"{end:.5g}" for end in fit.intervals_95[name]),
             f"{delta[name]:.3g}" if name in delta else "", MEANINGS.get(name, ""))
            for name, value in fit.parameters.items()
        ]  # fmt: skip
        header = ["", ">estimate", ">standard error", ">95 % from", ">to", ">delta-method error", ""]
        if not delta:
            rows, header = [row[:5] + row[6:] for row in rows], header[:5] + header[6:]
        made.append(html.table(header, rows))
        if method not in APPROACHES:
            made.append(html.table(["largest compute left out, then foretold", ">"], left_out_rows(fit.leave_largest_out)))
    made += [html.paragraph(f"{APPROACHES[method]}, has no fit: {why}.", "out") for method, why in study.refused.items()]
    if study.notes:
        made += [html.tag("h3", "The data"), html.listing(f"{note}." for note in study.notes)]
    return "\n".join(made)


def left_out_rows(out: dict[str, Any]) -> list[tuple[str, str]]:
    """An extrapolation test, as its names and numbers."""
    plain = {name: value for name, value in out.items() if isinstance(value, str | int | float)}
    return [(name.replace("_", " "), f"{value:.5g}" if isinstance(value, float) else str(value)) for name, value in plain.items()]


def title_of_method(method: str) -> str:
    """A fit's heading."""
    return APPROACHES.get(method) or f"{method}: {METHODS[method].purpose}"


def minima_table(study: Study) -> str:
    """Each budget's minimum, and the edges."""
    if not study.minima:
        return ""
    rows, classes = [], []
    minima: tuple[Any, ...] = study.minima
    for m in minima:
        there = m.parameters is not None
        numbers = (
            (short(m.parameters), f"{m.log_error:.2f}", short(m.tokens), f"{m.tokens / m.parameters:.3g}", f"{m.loss:.4f}") if there else ("",) * 5
        )
        rows.append((say_flops(m.flops, ""), m.sizes, *numbers, ("edge: " if m.on_edge else "") + m.left_out if m.left_out else "inside"))
        classes.append("doubt" if m.left_out else "")
    return html.table([">FLOPs", ">sizes", ">N*", ">± log N*", ">D*", ">D*/N*", ">loss", "minimum"], rows, classes)


def held_out_table(study: Study) -> str:
    """Predictions and measurements."""
    rows = held_out_rows(study)
    if not rows:
        return ""
    header = ["held-out run", ">N", ">D", ">FLOPs", ">of the largest fitted", ">foretold", ">95 % from", ">to", ">measured", ">error", "foretold"]
    cells = []
    for row in rows:
        there = row["measured"] is not None
        cells.append(
            (
                row["name"],
                short(row["parameters"]),
                short(row["tokens"]),
                say_flops(row["flops"], ""),
                f"{factor(row['cost'] / row['largest'])} ×" if row["cost"] else "",
                f"{row['predicted']:.4f}",
                *(f"{end:.4f}" for end in row["interval"]),
                f"{row['measured']:.4f}" if there else "not yet",
                percent(row["relative_error"]) if there else "",
                "before training" if row["before"] else "after training, by the law above",
            )
        )
    made = html.table(header, cells)
    return made + html.paragraph("The interval is the law's; what one run's seed does comes on top.")


def published_table(study: Study) -> str:
    """Published exponents with their sources."""
    rows = [(row.name, f"{row.a:.3f}", interval(row.a_interval) if row.a_interval else "", row.convention, row.source) for row in exponents()]
    return (
        html.folded("The published exponents and their sources", html.table(["", ">a", "interval", "convention", "source"], rows))
        if study.fits
        else ""
    )


def checks_table(found: list[Check]) -> str:
    """The checks, doubts first."""
    if not found:
        return html.paragraph("Nothing is concluded here, so nothing can make it wrong.", "out")
    counts = {verdict: sum(check.verdict == verdict for check in found) for verdict in VERDICTS}
    text = (
        f"Of {many(len(found), 'thing')} that the conclusion rests on, {counts['doubt']} in doubt, {counts['unknown']} not known from this "
        f"table, {counts['holds']} holding. Doubts come first."
    )
    rows = "\n".join(
        html.tag(
            "tr",
            html.tag("td", html.tag("span", VERDICTS[check.verdict], class_="tag"))
            + html.tag("td", html.escape(check.about))
            + html.tag("td", html.escape(check.said)),
            class_=check.verdict,
        )
        for check in found
    )
    return html.paragraph(text) + html.tag("div", html.tag("table", f"<tbody>{rows}</tbody>", class_="checks"), class_="scroll")


def runs_table(study: Study) -> str:
    """Every run, also those that no fit has seen."""
    runs = study.runs.assign(**{name: study.table[name] for name in RUN_COLUMNS if name in study.table and name not in study.runs})
    shown = [name for name in RUN_COLUMNS if name in runs]
    say: dict[str, Any] = {
        "flops": lambda v: say_flops(v, ""),
        "loss": "{:.4f}".format,
        "parameters": short,
        "tokens": short,
        "learning_rate": "{:.3g}".format,
        "steps": "{:,.0f}".format,
    }
    rows, classes = [], []
    for _, run in runs.iterrows():
        status = run.status + (", held out" if run.held_out else "")
        cells = []
        for name in shown:
            value = status if name == "status" else run[name]
            number = not isinstance(value, str)
            cells.append(
                value if not number else "" if value is None or not np.isfinite(float(value)) else say.get(name, lambda v: f"{v:.4g}")(value)
            )
        rows.append(cells)
        classes.append("gone" if run.status != "finished" else "aside" if run.held_out else "")
    texts = ("name", "status")
    header = [name.replace("_", " ") if name in texts else f">{name.replace('_', ' ')}" for name in shown]
    gone = study.runs[study.runs.status != "finished"]
    counts = [f"{count} {status}" for status, count in study.runs.status.value_counts().items()]
    said = f"{many(len(runs), 'run')}: {listed(counts)}"
    said += f"; {int(study.runs.held_out.sum())} held out of the fits" if study.runs.held_out.any() else ""
    blocks = [html.paragraph(said + ". N, D and FLOPs as in the fit.")]
    if len(gone):
        blocks.append(
            html.table(
                ["not finished", "status", "reason"], [(run["name"], run.status, run.reason) for _, run in gone.iterrows()], ["gone"] * len(gone)
            )
        )
    blocks.append(html.table(header, rows, classes, "runs", tall=len(rows) > MOST_ROWS_OPEN))
    return "\n".join(blocks)


def settings_table(study: Study) -> str:
    """All choices of each fit."""
    made = []
    for method, fit in study.fits.items():
        rows = [(name.replace("_", " "), f"{value:.5g}" if isinstance(value, float) else value) for name, value in fit.settings.items()]
        made.append(html.tag("h3", html.escape(f"{title_of_method(method)} ({study.file_of(method)})")) + html.table(["", ""], rows))
    return "\n".join(made)
