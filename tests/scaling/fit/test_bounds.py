"""Parameters that end at a bound, exponents that are large, minima that are solved for, residuals of all
laws."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from llm_jax.core.errors import UserError
from llm_jax.scaling import fit
from llm_jax.scaling.fit.__main__ import main
from llm_jax.scaling.fit.minima import budget_numbers
from llm_jax.scaling.report import write
from tests.scaling.fit.conftest import TRUTH, made_runs
from tests.scaling.fit.test_fit_law import repeated_runs

NO_FLOOR = fit.Law(E=0.0, A=60.0, B=90.0, alpha=0.2, beta=0.18)


def runs_of(law: fit.Law, noise: float = 0.0, budgets: int = 4, sizes: int = 5) -> pd.DataFrame:
    runs = made_runs(noise, budgets=budgets, sizes=sizes)
    ratio = runs.loss / TRUTH.loss(runs.parameters, runs.tokens)  # the noise alone
    return runs.assign(loss=law.loss(runs.parameters, runs.tokens) * ratio)


def laws(runs: pd.DataFrame, **options) -> dict:
    """The fits with a floor, without resamples unless asked for."""
    options = {"bootstrap": 0} | options
    return {
        "parametric": fit.parametric(runs.parameters, runs.tokens, runs.loss, **options),
        "overtraining": fit.overtraining(runs.parameters, runs.tokens, runs.loss, **options),
    }


def test_a_floor_at_zero_is_fitted_with_the_reason_by_every_law():
    """Losses that fall below any power law, as if their floor were negative."""
    c = np.geomspace(1e17, 1e21, 15)
    found = laws(runs_of(fit.Law(E=-0.3, A=60.0, B=90.0, alpha=0.2, beta=0.18), sizes=6))
    found["compute"] = fit.compute_law(c, 2.5 * (c / 1e18) ** -0.05 - 0.3, bootstrap=0)
    for got in found.values():
        assert got.parameters["E"] == got.standard_errors["E"] == 0.0
        assert any(line.startswith("E: the lowest objective is at its bound, 0") for line in got.warnings)
        assert np.isfinite(list(got.standard_errors.values())).all()
        assert got.intervals_95["E"] == (0.0, 0.0)
    free, fixed = (laws(runs_of(NO_FLOOR, 0.003), floor=floor)["parametric"] for floor in ("free", 0))
    assert free.objective <= fixed.objective * (1 + 1e-6)


@pytest.mark.parametrize("solver", ["variable_projection", "starts"])
def test_a_floor_that_is_given_is_held(solver):
    runs = runs_of(NO_FLOOR)
    none = fit.parametric(runs.parameters, runs.tokens, runs.loss, floor=0, bootstrap=30, solver=solver)
    assert none.parameters["E"] == 0.0
    assert none.parameters["alpha"] == pytest.approx(NO_FLOOR.alpha, rel=1e-4)
    assert not any(line.startswith("E:") for line in none.warnings)
    assert (none.draws[:, 0] == 0).all()
    other = made_runs(budgets=4, sizes=5)
    given = fit.parametric(other.parameters, other.tokens, other.loss, floor=1.69, bootstrap=0, solver=solver)
    assert given.parameters["E"] == pytest.approx(1.69, rel=1e-12)
    assert given.parameters["beta"] == pytest.approx(TRUTH.beta, rel=1e-4)
    assert given.settings["degrees_of_freedom"] == 20 - 4


def test_a_floor_is_given_to_the_other_laws_too():
    runs = made_runs(0.001, budgets=4, sizes=5)
    for got in laws(runs, floor=1.5).values():
        assert got.parameters["E"] == pytest.approx(1.5, rel=1e-12)
    c = np.geomspace(1e17, 1e21, 15)
    got = fit.compute_law(c, 1.7 + 1.1 * (c / 1e18) ** -0.15, floor=1.7, bootstrap=20)
    assert got.parameters["gamma"] == pytest.approx(0.15, rel=1e-4)
    based = fit.repetition(**repeated_runs(), floor=1.8691437, bootstrap=0)
    assert based.settings["base_law"]["E"] == pytest.approx(1.8691437)
    assert based.parameters["R_D"] == pytest.approx(fit.published_repetition()[1], rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": 9.0}, "floor=9.0: must be free, or a loss from 0 to below the lowest"),
        ({"floor": -1.0}, "floor=-1.0: must be free"),
    ],
)
def test_a_floor_that_can_not_be_is_refused(options, message):
    runs = made_runs(budgets=4, sizes=5)
    for law in (fit.parametric, fit.overtraining):
        with pytest.raises(UserError, match=message):
            law(runs.parameters, runs.tokens, runs.loss, bootstrap=0, **options)
    with pytest.raises(UserError, match=r"floor=0: irreducible=false has no floor"):
        fit.compute_law(runs.flops, runs.loss, irreducible=False, floor=0)


def test_resamples_whose_floor_ends_at_zero_are_kept():
    """A floor near 0 with noise: some resamples have none, and the interval begins at 0."""
    law = fit.Law(E=0.2, A=60.0, B=90.0, alpha=0.2, beta=0.18)
    runs = runs_of(law, 0.01)
    got = fit.parametric(runs.parameters, runs.tokens, runs.loss, bootstrap=100)
    assert len(got.draws) >= 98
    assert 0 < (got.draws[:, 0] == 0).sum() < len(got.draws)
    assert got.intervals_95["E"][0] == 0.0


def test_resamples_on_their_way_to_a_floor_of_zero_are_kept(published):
    """OLMo's ladder has 16 runs, whose resamples creep along a flat valley: 22 of 100 were left out."""
    runs = pd.read_csv(published / "olmo_ladder" / "step1.csv")
    runs = runs[~runs.held_out]
    got = fit.parametric(runs.N, runs.D, runs.c4, bootstrap=100)
    assert len(got.draws) >= 94
    assert (got.draws[:, 0] == 0).sum() > 25


