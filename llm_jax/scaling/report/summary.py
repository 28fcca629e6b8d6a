"""The summary of a report: its result in a few sentences, and cards with its numbers."""

from __future__ import annotations

import numpy as np

from llm_jax.core.format import (
    counted,
    factor,
    flops_span,
    format_flops,
    interval,
    listed,
    short,
    signed_percent,
    span,
)
from llm_jax.scaling.fit.show import EXPONENTS
from llm_jax.scaling.report.bands import is_set, optimum
from llm_jax.scaling.report.blocks import Card
from llm_jax.scaling.report.caveats import Assumption
from llm_jax.scaling.report.figures.law import largest_text
from llm_jax.scaling.report.held_out import held_out_runs
from llm_jax.scaling.report.study import WHAT_C_COUNTS, WHAT_N_COUNTS, Study
from llm_jax.scaling.report.tables import APPROACHES, title_of_method


def summarise(study: Study, found: list[Assumption]) -> tuple[str, list[Card]]:
    """The summary as text, and the cards."""
    cards: list[Card] = []
    sentences = []
    runs = study.fitted
    if len(runs) and runs[["parameters", "tokens", "flops"]].notna().all(axis=None):
        sentences.append(
            f"{study.rows(len(runs))} of {span(runs.parameters.min(), runs.parameters.max())} parameters on "
            f"{span(runs.tokens.min(), runs.tokens.max())} tokens, "
            f"{flops_span(runs.flops.min(), runs.flops.max())} each. {conventions_text(study)}"
        )
    elif len(runs):
        sentences.append(f"{study.rows(len(runs))}.")
    main = study.main
    if main is not None and main.method in EXPONENTS:
        a, ends = main.parameters["a"], main.intervals_95["a"]
        known = "set by tied=true" if is_set(main) else interval(ends)
        cards.append(Card(f"{a:.3f}", f"a of N* ∝ C^a, {known}; {title_of_method(main.method)}"))
        if len(runs):
            c = np.array([runs.flops.max()])
            n, d = optimum(main, c)
            about = (
                f"tokens a parameter at the largest budget, {format_flops(c[0])}: N* = {short(n[0])}, D* = "
                f"{short(d[0])}"
            )
            cards.append(Card(f"{d[0] / n[0]:.3g}", about))
            faster = (
                "as tied=true has them, as fast as"
                if is_set(main)
                else "faster than"
                if ends[0] > 0.5
                else "slower than"
                if ends[1] < 0.5
                else "about as fast as"
            )
            sentences.append(
                f"Compute-optimal models grow as C^{a:.3f}"
                f"{'' if is_set(main) else f' (95 %: {interval(ends)})'}, {faster} their data. "
                f"At {format_flops(c[0])} the best has "
                f"{short(n[0])} parameters and {short(d[0])} tokens."
            )
    if main is not None and main.method not in APPROACHES:
        numbers = listed([f"{name} {value:.4g}" for name, value in main.parameters.items()])
        sentences.append(f"{main.settings['law']}, with {numbers}.")
    if fit := study.parametric:
        p = fit.parameters
        sentences.append(
            f"The law is L = {p['E']:.4g} + {p['A']:.4g}/N^{p['alpha']:.4f} + {p['B']:.4g}/D^{p['beta']:.4f}."
        )
    measured = [run for run in held_out_runs(study) if run.measured is not None]
    if measured:
        largest = max(measured, key=lambda run: run.flops if run.flops > 0 else -run.loss)
        times = largest.times_largest
        ahead = ""
        if times and times > 1.05:
            ahead = f", {factor(times)} times the FLOPs of the largest run fitted,"
        what = "accuracy" if study.law is not None and study.law.method == "accuracy" else "loss"
        cards.append(
            Card(
                signed_percent(largest.relative_error or 0.0),
                f"error of the {what} predicted for {largest.name}{ahead.removesuffix(',')}",
            )
        )
        sentences.append(
            f"A held-out run{ahead} was predicted to reach {'an' if what == 'accuracy' else 'a'} {what} of "
            f"{largest.predicted:.3f} ({interval(largest.interval)}); measured: {largest.measured:.3f}."
        )
    elif fit and "refused" not in fit.leave_largest_out:
        out = fit.leave_largest_out
        about = (
            f"error of loss on {largest_text(out['runs'])}{' (mean)' if out['runs'] > 1 else ''}, left out "
            "of the fit for this"
        )
        cards.append(Card(signed_percent(out["mean_relative_error"]), about))
    if main is None:
        sentences.append("No scaling law could be fitted, for the reasons below.")
    caveats, unknown = (
        sum(assumption.verdict == verdict for assumption in found) for verdict in ("caveat", "unknown")
    )
    if found:
        about = (
            f"and {unknown} unknown, of {counted(len(found), 'assumption')} that the conclusion rests on: "
            "see “What would make this wrong”"
        )
        cards.append(Card(counted(caveats, "caveat"), about))
    lost = study.runs[study.runs.status != "finished"]
    if len(lost):
        sentences.append(
            f"{study.rows(len(lost))} did not finish and {'is' if len(lost) == 1 else 'are'} listed below."
        )
    return " ".join(sentences), cards


def conventions_text(study: Study) -> str:
    """The convention of N and C as a sentence."""
    if study.convention in WHAT_N_COUNTS:
        c = WHAT_C_COUNTS.get(study.convention, "6 N D with this N")
        return f"Convention {study.convention}: N counts {WHAT_N_COUNTS[study.convention]}; C is {c}."
    return "N and C are as the table gives them; their convention is unknown."
