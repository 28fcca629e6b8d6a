"""Held-out runs are predicted from the others before they are trained, and the runs are fitted at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_jax.model import accounting
from llm_jax.run import run
from llm_jax.scaling.fit.law import Law
from tests.scaling.test_runner import trained_at_once
from tests.scaling.tiny_grid import table, write_grid
from tests.tiny_run import launch

pytestmark = pytest.mark.usefixtures("without_figures")
LAW = Law(1.5, 40.0, 120.0, 0.35, 0.4)
SIZES = "[{'model.embed': w} for w in (8, 16, 24, 32, 48, 64, 96, 128, 256)]"
GRID = (
    f"isoflop([1e10, 4e10, 16e10], {SIZES}, per_curve=6, tokens_per_parameter=3, refills=3), "
    "method='isoflop', "
    f"held_out=compute_optimal([8e12], [{{'model.embed': 512}}])"
)


def law_of(experiment):
    n = accounting.size(experiment.model, "6nd_with_head")
    return float(LAW.loss(n, experiment.train.steps * 256))


@pytest.fixture
def arguments(tiny, tmp_path):
    return (f"experiment={write_grid(tmp_path, GRID)}", f"run_dir={tmp_path / 'run'}", "model.heads=2")


def test_a_held_out_run_is_predicted_before_its_first_step_and_compared_after_it(
    arguments, tmp_path, monkeypatch, capsys
):
    train, before = trained_at_once(law_of), []

    def check_prediction(experiment, *rest):
        if experiment.model.embed == 512:
            before.append(json.loads((tmp_path / "run" / "prediction.json").read_text()))
            assert not (Path(experiment.run_dir) / "metrics.jsonl").exists()
        return train(experiment, *rest)

    monkeypatch.setattr(run, "prepare_and_train", check_prediction)
    assert launch(*arguments) == 0
    out = capsys.readouterr().out
    ((name, predicted),) = before[0].items()
    assert "measured" not in predicted
    entry = json.loads((tmp_path / "run" / "prediction.json").read_text())[name]
    row = table(tmp_path / "run").loc[name]
    assert row["held_out"]
    assert entry["measured"] == row["eval_loss"]
    assert (
        entry["predicted"] == predicted["predicted"] == pytest.approx(row["eval_loss"], rel=1e-3)
    )  # without noise the law is found again
    assert entry["interval_95"][0] <= entry["predicted"] <= entry["interval_95"][1]
    assert entry["flops_exact"] > 10 * entry["largest_flops_of_them"]
    assert entry["from_runs"] == len(table(tmp_path / "run")) - 1
    assert f"held-out run: {name}: predicted" in out
    assert f"{name} was predicted before its training" in (tmp_path / "run" / "report.html").read_text()
    fit = json.loads((tmp_path / "run" / "fit.json").read_text())
    assert fit["method"] == "isoflop"
    assert fit["a"] == pytest.approx(LAW.a, abs=0.05)  # C = 6 N D, and whole widths
    assert any("held out by the grid" in note for note in fit["data_notes"])

    assert launch(*arguments) == 0  # nothing is predicted twice
    assert json.loads((tmp_path / "run" / "prediction.json").read_text())[name] == entry


def test_a_changed_experiment_is_predicted_anew(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "prepare_and_train", trained_at_once(law_of))
    assert launch(*arguments) == 0
    before = json.loads((tmp_path / "run" / "prediction.json").read_text())
    assert launch(*arguments, "optimizer.learning_rate=0.002") == 0  # other runs, of the same names
    after = json.loads((tmp_path / "run" / "prediction.json").read_text())
    assert list(after) == list(before)
    for name, entry in after.items():
        assert entry["hash"] != before[name]["hash"]
        assert entry["measured"] == table(tmp_path / "run").loc[name, "eval_loss"]


def test_a_held_out_run_waits_for_the_others(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "prepare_and_train", trained_at_once(law_of))
    assert launch(*arguments, "grid.points=18") == 2
    assert (
        "point 18 is held out and predicted from the other points. Run these first: 0, 1, 2"
        in capsys.readouterr().err
    )
    assert launch(*arguments, "grid.points=:18") == 0
    assert not (tmp_path / "run" / "fit.json").exists()  # only a part was asked for
    assert launch(*arguments, "grid.points=18") == 0
    assert (tmp_path / "run" / "prediction.json").exists()


def test_runs_that_cannot_be_fitted_are_kept_and_the_reason_is_printed(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "prepare_and_train", trained_at_once(law_of))
    path = write_grid(
        tmp_path, f"isoflop([1e10, 4e10], {SIZES}, per_curve=3, refills=0), method='isoflop'"
    )  # two budgets are no line
    assert launch(f"experiment={path}", f"run_dir={tmp_path / 'run'}", "model.heads=2") == 0
    assert "no fit (method=isoflop): " in capsys.readouterr().out
    assert len(table(tmp_path / "run")) == 6
    assert not (tmp_path / "run" / "fit.json").exists()
