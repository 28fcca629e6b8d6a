"""Runs that are far from the law of the others: diverged to a finite loss, of another schedule, or with a
mis-typed number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from llm_jax.core.format import counted, factor
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT
from llm_jax.scaling.fit.result import run_text
from llm_jax.scaling.fit.solve import ResidualFn, evaluate, minimise

Outliers = Literal["leave_out", "keep"]
"""What is done with a run that is grossly off the law of the others."""
CHANCE = 1e-4
"""The probability that any run of a table counts as far by chance, with normal noise."""
LEAST_SPREAD = 1e-3
"""The noise of the residuals is at least this (of log loss, or of accuracy)."""
TIMES = 2.0
"""A loss that differs by more than this factor from the law of the others is no noise, ..."""
POINTS = 0.2
"""... nor is an accuracy that differs by more than this."""
ROBUST = 0.01
"""Far runs are looked for with a fit whose delta is at most this."""
MOST = 48
"""The most runs that are tried each by a fit without it; the others by their own residual."""
SHOWN = 5
"""The most runs that a warning names."""
MISTYPED = 3.0
"""FLOPs over 6 N D that differ by more than this factor from those of the other runs are a mistake."""


@dataclass(frozen=True)
class FarRuns:
    """The runs that are far from the law of the others, the farthest first."""

    rows: np.ndarray
    """[k]: their numbers in the table."""
    off: np.ndarray
    """[k]: predicted less measured, by the law of the others, in the units of the residuals."""

    def split(self, gross: np.ndarray | float) -> tuple[FarRuns, FarRuns]:
        """The runs that are so far that they can't be noise, off by more than `gross` (a number, or [n] for
        the runs of the table), and the others."""
        limit = gross[self.rows] if isinstance(gross, np.ndarray) else gross
        big = abs(self.off) > limit
        return FarRuns(self.rows[big], self.off[big]), FarRuns(self.rows[~big], self.off[~big])


def spread_of(residuals: np.ndarray, unknown: int) -> float:
    """A robust standard deviation of residuals [n] about a law with `unknown` parameters, of which a robust
    fit makes as many vanish."""
    rest = np.sort(abs(residuals))[unknown:]
    return max(1.4826 * float(np.median(rest)), LEAST_SPREAD) if len(rest) else np.inf


def find_far(
    residual_fn: ResidualFn,
    theta: np.ndarray,
    data: Mapping[str, np.ndarray],
    used: np.ndarray,
    delta: float,
) -> FarRuns:
    """The runs among those `used` [n] that are far from the law of the others. `theta` [P] is the fit to all.

    A run that would be far if it alone bent the law is tried by a fit without it, so that a run which the law
    follows is found too.
    """
    none = FarRuns(np.zeros(0, int), np.zeros(0))
    rows, unknown = np.flatnonzero(used), len(theta)
    if len(rows) < unknown + 3 or not np.isfinite(theta).all():
        return none
    residuals, slopes = evaluate(residual_fn, theta, data)
    own, basis = residuals[rows], slopes[rows]
    if not (np.isfinite(own).all() and np.isfinite(basis).all()):
        return none
    own_part = (np.linalg.qr(basis / (np.sqrt((basis**2).sum(0)) + 1e-300))[0] ** 2).sum(1)
    without = abs(own) / np.maximum(1 - own_part, 0.02)
    limit = float(stats.t.isf(CHANCE / len(rows) / 2, len(rows) - 1 - unknown))
    likely = np.argsort(-without)
    likely = likely[without[likely] > limit * spread_of(own, unknown)]
    if not len(likely):
        return none
    found = [(int(rows[i]), float(own[i])) for i in likely[MOST:]]
    likely = likely[:MOST]
    weights = np.repeat(used.astype(float)[None], len(likely), 0)
    weights[np.arange(len(likely)), rows[likely]] = 0
    refits = minimise(residual_fn, np.repeat(theta[None], len(likely), 0), data, weights, delta)
    for row, refit, weight in zip(rows[likely], refits.theta, weights, strict=True):
        others, _ = evaluate(residual_fn, refit, data)
        if abs(others[row]) > limit * spread_of(others[weight > 0], unknown):
            found.append((int(row), float(others[row])))
    found.sort(key=lambda pair: -abs(pair[1]))
    return FarRuns(np.array([row for row, _ in found], int), np.array([off for _, off in found]))


def left_out_text(table: Mapping[str, np.ndarray], far: FarRuns, log: bool) -> list[str]:
    """A warning about the runs that are left out of the fit; none without any. log: residuals are of
    logarithms."""
    if not len(far.rows):
        return []
    return [
        f"left out: {runs_text(table, far, log)} the law of the other runs. Correct "
        f"{'its row' if len(far.rows) == 1 else 'their rows'}, or keep "
        f"{'it' if len(far.rows) == 1 else 'them'} with outliers=keep"
    ]


def far_text(table: Mapping[str, np.ndarray], far: FarRuns, log: bool, without: str = "") -> list[str]:
    """A warning about the runs that are far from the law and in the fit; none without any. without: what the
    fit would be without them."""
    if not len(far.rows):
        return []
    return [
        f"far from the law of the other runs, but in the fit: {runs_text(table, far, log)} it"
        + (f". Without {'it' if len(far.rows) == 1 else 'them'} {without}" if without else "")
    ]


def runs_text(table: Mapping[str, np.ndarray], far: FarRuns, log: bool) -> str:
    """Runs and how far each is from a law, the farthest first: "run x (loss 11), 210 % above"."""
    named = [
        f"{run_text(table, row)}, {off_text(off, log)}"
        for row, off in zip(far.rows[:SHOWN], far.off, strict=False)
    ]
    more = len(far.rows) - SHOWN
    return "; ".join(named) + (f", and {counted(more, 'run')} more above or below" if more > 0 else "")


def off_text(off: float, log: bool) -> str:
    """How far a measured value is from a law, given predicted less measured, as text.

    >>> off_text(-0.5, True), off_text(0.3, False)
    ('65 % above', '0.3 below')
    """
    percent = 100 * abs(np.expm1(-off))
    size = f"{percent:.0f} %" if log and percent >= 10 else f"{percent:.2g} %" if log else f"{abs(off):.2g}"
    return f"{size} {'above' if off < 0 else 'below'}"


def mistyped(table: Mapping[str, Any], outliers: str) -> tuple[np.ndarray, list[str]]:
    """The runs [n], bool, that can be used: with `outliers` "leave_out" not those whose FLOPs are another
    multiple of 6 N D than those of the others; and a warning for each of these."""
    right = np.ones(len(next(iter(table.values()))), bool)
    if not {"flops", "parameters", "tokens"} <= set(table):
        return right, []
    times = table["flops"] / (FLOPS_A_WEIGHT * table["parameters"] * table["tokens"])
    usual = float(np.median(times))
    wrong = np.flatnonzero(abs(np.log(times / usual)) > np.log(MISTYPED))
    if not 0 < len(wrong) <= len(times) / 4:
        return right, []
    right[wrong] = outliers == "keep"
    what = "" if outliers == "keep" else "left out: "
    todo = "" if outliers == "keep" else ". Correct its row, or keep it with outliers=keep"
    lines = [
        f"{what}{run_text(table, row)}, as one of its numbers is wrong: its FLOPs are {factor(times[row])} "
        f"times 6 N D, those of the other runs {factor(usual)} times{todo}"
        for row in wrong[:SHOWN]
    ]
    if len(wrong) > SHOWN:
        lines.append(f"{what}{counted(len(wrong) - SHOWN, 'run')} more with such FLOPs")
    return right, lines
