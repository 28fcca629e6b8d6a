"""The assumptions that a report's conclusion rests on, each tested on the table: caveats, those that hold,
and unknown ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from llm_jax.core.format import counted, factor, format_flops, interval, listed, short, signed_percent
from llm_jax.scaling.fit import ParametricFit
from llm_jax.scaling.fit.methods import METHODS
from llm_jax.scaling.report.bands import is_set
from llm_jax.scaling.report.figures.law import TREND_P_VALUE, largest_text, residual_trends
from llm_jax.scaling.report.figures.runs import sweeps
from llm_jax.scaling.report.held_out import held_out_rows, held_out_runs
from llm_jax.scaling.report.study import Study

FEW_A_PARAMETER = 5
"""Fewer runs for each parameter of a law are a caveat: the fit may follow the noise."""
FEW_BUDGETS = 5
"""Fewer budgets in a fit of approach 2 are a caveat."""
LONG_WARMUP = 0.25
"""A warm-up of more than this part of the steps is a caveat."""
FAR = 1.25
"""A larger factor between the N* of two approaches is a caveat."""
SHORTEST_SPAN = 100.0
"""A smaller factor between the smallest and the largest compute is a caveat."""


@dataclass(frozen=True)
class Assumption:
    """Something that the conclusion rests on, with the verdict of a test on the table."""

    verdict: Literal["caveat", "holds", "unknown"]
    about: str
    """A title of a few words."""
    text: str
    """A sentence with numbers."""


def check_assumptions(study: Study) -> list[Assumption]:
    """The results of all checks: caveats first, then unknown ones, then those that hold."""
    found = [assumption for check in CHECKS for assumption in check(study)]
    return sorted(found, key=lambda assumption: ("caveat", "unknown", "holds").index(assumption.verdict))


def warnings(study: Study) -> Iterator[Assumption]:
    """The warnings of the fits, but for minima on edges, which `edges` reports."""
    names = {"isoflop": "IsoFLOP fit", "parametric": "Law of N and D"}
    shown = tuple(f"{m.flops:.3g} FLOPs left out" for m in study.minima if m.on_edge)
    for name, fit in study.fits.items():
        for line in fit.warnings:
            if not line.startswith(shown):
                yield Assumption("caveat", names.get(name, name), f"{line[0].upper()}{line[1:]}.")


def edges(study: Study) -> Iterator[Assumption]:
    """Checks whether every budget's minimum lies between its smallest and largest size."""
    if study.isoflop is None:  # then no conclusion rests on the minima
        return
    out = [m for m in study.minima if m.on_edge]
    there = [m for m in study.minima if not m.left_out]
    if out:
        yield Assumption(
            "caveat",
            "Minima on an edge",
            f"{len(out)} of {len(study.minima)} budgets ({listed([format_flops(m.flops) for m in out])}): "
            "the lowest loss is at the smallest or largest size trained. They are left out; if they are the "
            "largest budgets, the exponent rests on the small ones alone.",
        )
    else:
        yield Assumption(
            "holds",
            "Minima inside",
            f"Each of the {counted(len(there), 'budget')} in the fit has sizes on both sides of its minimum.",
        )


def extrapolation(study: Study) -> Iterator[Assumption]:
    """The errors of predictions: held-out runs, and the largest runs or budget left out of the fit."""
    measured = [run for run in held_out_runs(study) if run.measured is not None]
    for run in measured:
        yield Assumption(
            "holds" if run.inside else "caveat",
            "Held-out run",
            f"{run.name} was predicted {'before' if run.before else 'after'} its training: "
            f"{run.predicted:.3f} ({interval(run.interval)}), measured {run.measured:.3f}, "
            f"{signed_percent(run.relative_error or 0)}. "
            + (
                ""
                if run.inside
                else "The measured value is outside of the interval, which covers the law's error, not a "
                "seed's."
            ),
        )
    for name in fitted_too(study):
        yield Assumption(
            "caveat",
            "Held-out run",
            f"{name} has the size, tokens and loss of a run in the fit: its prediction is no test.",
        )
    if fit := study.parametric:
        out = fit.leave_largest_out
        if "refused" not in out and out["largest_relative_error"] <= 0.02:
            yield Assumption(
                "holds",
                "Largest runs left out",
                f"The law of the smaller runs predicts {largest_text(out['runs'])} to "
                f"{100 * out['largest_relative_error']:.2f} % or better.",
            )
    if curves := study.isoflop:
        out = curves.leave_largest_out
        if "refused" not in out:
            yield Assumption(
                "holds" if abs(out["relative_error"]) < 0.2 else "caveat",
                "Largest budget left out",
                "The line through the other budgets misses the measured N* of the largest by "
                f"{signed_percent(out['relative_error'], 1)}, "
                f"with an exponent of {out['a']:.3f} in place "
                f"of {curves.a:.3f}.",
            )
    if study.fits and not measured:
        held = int(held_out_rows(study).sum())
        tested = any("refused" not in fit.leave_largest_out for fit in study.fits.values())
        inside = (
            "extrapolation was tested inside the table only" if tested else "extrapolation was not tested"
        )
        if study.law is None and held:
            text = (
                f"The table has {counted(held, 'held-out run')}, but no fit here predicts a loss: {inside}."
            )
        elif held:
            text = (
                f"None of the {counted(held, 'held-out run')} has the numbers that the law needs: {inside}."
            )
        else:
            text = f"The table has no held-out run with a measured loss: {inside}."
        yield Assumption("unknown", "No held-out run", text)