def test_accuracies_end_at_zero_and_one_and_the_extrapolation_test_keeps_to_them():
    loss, rng = np.linspace(0.8, 3.6, 30), np.random.default_rng(0)
    whole = fit.sigmoid_link({"low": 0.0, "high": 1.04, "k": 3.0, "middle": 1.6}, loss)
    got = fit.accuracy(loss, np.clip(whole + 0.005 * rng.standard_normal(30), 0, 1), bootstrap=100)
    assert got.parameters["high"] == 1.0
    assert got.parameters["low"] >= 0.0
    assert any(line.startswith("high: the lowest objective is at its bound, 1") for line in got.warnings)
    low, high = got.parameters["low"], got.parameters["high"]
    assert 0 <= fit.sigmoid_link(got.parameters, 0.0) <= high <= 1
    assert (got.draws[:, 2] >= 0).all()
    assert (got.draws[:, 3] <= 1).all()
    assert len(got.draws) == 100
    out = got.leave_largest_out
    assert (np.asarray(out["predicted"]) <= 1).all()
    assert 0 <= out["parameters"]["low"] <= out["parameters"]["high"] <= 1
    assert low < 0.1


def test_a_link_inside_of_its_bounds_is_what_it_was():
    loss = np.linspace(1.8, 3.6, 30)
    link = {"low": 0.25, "high": 0.9, "k": 4.0, "middle": 2.6}
    got = fit.accuracy(loss, fit.sigmoid_link(link, loss), bootstrap=0)
    assert got.parameters == {name: pytest.approx(value, rel=1e-5) for name, value in link.items()}
    assert not got.warnings


@pytest.mark.parametrize("residuals", ["log", "linear"])
def test_every_law_has_both_residuals(residuals):
    runs = made_runs(budgets=4, sizes=5)
    c = np.geomspace(1e17, 1e21, 12)
    compute = fit.compute_law(c, 1.7 + 1.1 * (c / 1e18) ** -0.15, residuals=residuals, bootstrap=0)
    assert compute.parameters["gamma"] == pytest.approx(0.15, rel=1e-4)
    over = fit.overtraining(runs.parameters, runs.tokens, runs.loss, residuals=residuals, bootstrap=0)
    loss = np.linspace(1.8, 3.6, 20)
    link = {"low": 0.25, "high": 0.9, "k": 4.0, "middle": 2.6}
    accuracy = fit.accuracy(loss, fit.sigmoid_link(link, loss), residuals=residuals, bootstrap=0)
    assert accuracy.parameters["k"] == pytest.approx(4.0, rel=1e-4)
    again = fit.repetition(**repeated_runs(), base="muennighoff", residuals=residuals, bootstrap=0)
    assert again.parameters["R_D"] == pytest.approx(fit.published_repetition()[1], rel=1e-3)
    for got in (compute, over, accuracy, again):
        assert got.settings["residuals"] == residuals


def test_no_logarithm_of_an_accuracy_of_zero():
    with pytest.raises(UserError, match="residuals=log: a run has accuracy 0"):
        fit.accuracy(np.linspace(1, 3, 9), np.linspace(0.9, 0, 9), residuals="log", bootstrap=0)


