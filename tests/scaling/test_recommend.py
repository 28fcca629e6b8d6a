"""What is recommended is the optimum of the law, its intervals those of the refits, and mistakes are one
line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from llm_jax.scaling import fit
from llm_jax.scaling.fit.result import write_json
from llm_jax.scaling.recommend import main, recommend
from tests.scaling.fit.conftest import TRUTH, made_runs


@pytest.fixture(scope="module")
def made() -> dict:
    runs = made_runs(noise=0.002)
    return fit.parametric(runs.parameters, runs.tokens, runs.loss, bootstrap=100).to_json()


@pytest.fixture
def path(made, tmp_path) -> Path:
    write_json(made, tmp_path / "fit.json")
    return tmp_path / "fit.json"


def test_optimum_is_the_lowest_loss_of_all_sizes_at_the_budget(made):
    got = recommend(made, 3e21)
    law = fit.Law(*(made["parameters"][name] for name in ("E", "A", "B", "alpha", "beta")))
    sizes = np.geomspace(got.parameters / 10, got.parameters * 10, 4001)
    losses = law.loss(sizes, 3e21 / 6 / sizes)
    assert sizes[losses.argmin()] == pytest.approx(got.parameters, rel=2e-3)  # the grid's step
    assert got.loss == pytest.approx(losses.min(), rel=1e-6)
    assert 6 * got.parameters * got.tokens == pytest.approx(3e21)
    flat = sizes[losses <= 1.01 * losses.min()]
    assert got.flat == (pytest.approx(flat.min(), rel=2e-3), pytest.approx(flat.max(), rel=2e-3))


def test_intervals_hold_the_truth(made):
    got = recommend(made, 3e21)
    best, tokens = TRUTH.optimal(3e21)
    for interval, truth in (
        (got.parameters_95, best),
        (got.tokens_95, tokens),
        (got.loss_95, TRUTH.loss(best, tokens)),
    ):
        low, high = interval
        more = (high - low) / 4  # one interval in twenty misses; none by half its width
        assert low - more < truth < high + more
        assert high - low < 0.3 * truth


def test_smaller_models_reach_the_same_loss_and_are_paid_back(made):
    got = recommend(made, 3e21)
    law = fit.Law(*(made["parameters"][name] for name in ("E", "A", "B", "alpha", "beta")))
    optimum, *smaller = got.smaller
    assert optimum.more_training == pytest.approx(1)
    for model in smaller:
        assert law.loss(model.parameters, model.tokens) == pytest.approx(got.loss, rel=1e-9)
        assert model.more_training > 1
        saved = 2 * (got.parameters - model.parameters) * model.break_even_tokens
        assert saved == pytest.approx(model.flops - got.flops)


def test_isoflop_fit_recommends_sizes_without_a_loss():
    runs = made_runs(noise=0.0005)
    got = recommend(fit.isoflop(runs.flops, runs.parameters, runs.loss, bootstrap=200).to_json(), 1e22)
    assert got.parameters_95[0] < got.parameters < got.parameters_95[1]
    assert got.parameters == pytest.approx(TRUTH.optimal(1e22)[0], rel=0.2)
    assert got.loss is None
    assert got.smaller == ()


def test_intervals_of_isoflop_hold_the_truth_where_budgets_scatter_more_than_seeds_do():
    rng, held = np.random.default_rng(0), []
    best = TRUTH.optimal(1e22)[0]
    for seed in range(40):
        flops = np.repeat(np.geomspace(1e18, 1e21, 6), 7)
        parameters = TRUTH.optimal(flops)[0] * np.tile(2.0 ** np.arange(-3, 4), 6)
        moved = parameters * np.repeat(
            np.exp(0.3 * rng.standard_normal(6)), 7
        )  # each budget's minimum is elsewhere
        loss = TRUTH.loss(moved, flops / 6 / moved)
        low, high = recommend(
            fit.isoflop(flops, parameters, loss, bootstrap=100, seed=seed).to_json(), 1e22
        ).parameters_95
        held.append(low < best < high)
    assert np.mean(held) > 0.85  # 0.95, less three of its errors; the noise of seeds alone gives half


def test_a_budget_far_below_the_runs_is_warned_of(made):
    assert any(
        "times less compute than the smallest run" in warning for warning in recommend(made, 1e12).warnings
    )


def test_gpus_and_hours_are_flops(path, capsys, tmp_path):
    assert (
        main(
            [f"fit={path}", "gpus=8", "hours=10", "hardware=h100", "mfu=0.4", f"json={tmp_path / 'out.json'}"]
        )
        == 0
    )
    assert json.loads((tmp_path / "out.json").read_text())["flops"] == pytest.approx(
        8 * 36000 * 0.4 * 989.4e12
    )
    assert "parameters N*" in capsys.readouterr().out


def test_a_budget_far_beyond_the_runs_is_warned_of(made):
    assert any(
        "times the compute of the largest run" in warning for warning in recommend(made, 1e24).warnings
    )
    near = recommend(made, 2e21)
    assert not any("times the compute" in warning for warning in near.warnings)
    assert near.extrapolation == pytest.approx(2e21 / 1e21)


def test_a_size_that_never_gets_there_has_no_price():
    law = fit.Law(
        E=1.0, A=100.0, B=1e4, alpha=1.0, beta=0.5
    )  # size matters little: a quarter of the optimum still gets there
    from llm_jax.scaling.recommend import smaller_model

    assert math.isinf(smaller_model(law, 1e12, 1e-6).tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flops=1e21"], "fit=FIT.json is missing"),
        (["fit={path}"], "flops=C is missing"),
        (["fit=nowhere.json", "flops=1e21"], "fit=nowhere.json: there is no such file"),
        (["fit={path}", "flops=much"], "flops=much: must be a number, above 0"),
        (["fit={path}", "flops=1e21", "gpus=8"], "gpus=8.0: flops= is given too"),
        (["fit={path}", "gpus=8", "hours=3", "hardware=h100"], "mfu= is missing"),
        (["fit={path}", "gpus=8", "hours=3", "hardware=h1000", "mfu=0.4"], "hardware=h1000: must be one of"),
        (
            ["fit={path}", "gpus=8", "hours=3", "hardware=h100", "mfu=40"],
            "mfu=40: must be a number, above 0 and at most 1",
        ),
        (["fit={path}", "flop=1e21"], "flop=1e21: there is no key 'flop'"),
        (["fit={path}", "flops=1e21", "json="], "json=: must be a file"),
        (["fit={path}", "flops=1e21", "json=."], "json=.: is a folder; must be a file"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(path, capsys, arguments, message):
    assert main([a.format(path=path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_a_fit_that_has_no_sizes_is_refused(path, capsys):
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "method": "accuracy"}))
    assert main([f"fit={path}", "flops=1e21"]) == 2
    assert "method=accuracy gives no sizes" in capsys.readouterr().err