def fitted_too(study: Study) -> list[str]:
    """The held-out runs of whose numbers there is a run in the fit."""
    numbers = ["parameters", "tokens", "loss"]
    held = study.runs[held_out_rows(study)]
    fitted = {tuple(row) for row in study.fitted[numbers].round(9).itertuples(index=False)}
    return [
        str(run["name"]) for _, run in held.iterrows() if tuple(run[numbers].astype(float).round(9)) in fitted
    ]


def choices(study: Study) -> Iterator[Assumption]:
    """How far other curves, weights, outlier rules, deltas and residuals move the exponent."""
    if curves := study.isoflop:
        values = [row["a"] for row in curves.sensitivity]
        ends = [
            min(curves.a_interval_95[0], curves.a_interval_95_delta[0]),
            max(curves.a_interval_95[1], curves.a_interval_95_delta[1]),
        ]
        inside = ends[0] <= min(values) and max(values) <= ends[1]
        yield Assumption(
            "holds" if inside else "caveat",
            "Other readings of the curves",
            f"Other curves, weights and budgets give an exponent of {min(values):.3f} to "
            f"{max(values):.3f}, {'within' if inside else 'beyond'} "
            f"the wider "
            f"interval ({interval(ends)}).",
        )
    fit = study.parametric
    if fit is None or not fit.sensitivity:
        return
    name = "alpha" if is_set(fit) else "a"
    values = [row[name] for row in fit.sensitivity]
    low, high = fit.intervals_95[name]
    wide = max(values) - min(values)
    inside = low <= min(values) and max(values) <= high
    yield Assumption(
        "holds" if inside else "caveat",
        "Other choices in the fit",
        f"Over {kinds_of(fit)} the exponent {name} spans {min(values):.3f} to {max(values):.3f}"
        + (f", {wide / (high - low):.1f} times the width of" if high > low else "; this is")
        + f" its interval ({interval((low, high))})"
        + ("." if inside else ": the interval covers noise, not these choices."),
    )


def kinds_of(fit: ParametricFit) -> str:
    """The kinds of choices in a law's sensitivity, as text."""
    kinds = {"drop_highest_losses": "outlier rules", "delta": "δ", "residuals": "residuals"}
    return listed([text for key, text in kinds.items() if any(key in row for row in fit.sensitivity)])


def conventions(study: Study) -> Iterator[Assumption]:
    """How far another convention of N moves the exponent."""
    fit = study.parametric
    if study.main is None or "parameters" not in METHODS[study.main.method].needs:
        return
    if study.other_conventions and fit and not is_set(fit):
        exponents = {study.convention: fit.parameters["a"]} | {
            name: other.parameters["a"] for name, other in study.other_conventions.items()
        }
        wide = max(exponents.values()) - min(exponents.values())
        big = wide > fit.intervals_95["a"][1] - fit.intervals_95["a"][0]
        yield Assumption(
            "caveat" if big else "holds",
            "Convention of N",
            f"The same runs give a = {listed([f'{a:.3f} ({name})' for name, a in exponents.items()])}: "
            f"the convention changes it by {wide:.3f}. "
            f"Compare it with exponents of "
            "the same convention only.",
        )
    elif not study.other_conventions:
        yield Assumption(
            "unknown",
            "Convention of N",
            f"The fit has N in one convention ({study.convention}), so the effect of another is "
            "unknown; for small models it is large.",
        )


