"""Runs that don't belong to a fit are left out or named, by every method; a clean table's fit is unchanged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llm_jax.core.errors import UserError
from llm_jax.scaling import fit
from llm_jax.scaling.fit.table import read_columns
from tests.scaling.fit.conftest import TRUTH, made_runs

LINK = {"low": 0.25, "high": 0.9, "k": 4.0, "middle": 2.6}


def small_grid() -> pd.DataFrame:
    """Four budgets of six sizes, with the noise of seeds."""
    flops, n = (
        a.ravel() for a in np.meshgrid([1e18, 3e18, 1e19, 3e19], np.geomspace(1e7, 3.2e8, 6), indexing="ij")
    )
    loss = TRUTH.loss(n, flops / 6 / n) + np.random.default_rng(0).normal(size=24) * 0.002
    return pd.DataFrame({"flops": flops, "parameters": n, "tokens": flops / 6 / n, "loss": loss}).assign(
        name=[f"r{i}" for i in range(24)]
    )


def changed(runs: pd.DataFrame, row: int, column: str, value: float) -> pd.DataFrame:
    return runs.assign(**{column: runs[column].where(runs.index != row, value)})


def columns_of(runs: pd.DataFrame, *names: str) -> dict:
    return {name: runs[name] for name in names}


@pytest.mark.parametrize(
    ("row", "value"),
    [(3, 11.0), (9, 7.5), (14, 3.7), (2, 2.0), (8, 2.5), (6, 1.0)],
    ids=["diverged", "half diverged", "0.5 too high", "too low", "minimum too low", "end too low"],
)
def test_one_wrong_loss_does_not_bend_an_isoflop_fit(row, value):
    runs = changed(small_grid(), row, "loss", value)
    got = fit.isoflop(**columns_of(runs, "flops", "parameters", "loss", "tokens", "name"), bootstrap=200)
    assert got.a == pytest.approx(TRUTH.a, abs=0.04)
    (line,) = (line for line in got.warnings if line.startswith("left out"))
    assert f"run r{row} (" in line
    assert f"loss {value:g}" in line
    for minimum in got.minima:
        if minimum.loss is not None:  # a gap in the sizes leaves the curve a little freedom
            assert minimum.loss == pytest.approx(TRUTH.loss(*TRUTH.optimal(minimum.flops)), abs=0.02)
    assert not got.points["used"][row]


@pytest.mark.parametrize("curve", ["akima", "parabola", "parabola_local"])
def test_a_curve_whose_bad_runs_are_kept_is_left_out_by_name(curve):
    """With outliers=keep a curve that rises and falls again has no minimum: no number comes of it."""
    runs = changed(small_grid(), 3, "loss", 11.0)
    try:
        got = fit.isoflop(runs.flops, runs.parameters, runs.loss, curve=curve, outliers="keep", bootstrap=50)
        why = got.minima[0].left_out
    except UserError as error:  # fewer than three budgets are left
        why = str(error)
    assert "rise and fall again" in why


def test_two_diverged_runs_of_six_leave_their_budget_out():
    runs = changed(changed(made_runs(0.0005, sizes=6), 8, "loss", 9.0), 9, "loss", 8.0)
    got = fit.isoflop(runs.flops, runs.parameters, runs.loss, bootstrap=100)
    assert got.a == pytest.approx(TRUTH.a, abs=0.02)
    assert got.minima[1].left_out or not got.points["used"][[8, 9]].any()


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_mistyped_size_is_found_by_its_flops(factor):
    runs = small_grid()
    wrong = changed(runs, 9, "parameters", factor * runs.parameters[9])
    names = ("parameters", "tokens", "loss", "flops", "name")
    law = fit.parametric(**columns_of(wrong, *names), bootstrap=0)
    assert law.parameters["alpha"] == pytest.approx(TRUTH.alpha, abs=0.01)
    curves = fit.isoflop(**columns_of(wrong, *names), bootstrap=100)
    assert curves.a == pytest.approx(TRUTH.a, abs=0.04)
    for got in (law, curves):
        assert any(line.startswith("left out: run r9 (") and "6 N D" in line for line in got.warnings)
        assert not got.points["used"][9]


def test_a_run_with_mistyped_flops_is_no_budget_of_its_own():
    """Found by trying random tables: its budget had no run left, and a warning of numpy was printed."""
    runs = small_grid()
    wrong = changed(runs, 9, "flops", 1e21)
    names = ("parameters", "tokens", "loss", "flops", "name")
    got = fit.isoflop(**columns_of(wrong, *names), bootstrap=50)
    assert len(got.minima) == 4
    assert got.points["budget"][9] == -1
    assert got.a == pytest.approx(TRUTH.a, abs=0.04)


@pytest.mark.parametrize("method", ["parametric", "overtraining"])
def test_a_diverged_run_is_left_out_of_a_law_and_a_bad_one_named(method):
    names = ("parameters", "tokens", "loss", "name")
    runs, law = small_grid(), getattr(fit, method)
    clean = law(**columns_of(runs, *names), bootstrap=0)
    kept = law(**columns_of(runs, *names), bootstrap=0, outliers="keep")
    assert clean.parameters == kept.parameters
    assert not any(line.startswith(("left out", "far from")) for line in clean.warnings)
    diverged = law(**columns_of(changed(runs, 3, "loss", 11.0), *names), bootstrap=0)
    assert any(line.startswith("left out: run r3 (") for line in diverged.warnings)
    without = law(**columns_of(runs[runs.index != 3], *names), bootstrap=0)
    assert diverged.parameters == {k: pytest.approx(v, rel=1e-3) for k, v in without.parameters.items()}
    bad = law(**columns_of(changed(runs, 14, "loss", 1.1 * runs.loss[14]), *names), bootstrap=0)
    (line,) = (line for line in bad.warnings if line.startswith("far from"))
    assert "run r14 (" in line
    assert "above it. Without it" in line
    assert bad.points["used"].all()


def test_a_run_too_low_to_be_true_does_not_hide_the_frontier():
    c = np.geomspace(1e17, 1e21, 25)
    loss = 1.7 + 1.1 * (c / 1e18) ** -0.15
    truth = {"E": 1.7, "K": 1.1, "gamma": 0.15}
    for row, value in ((4, 1.2), (0, 1.0)):
        got = fit.compute_law(c, np.where(np.arange(25) == row, value, loss), bootstrap=0)
        assert got.parameters == {name: pytest.approx(v, rel=1e-3) for name, v in truth.items()}
        assert any(
            line.startswith("left out: run of") and "off the frontier" in line for line in got.warnings
        )
    last = fit.compute_law(c, np.where(np.arange(25) == 24, 1.3, loss), bootstrap=0)
    assert any(line.startswith("far from") and "loss 1.3" in line for line in last.warnings)


def test_an_accuracy_off_the_link_is_left_out():
    loss = np.linspace(1.8, 3.6, 20)
    right = fit.sigmoid_link(LINK, loss)
    got = fit.accuracy(loss, np.where(np.arange(20) == 15, 0.9, right), bootstrap=0)
    assert got.parameters == {name: pytest.approx(LINK[name], rel=1e-3) for name in got.parameters}
    assert any(line.startswith("left out: run of loss") for line in got.warnings)
    bent = np.where(np.arange(20) == 15, 0.9, right)[3:]  # least squares to these have no slope
    got = fit.accuracy(loss[3:], bent, bootstrap=0)
    assert got.parameters["k"] == pytest.approx(LINK["k"], rel=1e-3)


def test_points_and_curves_off_an_envelope_are_left_out():
    rows = [
        (f"c{i}", n, 6 * n * d, TRUTH.loss(n, d))
        for i, n in enumerate(np.geomspace(2e7, 5e9, 12))
        for d in np.geomspace(0.5, 800, 40) * n
    ]
    runs = pd.DataFrame(rows, columns=["run", "parameters", "flops", "loss"])
    names = ("run", "flops", "parameters", "loss")
    clean = fit.envelope(**columns_of(runs, *names), computes=200, bootstrap=40)
    assert not any(line.startswith("left out") for line in clean.warnings)
    dip = changed(runs, 5 * 40 + 20, "loss", 0.5)
    got = fit.envelope(**columns_of(dip, *names), computes=200, bootstrap=40)
    assert got.a == pytest.approx(clean.a, abs=0.02)
    assert any("1 point more than 20% below both neighbours, of the curves c5" in w for w in got.warnings)
    typed = runs.assign(parameters=runs.parameters.where(runs.run != "c5", runs.parameters * 4))
    got = fit.envelope(**columns_of(typed, *names), computes=200, bootstrap=40)
    assert got.a == pytest.approx(clean.a, abs=0.03)
    assert any(line.startswith("left out: curve c5 of") for line in got.warnings)


def test_a_run_of_another_schedule_is_named(tmp_path):
    runs = small_grid().assign(schedule="cosine")
    runs.loc[14, "schedule"] = "constant"
    runs.to_csv(tmp_path / "runs.csv", index=False)
    _, _, notes = read_columns(tmp_path / "runs.csv", {}, "", ("parameters", "tokens", "loss"), ())
    assert any("23 cosine and 1 constant (r14)" in note for note in notes)


@pytest.mark.parametrize("row", range(10))
def test_no_published_isoflop_run_is_an_outlier(published, row):
    expected = pd.read_csv(published / "porian_rw" / "expected_exponents.csv").iloc[row]
    points = pd.read_csv(published / "porian_rw" / "isoflop_points.csv")
    keys = ["hparams", "warmup", "decay", "param_count", "loss_split"]
    points = points[(points[keys] == expected[keys]).all(axis=1)]
    got = fit.isoflop(points.flops, points.n, points.loss, tokens=points.tokens, bootstrap=20)
    assert got.points["used"].all()
    assert not any("apart" in minimum.left_out for minimum in got.minima)


def test_losses_without_depth_have_no_minimum():
    runs, rng = small_grid(), np.random.default_rng(1)
    for loss in (3.0 + 0 * runs.loss, 3.0 + 0.002 * rng.normal(size=24), 3.0 + 0.02 * rng.normal(size=24)):
        with pytest.raises(UserError, match="0 of 4 budgets have a minimum inside"):
            fit.isoflop(runs.flops, runs.parameters, loss, bootstrap=50)


def test_one_flat_budget_is_left_out_by_name():
    runs = made_runs(0.0005)
    flat = runs.assign(loss=np.where(runs.flops == runs.flops.min(), 3.8, runs.loss))
    got = fit.isoflop(flat.flops, flat.parameters, flat.loss, bootstrap=50)
    assert "less than 5 times their noise" in got.minima[0].left_out
    assert got.a == pytest.approx(TRUTH.a, abs=0.02)
    assert got.settings["budgets_used"] == 5