@pytest.mark.parametrize("exponent", [3.5, 5.0])
def test_a_large_exponent_that_the_runs_determine_is_fitted(exponent):
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 4e7, 6), np.geomspace(1e9, 1e11, 6)))
    law = fit.Law(E=2.0, A=(1e7) ** exponent, B=410.7, alpha=exponent, beta=0.28)
    got = fit.parametric(n, d, law.loss(n, d), bootstrap=0)
    assert got.parameters["alpha"] == pytest.approx(exponent, rel=1e-3)
    c = np.geomspace(1e18, 4e18, 12)
    got = fit.compute_law(c, 2 + (c / 1e18) ** -exponent, bootstrap=0)
    assert got.parameters["gamma"] == pytest.approx(exponent, rel=1e-3)


@pytest.mark.parametrize("step", [1.05, 1.2, 1.24])
def test_budgets_of_one_number_each_are_budgets_however_close(step):
    runs = made_runs(budgets=6, sizes=7)
    flops = 1e18 * step ** np.repeat(np.arange(6), 7)
    best, _ = TRUTH.optimal(flops)
    n = best * np.tile(np.geomspace(1 / 8, 8, 7), 6)
    assert np.bincount(budget_numbers(flops)).tolist() == [7] * 6
    got = fit.isoflop(flops, n, TRUTH.loss(n, flops / 6 / n), bootstrap=40)
    assert len(got.minima) == 6
    assert len(runs) == len(flops)


def test_runs_that_miss_their_budget_by_whole_steps_are_one_budget():
    rng = np.random.default_rng(0)
    flops = np.repeat([1e18, 1e19], 6) * (1 + 0.02 * rng.random(12))
    assert np.bincount(budget_numbers(flops)).tolist() == [6, 6]


@pytest.mark.parametrize("curve", ["akima", "parabola", "parabola_local"])
def test_minima_are_solved_for_to_a_thousandth(curve):
    """Loss as a parabola of log N: every curve passes through it, and its minimum is between the sizes."""
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), 9)
    best = 1e8 * (flops / 1e18) ** 0.47
    n = best * np.tile(np.geomspace(1 / 5, 7, 9), 5)
    loss = 3 + 0.05 * np.log(n / best) ** 2
    got = fit.isoflop(flops, n, loss, curve=curve, loss_noise=1e-7, bootstrap=40)
    for minimum in got.minima:
        (right,) = {
            round(b / 1e3) for b, c in zip(best, flops, strict=True) if c == pytest.approx(minimum.flops)
        }
        assert minimum.parameters == pytest.approx(1e3 * right, rel=1e-3)
    assert got.a == pytest.approx(0.47, abs=1e-4)


@pytest.mark.parametrize("method", ["parametric", "isoflop", "compute", "overtraining"])
def test_no_warning_of_numpy_reaches_the_user(tmp_path, monkeypatch, capsys, method):
    monkeypatch.setattr(write, "FIGURES", ())
    runs = runs_of(NO_FLOOR, 0.01)
    runs.loc[[1, 2], "loss"] = [np.inf, 2.9]
    runs.to_csv(tmp_path / "t.csv", index=False)
    arguments = [f"data={tmp_path / 't.csv'}", f"method={method}", "bootstrap=40", f"out={tmp_path / 'out'}"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(arguments)
    assert [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)] == []
    assert "RuntimeWarning" not in capsys.readouterr().err


@pytest.mark.parametrize("sizes", [6, 12])
def test_a_floor_that_one_budget_can_not_determine_is_refused(sizes):
    runs = made_runs(0.002, budgets=2, sizes=sizes)
    one = runs[runs.flops == runs.flops.max()]
    with pytest.raises(UserError, match="runs do not determine"):
        fit.parametric(one.parameters, one.tokens, one.loss, bootstrap=0)


def test_what_the_runs_do_not_determine_has_an_infinite_error():
    """The link is a step between two losses: where in between changes no residual, so the variance of its
    middle is no number."""
    losses = [
        1.0,
        4.827711058423965,
        6.636706222711524,
        3.7046734073493703,
        6.047327685286195,
        3.1152948699240417,
    ]
    got = fit.accuracy(
        losses, [7.292711568024989e-10, *(1 / (1 + np.exp(4 * (np.array(losses[1:]) - 2.5))))], bootstrap=0
    )
    assert not any(np.isnan(list(got.standard_errors.values())))
    assert got.intervals_95["middle"] == (-np.inf, np.inf)
    assert "middle is not determined: -inf to inf" in got.warnings