def law(study: Study) -> Iterator[Assumption]:
    """Checks whether the law's floor is below all losses, and its residuals have no trend with N or D."""
    fit = study.parametric
    if fit is None:
        return
    used = fit.points["used"]
    lowest, floor = float(fit.points["loss"][used].min()), fit.parameters["E"]
    if floor >= lowest:
        yield Assumption(
            "caveat",
            "The law's floor",
            f"E = {floor:.3f} is above the lowest loss that was measured, {lowest:.3f}: the law is wrong "
            "there.",
        )
    trends = {
        what: (rank, chance)
        for what, (rank, chance) in residual_trends(fit).items()
        if chance < TREND_P_VALUE
    }
    if trends:
        text = listed(
            [f"{what} (rank correlation {rank:+.2f})".replace("-", "−") for what, (rank, _) in trends.items()]
        )
        yield Assumption(
            "caveat",
            "Trend of residuals",
            f"Measured over predicted loss is correlated with {text}: the law has another curvature than "
            "the runs.",
        )
    else:
        yield Assumption(
            "holds",
            "Trend of residuals",
            "Measured over predicted loss is correlated neither with N nor with D beyond chance.",
        )


def approaches(study: Study) -> Iterator[Assumption]:
    """Checks whether approaches 2 and 3 agree on the exponent and on N* at the largest budget."""
    curves, fit = study.isoflop, study.parametric
    if curves is None or fit is None or is_set(fit):
        return
    c = study.fitted.flops.max()
    first, second = float(curves.optimal(c)[0]), float(fit.law.optimal(c)[0])
    difference = abs(curves.a - fit.parameters["a"])
    spread = float(np.hypot(curves.standard_errors["a"], fit.standard_errors["a"]))
    apart = max(first / second, second / first)
    agree = difference <= 2 * spread and apart <= FAR
    yield Assumption(
        "holds" if agree else "caveat",
        "Two approaches",
        f"Exponents: {curves.a:.3f} from the minima, {fit.parameters['a']:.3f} from the law, "
        f"{difference / max(spread, 1e-12):.1f} joint "
        f"standard errors apart. "
        f"N* at the largest budget: {short(first)} and {short(second)}.",
    )


def points(study: Study) -> Iterator[Assumption]:
    """Checks whether there are enough runs and budgets, over a wide enough span of compute."""
    if fit := study.parametric:
        used = fit.settings["different_runs"]
        free = used - fit.settings["degrees_of_freedom"]
        few = used < FEW_A_PARAMETER * free
        yield Assumption(
            "caveat" if few else "holds",
            "Number of runs",
            f"{used} different runs determine {free} parameters"
            + (": few, the fit may follow their noise." if few else "."),
        )
    if curves := study.isoflop:
        used = curves.settings["budgets_used"]
        few = used < FEW_BUDGETS
        yield Assumption(
            "caveat" if few else "holds",
            "Number of budgets",
            f"The exponent is a line through {used} minima"
            + (": few, one of them can change it." if few else "."),
        )
    if study.fits and len(study.fitted) and study.fitted.flops.min() > 0 and study.main.method != "accuracy":
        span = study.fitted.flops.max() / study.fitted.flops.min()
        short_span = span < SHORTEST_SPAN
        yield Assumption(
            "caveat" if short_span else "holds",
            "Span of compute",
            f"The runs span a factor of {factor(span)} in compute"
            + (": little to extrapolate from." if short_span else "."),
        )


def noise(study: Study) -> Iterator[Assumption]:
    """Checks whether the spread of loss between seeds was measured, and is as small as the fit assumes."""
    if not study.fits or "seed" not in study.table:
        return
    same = [
        name
        for name in ("parameters", "tokens", "learning_rate", "batch_size", "layers", "embed")
        if name in study.table
    ]
    done = study.table[study.runs.status == "finished"].assign(loss=study.runs.loss)
    repeated = [group.loss.std() for _, group in done.groupby(same) if group.seed.nunique() > 1]
    assumed = study.isoflop.settings["loss_noise"] if study.isoflop else None
    if repeated:
        spread = float(np.sqrt(np.mean(np.square(repeated))))
        more = assumed is not None and spread > 1.5 * assumed
        text = (
            f"{counted(len(repeated), 'configuration')} with several seeds differ by {spread:.4f} nats "
            "(standard deviation)"
        )
        yield Assumption(
            "caveat" if more else "holds",
            "Noise between seeds",
            text + (f"; the IsoFLOP fit takes {assumed:.2g}." if assumed is not None else "."),
        )
    else:
        text = "No configuration was trained with several seeds: how much a seed changes is not measured"
        yield Assumption(
            "unknown",
            "Noise between seeds",
            text + (f"; the IsoFLOP fit takes {assumed:.2g} nats." if assumed is not None else "."),
        )


