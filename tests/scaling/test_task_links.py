"""From loss to tasks: links that are fitted to runs, and forecasts of a run that isn't trained yet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_jax.core.files import read_json
from llm_jax.run import run
from llm_jax.scaling.report import write
from llm_jax.scaling.report.figures.tasks import links as links_figure
from llm_jax.scaling.task_links import LEAST_RUNS, forecast, link_tasks, task_names
from tests.scaling.test_finish import GRID, law_of
from tests.scaling.test_runner import trained_at_once
from tests.scaling.tiny_grid import table, write_grid
from tests.tiny_run import launch

K, KAPPA, STEEP, MIDDLE, CHANCE = 0.9, 1.4, 3.0, 3.2, 0.25
"""Of the made-up task."""


def bits_of(loss):
    return K * np.asarray(loss) ** KAPPA


def accuracy_of(bits):
    return CHANCE + (1 - CHANCE) / (1 + np.exp(STEEP * (np.asarray(bits) - MIDDLE)))


def scores(loss, rng=None, noise=0.0, chance_only=False) -> pd.DataFrame:
    """The columns of the task, for runs of these losses."""
    bits = bits_of(loss) * np.exp(noise * rng.normal(size=len(loss))) if rng else bits_of(loss)
    accuracy = accuracy_of(bits) + (noise * rng.normal(size=len(loss)) if rng else 0)
    accuracy = np.full(len(loss), 0.26) if chance_only else np.clip(accuracy, 0, 1)
    return pd.DataFrame({"task_q": accuracy, "task_q_bits_per_byte": bits, "task_q_chance": CHANCE})


def names(loss):
    return [f"run {i}" for i in range(len(loss))]


def test_runs_without_noise_give_the_law_back():
    loss = np.linspace(2.2, 3.4, 9)
    (links,) = link_tasks(scores(loss), loss, names(loss))
    assert links.bits
    assert links.score
    assert (links.task, links.chance, links.refused) == ("q", CHANCE, {})
    assert links.bits.parameters == pytest.approx({"K": K, "kappa": KAPPA}, rel=1e-5)
    assert links.score.parameters == pytest.approx({"k": STEEP, "middle": MIDDLE}, rel=1e-4)
    found = forecast(links, 2.0, np.full(100, 2.0))
    assert found["bits_per_byte"].predicted == pytest.approx(bits_of(2.0), rel=1e-5)
    assert found["accuracy"].predicted == pytest.approx(accuracy_of(bits_of(2.0)), rel=1e-4)
    low, high = found["accuracy"].interval_95
    assert high - low < 1e-3  # nothing is uncertain here


def test_the_loss_that_is_not_known_widens_a_forecast():
    loss = np.linspace(2.2, 3.4, 9)
    (links,) = link_tasks(scores(loss), loss, names(loss))
    low, high = forecast(links, 2.0, np.linspace(1.9, 2.1, 1001))["bits_per_byte"].interval_95
    assert (low, high) == pytest.approx((bits_of(1.905), bits_of(2.095)), rel=0.01)


@pytest.mark.slow
def test_forecasts_cover_what_is_measured_later():
    """60 grids of 14 runs with 3 % of noise: of 95 % intervals at least 85 % cover a run beyond them."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(60):
        loss = rng.uniform(2.3, 3.4, 14)
        (links,) = link_tasks(scores(loss, rng, 0.03), loss, names(loss))
        found = forecast(links, 2.1, np.full(10, 2.1))
        measured = scores(np.array([2.1]), rng, 0.03)
        for quantity, column in (("bits_per_byte", "task_q_bits_per_byte"), ("accuracy", "task_q")):
            low, high = found[quantity].interval_95
            covered.append(low <= measured[column][0] <= high)
    assert 0.85 <= np.mean(covered) <= 1.0


def test_runs_at_chance_forecast_bits_only():
    loss = np.linspace(2.2, 3.4, 9)
    (links,) = link_tasks(scores(loss, chance_only=True), loss, names(loss))
    assert links.score is None
    assert links.refused == {"accuracy": "no run is 0.02 above chance (0.25)"}
    assert set(forecast(links, 2.0, np.full(10, 2.0))) == {"bits_per_byte"}


def test_too_few_runs_forecast_nothing():
    loss = np.linspace(2.2, 3.4, LEAST_RUNS - 1)
    (links,) = link_tasks(scores(loss), loss, names(loss))
    assert "3 runs have scores of it" in links.refused["bits_per_byte"]
    assert forecast(links, 2.0, np.full(10, 2.0)) == {}


def test_a_task_scored_in_bits_has_no_accuracy():
    loss = np.linspace(2.2, 3.4, 9)
    (links,) = link_tasks(scores(loss)[["task_q_bits_per_byte"]], loss, names(loss))
    assert links.bits
    assert links.refused == {"accuracy": "the task has no accuracy"}
    assert task_names(scores(loss).columns) == ["q"]


def test_a_grid_forecasts_tasks_before_training_and_compares_after(tiny, tmp_path, monkeypatch, capsys):
    """Runs whose scores follow from their loss: the forecast of the held-out run is right, and the report has
    it."""
    train, before = trained_at_once(law_of), []
    folder = tmp_path / "run"

    def with_scores(experiment, *rest):
        if experiment.model.embed == 512:
            before.append(read_json(folder / "prediction.json"))
        loss = law_of(experiment)
        line = {
            "step": experiment.train.steps,
            "eval_loss": loss,
            **scores(np.array([loss])).iloc[0].to_dict(),
        }
        (Path(experiment.run_dir) / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return train(experiment, *rest)

    monkeypatch.setattr(run, "prepare_and_train", with_scores)
    monkeypatch.setattr(write, "FIGURES", (links_figure,))  # the others take seconds
    arguments = (f"experiment={write_grid(tmp_path, GRID)}", f"run_dir={folder}", "model.heads=2")
    assert launch(*arguments) == 0
    out = capsys.readouterr().out
    ((name, forecasts),) = before[0].items()
    assert "measured" not in forecasts["tasks"]["q"]["bits_per_byte"]
    row = table(folder).loc[name]
    after = read_json(folder / "prediction.json")[name]["tasks"]["q"]
    for quantity, column in (("bits_per_byte", "task_q_bits_per_byte"), ("accuracy", "task_q")):
        one = after[quantity]
        assert one["predicted"] == forecasts["tasks"]["q"][quantity]["predicted"]
        assert one["measured"] == row[column]
        assert one["predicted"] == pytest.approx(row[column], rel=0.02)
    assert f"predicted: {name}, q: bits per byte of the right answers" in out
    assert f"held-out run: {name}, q: accuracy predicted" in out
    page = (folder / "report.html").read_text()
    assert "From loss to tasks" in page
    assert (folder / "figures" / "tasks.png").exists()
