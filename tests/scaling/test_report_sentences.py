"""Every sentence of a report has the condition under which it is true; laws are drawn with bands and held-out
runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_jax.scaling import fit
from llm_jax.scaling.fit.__main__ import main as fit_command
from llm_jax.scaling.recommend import fitted_flops
from llm_jax.scaling.report import write
from llm_jax.scaling.report.bands import band, law_of
from llm_jax.scaling.report.caveats import check_assumptions
from llm_jax.scaling.report.figures import law as law_figures
from llm_jax.scaling.report.figures import runs as run_figures
from llm_jax.scaling.report.figures import sensitivity
from llm_jax.scaling.report.held_out import held_out_runs
from llm_jax.scaling.report.study import Study, StudyOptions, make_study
from llm_jax.scaling.report.summary import summarise
from llm_jax.scaling.report.tables import fit_tables, runs_table
from tests.scaling.fit.conftest import TRUTH, made_runs
from tests.scaling.fit.test_fit_law import repeated_runs
from tests.scaling.test_report import text_of

SMALL = {"bootstrap": 0}


def study_of(table: pd.DataFrame, folder: Path, method: str = "parametric", **options) -> Study:
    table.to_csv(folder / "t.csv", index=False)
    return make_study(folder / "t.csv", StudyOptions(method=method, options=SMALL | options, strict=True))


def sentences(study: Study, about: str) -> list[str]:
    return [check.text for check in check_assumptions(study) if check.about == about]


def with_held_out(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(held_out=np.where(runs.flops == runs.flops.max(), "yes", "no"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Study:
    """Runs with nothing but numbers, fitted without resamples."""
    return study_of(made_runs(0.002, budgets=5, sizes=6), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> Study:
    """The same with the largest budget held out."""
    return study_of(with_held_out(made_runs(0.002, budgets=5, sizes=6)), tmp_path_factory.mktemp("held"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Study:
    return study_of(made_runs(0.002, budgets=5, sizes=6), tmp_path_factory.mktemp("tied"), tied=True)


def test_that_no_run_is_held_out_is_written_only_where_none_is(plain, held, tmp_path):
    assert sentences(plain, "No held-out run") == [
        "The table has no held-out run with a measured loss: extrapolation was tested inside the table only."
    ]
    assert sentences(held, "No held-out run") == []
    assert len(sentences(held, "Held-out run")) == 6
    table = with_held_out(made_runs(0.002, budgets=5, sizes=6))
    table.to_csv(tmp_path / "t.csv", index=False)
    study = make_study(tmp_path / "t.csv", StudyOptions(method="isoflop", options={"bootstrap": 50}))
    only = {"isoflop": study.fits["isoflop"]}
    (text,) = sentences(Study(**{**vars(study), "fits": only}), "No held-out run")
    assert text.startswith("The table has 6 held-out runs, but no fit here predicts a loss")


def test_a_missing_column_of_learning_rates_is_named_and_batches_are_not_needed(plain, tmp_path):
    assert "it has no column learning_rate" in run_figures.sweep_figure(plain)
    rows = [
        {
            "parameters": n,
            "tokens": 1e8,
            "flops": 6e8 * n,
            "loss": 3 + np.log(r / 3e-3) ** 2,
            "learning_rate": r,
        }
        for n in (1e6, 2e6)
        for r in (1e-3, 3e-3, 1e-2)
    ]
    table = pd.DataFrame(rows)
    for more in ({}, {"batch_size": 16}, {"batch_size": 16, "sequence_length": 128}):
        (tmp_path / "t.csv").write_text(table.assign(**more).to_csv(index=False))
        study = make_study(tmp_path / "t.csv", StudyOptions(strict=False))
        assert len(run_figures.sweeps(study.table, study.runs)) == 2
    few = Study(**{**vars(study), "table": study.table.assign(learning_rate=1e-3)})
    assert "three learning rates or more, all else equal" in run_figures.sweep_figure(few)


def test_a_set_exponent_is_no_result(plain, tied):
    assert tied.parametric.standard_errors["a"] == 0.0
    caption = sensitivity.choices(tied).caption
    assert "nan" not in caption
    assert not re.search(r"\ba (goes|lies)", caption)
    assert re.search(r"\ba goes", sensitivity.choices(plain).caption)
    alone = Study(**{**vars(tied), "fits": {"parametric": tied.parametric}})
    assert "no exponent of N* was fitted" in sensitivity.published(alone)
    assert not sentences(tied, "Two approaches")  # one of which is no result
    assert sentences(plain, "Two approaches")
    summary, cards = summarise(tied, [])
    assert "C^0.500, as tied=true has them, as fast as their data" in summary
    assert "set by tied=true" in cards[0].about
    assert "alpha spans" in sentences(tied, "Other choices in the fit")[0]
    assert " a spans" in sentences(plain, "Other choices in the fit")[0]
    assert "nan" not in " ".join(check.text for check in check_assumptions(tied))


def test_a_sensitivity_row_has_a_degree_of_freedom(tmp_path):
    runs = made_runs(0.002, budgets=3, sizes=3)  # nine runs: five parameters and three dropped leave one
    got = fit.parametric(runs.parameters, runs.tokens, runs.loss, bootstrap=0)
    assert {row.get("drop_highest_losses", 0) for row in got.sensitivity} <= {0, 1, 3}
    seven = runs.iloc[[0, 1, 2, 3, 4, 5, 8]]
    got = fit.parametric(seven.parameters, seven.tokens, seven.loss, bootstrap=0)
    assert {row.get("drop_highest_losses", 0) for row in got.sensitivity} <= {0, 1}


def test_what_a_parameter_means_is_that_of_its_method(plain, tmp_path):
    other = study_of(made_runs(0.002, budgets=4, sizes=5), tmp_path, "overtraining")
    meanings = {
        (kind, row[0]): row[-1]
        for kind, study in (("law", plain), ("over", other))
        for block in fit_tables(study)
        if hasattr(block, "rows")
        for row in block.rows
    }
    assert meanings["law", "a"] == "N* ∝ C^a"
    assert meanings["over", "a"] == ""


def test_seeds_schedules_and_sweeps_are_written_of_as_the_table_has_them(plain):
    def of(**columns) -> Study:
        return Study(**{**vars(plain), "table": plain.table.assign(**columns)})

    assert sentences(plain, "Noise between seeds") == []
    assert (
        "No configuration was trained with several seeds" in sentences(of(seed=0), "Noise between seeds")[0]
    )
    assert "The table has no schedules" in sentences(plain, "Schedules")[0]
    part = of(schedule=["cosine"] * 20 + [None] * 10, warmup_steps=10, steps=1000)
    assert sentences(part, "Schedules") == []  # those of ten runs are not known
    whole = of(schedule="cosine", warmup_steps=10, steps=1000)
    assert sentences(whole, "Schedules") == [
        "All runs have the schedule cosine; warm-up is at most 1 % of the steps."
    ]


def test_minima_are_written_of_where_a_fit_rests_on_them(tmp_path):
    runs = made_runs(0.002, budgets=4, sizes=5)
    best, _ = TRUTH.optimal(runs.flops)
    table = runs[(runs.flops < runs.flops.max()) | (runs.parameters < best * 1.01)]
    study = study_of(table, tmp_path, "overtraining")
    assert any(m.on_edge for m in study.minima)
    assert sentences(study, "Minima on an edge") == sentences(study, "Minima inside") == []


def table_of(method: str) -> pd.DataFrame:
    """A table that a method fits, with held-out runs."""
    runs = made_runs(0.001, budgets=5, sizes=6)
    if method == "repetition":
        table = pd.DataFrame(repeated_runs(1e-3))
        return table.assign(held_out=table.tokens == table.tokens.max())
    if method == "accuracy":
        link = {"low": 0.25, "high": 0.9, "k": 4.0, "middle": 3.0}
        noise = 0.003 * np.random.default_rng(0).standard_normal(len(runs))
        runs = runs.assign(accuracy=fit.sigmoid_link(link, runs.loss) + noise)
        return runs[["loss", "accuracy"]].assign(held_out=runs.loss <= runs.loss.nsmallest(3).max())
    return runs.assign(held_out=runs.flops == runs.flops.max())


@pytest.mark.parametrize("resamples", [0, 60])
@pytest.mark.parametrize(
    ("method", "picture"),
    [
        ("compute", "loss_against_compute"),
        ("overtraining", "overtraining"),
        ("accuracy", "accuracy"),
        ("repetition", "repetition"),
    ],
)
def test_every_law_is_drawn_with_its_band_and_held_out_runs(
    tmp_path, monkeypatch, method, picture, resamples
):
    monkeypatch.setattr(write, "FIGURES", write.FIGURES[2:3] if method == "compute" else ())
    table_of(method).to_csv(tmp_path / "t.csv", index=False)
    more = {"repetition": ["base=muennighoff"], "accuracy": ["chance=0.25"]}.get(method, [])
    arguments = [f"data={tmp_path / 't.csv'}", f"method={method}", f"bootstrap={resamples}", *more]
    assert fit_command([*arguments, f"out={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "figures" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    shown = text_of((tmp_path / "out" / "report.html").read_text())
    caption = re.search(r"Figure 1\.(.*?)figures/", shown)[1]
    assert "95 %" in caption
    assert "eld-out run" in caption
    assert "after training, by the law above" in shown
    assert "nan" not in shown


def test_bands_without_resamples_are_the_delta_methods(plain, held):
    fitted = plain.parametric
    low, high = band(fitted, lambda p: law_of(p).loss(1e9, 2e10))
    expected = float(fitted.law.loss(1e9, 2e10))
    assert low[0] < expected < high[0]
    runs = made_runs(0.002, budgets=5, sizes=6)
    many = fit.parametric(runs.parameters, runs.tokens, runs.loss, bootstrap=400)
    wide = np.diff(band(many, lambda p: law_of(p).loss(1e9, 2e10)), axis=0).item()
    assert (high - low)[0] == pytest.approx(wide, rel=0.6)
    for run in held_out_runs(held):
        assert run.interval[0] < run.predicted < run.interval[1]
    floor = band(fitted, lambda p: p["E"] + 0.0 * np.ones(1))
    assert (floor[0][0], floor[1][0]) == pytest.approx(fitted.intervals_95["E"], rel=1e-4)


def test_the_delta_methods_intervals_cover_with_few_runs():
    """Five runs and four parameters leave one degree of freedom: 1.96 errors cover 74 % there."""
    c = np.geomspace(1e17, 1e21, 4)
    covered, normal = [], []
    for seed in range(60):
        noise = np.exp(1e-3 * np.random.default_rng(seed).standard_normal(4))
        loss = 1.1 * (c / 1e18) ** -0.15 * noise
        got = fit.compute_law(
            c, loss, irreducible=False, frontier_only=False, delta=np.inf, bootstrap=0, outliers="keep"
        )
        low, high = got.intervals_95["gamma"]
        covered.append(low < 0.15 < high)
        normal.append(abs(got.parameters["gamma"] - 0.15) < 1.96 * got.standard_errors["gamma"])
        assert got.settings["degrees_of_freedom"] == 2
        k_low, k_high = got.intervals_95["K"]
        assert k_low * k_high == pytest.approx(got.parameters["K"] ** 2, rel=1e-6)  # on the logarithm
    assert np.mean(covered) > 0.85 > np.mean(normal)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("column", ["flops", "parameters", "tokens"])
def test_a_number_that_the_method_does_not_need_may_be_anything(tmp_path, column):
    """Found by trying random tables: a run of 0 FLOPs in a table of accuracies ended in a traceback."""
    runs = made_runs(budgets=4, sizes=5)
    link = {"low": 0.25, "high": 0.9, "k": 4.0, "middle": 3.0}
    table = runs.assign(accuracy=fit.sigmoid_link(link, runs.loss))
    table.loc[3, column] = 0
    table.to_csv(tmp_path / "t.csv", index=False)
    arguments = [f"data={tmp_path / 't.csv'}", "method=accuracy", "bootstrap=0", f"out={tmp_path / 'out'}"]
    assert fit_command(arguments) == 0


def test_a_held_out_run_that_is_in_the_fit_too_is_no_test(tmp_path):
    runs = made_runs(0.002, budgets=5, sizes=6)
    table = pd.concat([runs.assign(held_out=False), runs.iloc[[7]].assign(held_out=True)])
    study = study_of(table.assign(name=[f"r{i}" for i in range(31)]), tmp_path)
    texts = sentences(study, "Held-out run")
    assert "r30 has the size, tokens and loss of a run in the fit: its prediction is no test." in texts


def test_a_run_that_is_left_out_is_no_largest_budget(tmp_path):
    runs = made_runs(0.002, budgets=5, sizes=6).assign(name=[f"r{i}" for i in range(30)])
    runs.loc[4, "flops"] *= 1e5
    study = study_of(runs, tmp_path)
    assert study.parametric.settings["left_out"] == ["r4"]
    assert study.fitted.flops.max() == pytest.approx(1e21)
    assert fitted_flops(study.parametric.to_json()) == pytest.approx((1e18, 1e21))
    assert "10²¹ FLOPs the best has" in summarise(study, [])[0]
    (table,) = (block for block in runs_table(study) if hasattr(block, "rows"))
    assert [row[0] for row in table.rows if "left out" in row[-1]] == ["r4"]
    far = runs.assign(parameters=np.where(runs.index == 4, 1e15, runs.parameters))
    assert "beyond the figure" in law_figures.contours(study_of(far, tmp_path)).caption