def schedules(study: Study) -> Iterator[Assumption]:
    """Checks whether all runs have one schedule that decays to their own end, after a short warm-up."""
    done = study.table[(study.runs.status == "finished").to_numpy()]
    if "schedule" not in done or not study.fits:
        if study.fits and study.main.method != "accuracy":
            yield Assumption(
                "unknown",
                "Schedules",
                "The table has no schedules; a run that was stopped before its decay ended has too high a "
                "loss.",
            )
        return
    named = done.schedule.dropna().astype(str)
    constant = int((named == "constant").sum())
    if constant:
        yield Assumption(
            "caveat",
            "Schedules",
            f"{constant} of {len(done)} runs have a constant learning rate: their losses are not those of "
            "a run decayed to its end.",
        )
    if named.nunique() > 1:
        yield Assumption(
            "caveat",
            "Schedules",
            "Runs of different schedules in one fit: "
            f"{', '.join(f'{count} {name}' for name, count in named.value_counts().items())}.",
        )
    if {"warmup_steps", "steps"} <= set(done):
        share = pd.to_numeric(done.warmup_steps) / pd.to_numeric(done.steps)
        long = int((share > LONG_WARMUP).sum())
        if long:
            yield Assumption(
                "caveat",
                "Warm-up",
                f"In {long} of {len(done)} runs more than {100 * LONG_WARMUP:.0f} % of the steps are "
                f"warm-up (up to {100 * share.max():.0f} %): "
                f"short runs have too high a loss.",
            )
        elif not constant and named.nunique() == 1 and len(named) == len(done):
            yield Assumption(
                "holds",
                "Schedules",
                f"All runs have the schedule {named.iloc[0]}; warm-up is at most "
                f"{100 * share.max():.0f} % of the steps.",
            )


def tuning(study: Study) -> Iterator[Assumption]:
    """Checks whether the best run of each sweep lies inside of the sweep."""
    found = sweeps(study.table, study.runs)
    for sweep in found:
        if sweep.edges:
            yield Assumption(
                "caveat",
                "Sweep's best run",
                f"With {short(sweep.parameters)} parameters the best run is at the {listed(sweep.edges)}: "
                "a better one "
                "may be beyond it, and runs tuned by this sweep are not at their best.",
            )
    if found and not any(sweep.edges for sweep in found):
        batches = " and batches" if any(len(sweep.batches) > 1 for sweep in found) else ""
        yield Assumption(
            "holds", "Sweep's best run", f"The best learning rates{batches} are inside of the sweeps."
        )


def data(study: Study) -> Iterator[Assumption]:
    """Checks whether runs saw each token once."""
    if "epochs" in study.table and study.fits:
        epochs = pd.to_numeric(study.table.epochs[study.runs.status == "finished"], errors="coerce").dropna()
        if len(epochs):
            again = int((epochs > 1).sum())
            text = (
                f"{again} of {len(epochs)} runs repeat text, up to {epochs.max():.3g} times: the law counts "
                "every token as a fresh one."
            )
            yield (
                Assumption("caveat", "Repeated text", text)
                if again
                else Assumption(
                    "holds", "Fresh text", f"No run saw more than {100 * epochs.max():.0f} % of its corpus."
                )
            )


def lost(study: Study) -> Iterator[Assumption]:
    """Checks whether runs are missing from the fits, having failed or diverged."""
    gone = study.runs[study.runs.status != "finished"]
    if len(gone):
        counts = ", ".join(f"{count} {status}" for status, count in gone.status.value_counts().items())
        yield Assumption(
            "caveat",
            "Runs lost",
            f"{counts} of {len(study.runs)} runs (listed with the runs): if these were the hardest ones, "
            "the others are biased.",
        )


CHECKS = (
    warnings,
    edges,
    extrapolation,
    law,
    approaches,
    choices,
    conventions,
    points,
    noise,
    schedules,
    tuning,
    data,
    lost,
)
"""The checks, in the order of the page."""
