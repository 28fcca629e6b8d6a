"""Approach 2 finds what Porian et al. published, and leaves out budgets without a minimum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llm_jax.core.errors import UserError
from llm_jax.scaling import fit
from llm_jax.scaling.fit.curves import akima_curves
from tests.scaling.fit.conftest import TRUTH, made_runs

KEYS = ["hparams", "warmup", "decay", "param_count", "loss_split"]


def akima_1970(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Akima's interpolation written out from the paper's formulas: x [n], y [n], at [m] -> [m]."""
    width = np.diff(x)
    inner = np.diff(y) / width
    left, right = 2 * inner[0] - inner[1], 2 * inner[-1] - inner[-2]
    slopes = np.concatenate([[2 * left - inner[0], left], inner, [right, 2 * right - inner[-1]]])
    change = abs(np.diff(slopes))
    before, after = change[:-2], change[2:]
    defined = before + after > 1e-9 * np.max(before + after)
    mixed = (after * slopes[1:-2] + before * slopes[2:-1]) / np.where(defined, before + after, 1.0)
    slope = np.where(defined, mixed, (slopes[3:] + slopes[:-3]) / 2)
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t = (at - x[i]) / width[i]
    rise = y[i + 1] - y[i]
    a, b = slope[i] * width[i] - rise, rise - slope[i + 1] * width[i]
    return (1 - t) * y[i] + t * y[i + 1] + t * (1 - t) * ((1 - t) * a + t * b)


def test_akima_curves_follow_the_papers_formulas():
    rng = np.random.default_rng(0)
    for n in (3, 4, 9):
        x = np.cumsum(rng.uniform(0.1, 2, n))
        y = rng.standard_normal((5, n))
        y[0] = 2 * x  # all slopes equal: the undefined case
        at = np.linspace(x[0], x[-1], 101)
        for row, curve in zip(y, akima_curves(x, y, at), strict=True):
            np.testing.assert_allclose(curve, akima_1970(x, row, at), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", range(10))
def test_exponents_and_intervals_are_porians(published, row):
    """Exponents within 0.005, interval ends within 0.006: the noise is other noise than theirs."""
    expected = pd.read_csv(published / "porian_rw" / "expected_exponents.csv").iloc[row]
    points = pd.read_csv(published / "porian_rw" / "isoflop_points.csv")
    points = points[(points[KEYS] == expected[KEYS]).all(axis=1)]
    got = fit.isoflop(points.flops, points.n, points.loss, tokens=points.tokens)
    assert got.a == pytest.approx(expected.a, abs=0.005)
    assert got.a_interval_95 == pytest.approx((expected.a_lo, expected.a_hi), abs=0.006)
    assert got.parameters["b"] == pytest.approx(expected.b, abs=0.005)


def test_minima_of_each_budget_are_porians(published):
    optima = pd.read_csv(published / "porian_rw" / "isoflop_optima.csv")
    points = pd.read_csv(published / "porian_rw" / "isoflop_points.csv")
    name = dict(zip(KEYS, ("base", "long", "kaplan", "standard", "val"), strict=True))
    optima, points = (t[(t[KEYS] == pd.Series(name)).all(axis=1)] for t in (optima, points))
    got = fit.isoflop(points.flops, points.n, points.loss)
    assert len(got.minima) == len(optima) == 12
    for minimum, (_, theirs) in zip(got.minima, optima.iterrows(), strict=True):
        if np.isnan(theirs.n_star):
            assert minimum.left_out
            assert minimum.parameters is None
        else:
            step = (
                theirs.n_star_logstd / 0.33 / 25
            )  # a step of the grid or more; the median of noisy minima may fall on another one
            assert np.log(minimum.parameters) == pytest.approx(np.log(theirs.n_star), abs=4 * step)
            assert minimum.log_error == pytest.approx(
                theirs.n_star_logstd, rel=0.08
            )  # the spread of 1,000 noisy minima
            assert minimum.loss == pytest.approx(theirs.loss_star, rel=0.002)


@pytest.mark.parametrize("curve", ["akima", "parabola", "parabola_local"])
def test_every_curve_finds_a_known_exponent(curve):
    """Within 0.01: loss is no parabola in log N, and a minimum is read on a grid."""
    runs = made_runs()
    got = fit.isoflop(runs.flops, runs.parameters, runs.loss, curve=curve, loss_noise=0.0005)
    assert got.a == pytest.approx(TRUTH.a, abs=0.01)
    assert got.a + got.b == pytest.approx(1, abs=1e-3)
    for minimum in got.minima:
        best, tokens = TRUTH.optimal(minimum.flops)
        assert minimum.parameters == pytest.approx(best, rel=0.15)
        assert minimum.loss == pytest.approx(TRUTH.loss(best, tokens), rel=1e-2)
    assert abs(got.leave_largest_out["relative_error"]) < 0.15
    assert all(row["a"] == pytest.approx(TRUTH.a, abs=0.02) for row in got.sensitivity)
    assert {row.get("curve", row.get("weights")) for row in got.sensitivity} >= {
        "parabola, no noise",
        "without the largest budget",
    }


@pytest.mark.parametrize(
    ("curve", "resampling"),
    [("parabola", "residual"), ("akima", "case"), ("akima", "subsample"), ("parabola", "noise")],
)
def test_every_interval_holds_a_known_exponent(curve, resampling):
    runs = made_runs(noise=0.0005)
    got = fit.isoflop(runs.flops, runs.parameters, runs.loss, curve=curve, resampling=resampling)
    low, high = got.a_interval_95
    assert low - 0.01 < TRUTH.a < high + 0.01  # 0.01: the curve's own error, which no resample knows
    assert 0.0005 < high - low < 0.1


def test_a_minimum_on_the_edge_is_left_out_with_the_reason():
    runs = made_runs()
    best, _ = TRUTH.optimal(runs.flops)
    cut = runs[(runs.flops > 1.1e18) | (runs.parameters < 1.01 * best)]
    got = fit.isoflop(cut.flops, cut.parameters, cut.loss)
    first = got.minima[0]
    assert first.on_edge
    assert "at the largest size of 5: train larger ones" in first.left_out
    assert any("left out" in warning for warning in got.warnings)
    assert got.settings["budgets_used"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t[t.parameters <= 1.01 * TRUTH.optimal(t.flops)[0]],
            "0 of 6 budgets.*minimum on the edge",
        ),
        (lambda t: t[t.flops < 1e19], "2 of 2 budgets"),
        (lambda t: t.groupby("flops").head(2), "2 sizes, a minimum needs at least three"),
        (lambda t: t.assign(flops=t.flops * np.linspace(1, 500, len(t))), "run into each other"),
    ],
    ids=["edges", "two budgets", "two sizes", "no budgets"],
)
def test_columns_without_minima_are_refused(change, message):
    runs = change(made_runs())
    with pytest.raises(UserError, match=message):
        fit.isoflop(runs.flops, runs.parameters, runs.loss)


def test_akima_has_no_residuals_to_resample():
    runs = made_runs()
    with pytest.raises(UserError, match="resampling=residual: curve=akima"):
        fit.isoflop(runs.flops, runs.parameters, runs.loss, resampling="residual")
