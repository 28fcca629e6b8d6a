"""A warm-up fits its run: refused where a command line sets one that doesn't, reported where a file does."""

from __future__ import annotations

import dataclasses
import re

import pytest

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment, resolved, to_yaml
from llm_jax.run.initial_weights import experiment_from_pairs
from llm_jax.run.run_folder import check_same_run, configuration_hash
from llm_jax.scaling.grid import Grid, warmup_line
from llm_jax.train.config import TrainConfig
from llm_jax.train.optimizer import OptimizerConfig
from tests.scaling.tiny_grid import write_grid
from tests.tiny_run import launch, write_experiment

DEFAULT = {"optimizer": "type(base_.optimizer)(learning_rate=3e-3)"}


def chosen(path, *pairs: str) -> Experiment:
    """The experiment of a command line."""
    return experiment_from_pairs([("experiment", str(path)), *(tuple(pair.split("=")) for pair in pairs)])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            ["optimizer.warmup_steps=100"],
            "=100: with train.steps=8 it is longer than the run: the learning rate reaches 8%",
        ),
        (
            ["optimizer.warmup_steps=10", "train.steps=10"],
            "=10: with train.steps=10 it is as long as the run",
        ),
        (
            ["optimizer.schedule=wsd", "optimizer.decay_fraction=0.9"],
            "=2: with train.steps=8 it is into the decay: 6 of its 7",
        ),
        (["optimizer.schedule=linear", "train.steps=2"], "=2: with train.steps=2 it is as long as the run"),
        (
            ["optimizer.warmup_steps=010", "optimizer.schedule=constant", "train.steps=9"],
            "=10: with train.steps=9 it is longer",
        ),
    ],
)
def test_a_warmup_that_is_given_and_does_not_fit_is_refused(tmp_path, pairs, message, capsys):
    path = write_experiment(tmp_path)
    with pytest.raises(UserError, match="optimizer.warmup_steps" + re.escape(message)) as error:
        chosen(path, *pairs)
    assert re.search(r"Use at most \d+, or null for \d+$", str(error.value))
    assert launch(f"experiment={path}", f"run_dir={tmp_path / 'run'}", *pairs) == 2
    assert str(error.value) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert (
        chosen(path, *pairs, "optimizer.warmup_steps=null")
        if "optimizer.warmup_steps" not in pairs[0]
        else True
    )


def test_the_warmup_of_a_file_is_run_and_reported(tmp_path, capsys):
    """--show of a shorter run, and what submit=slurm writes, are files that are run as they are."""
    path = write_experiment(tmp_path, optimizer="type(base_.optimizer)(warmup_steps=8)")
    assert chosen(path).optimizer.warmup_steps == 8
    assert launch("--show", f"experiment={write_experiment(tmp_path)}", "train.steps=1") == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert chosen(tmp_path / "config.yaml").optimizer.warmup_steps == 2
    with pytest.raises(UserError, match="the learning rate reaches 50%"):
        chosen(tmp_path / "config.yaml", "optimizer.schedule=linear")


def test_a_run_that_is_only_made_shorter_says_how_far_it_comes(tmp_path, capsys):
    path = write_experiment(tmp_path)
    assert chosen(path, "train.steps=1").optimizer.warmup_steps == 2
    assert launch(f"experiment={path}", f"run_dir={tmp_path / 'run'}", "train.steps=1") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "learning rate" in line)
    assert (
        "cosine after a warm-up of 2 steps, longer than the run: the learning rate reaches 50% of its peak"
        in line
    )


def test_a_run_keeps_its_warmup_when_it_is_made_longer(tmp_path):
    """The default follows from train.steps, which may grow."""
    path = write_experiment(tmp_path, **DEFAULT)
    run = f"run_dir={tmp_path / 'run'}"
    first = chosen(path, run, "train.steps=40")
    assert first.optimizer.warmup_steps == 4
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(to_yaml(first))
    longer = chosen(path, run, "train.steps=400")
    assert longer.optimizer.warmup_steps == 4
    assert check_same_run(tmp_path / "run", to_yaml(longer), ("model.vocab",)) == [
        "train.steps: 40 \u2192 400"
    ]
    assert chosen(path, run, "train.steps=400", "optimizer.warmup_steps=7").optimizer.warmup_steps == 7
    with pytest.raises(UserError, match="decay_fraction=nan"):
        chosen(path, run, "optimizer.decay_fraction=nan", "optimizer.schedule=wsd")
    (tmp_path / "run/config.yaml").write_text("{")
    assert chosen(path, run, "train.steps=400").optimizer.warmup_steps == 40


def test_run_folders_of_before_go_on(tmp_path):
    """The default was 100 steps, whatever the run was."""
    path, run = write_experiment(tmp_path, **DEFAULT), f"run_dir={tmp_path / 'run'}"
    (tmp_path / "run").mkdir()
    for steps in (500, 1000):
        before = chosen(path, run, f"train.steps={steps}", "optimizer.warmup_steps=100")
        (tmp_path / "run/config.yaml").write_text(to_yaml(before))
        now = chosen(path, run, f"train.steps={steps}")
        assert check_same_run(tmp_path / "run", to_yaml(now), ("model.vocab",)) == []
        assert configuration_hash(now) == configuration_hash(before)
    (tmp_path / "run/config.yaml").write_text(
        to_yaml(dataclasses.replace(before, train=TrainConfig(steps=50)))
    )
    assert chosen(path, run, "train.steps=50").optimizer.warmup_steps == 5  # 100 would not fit


def test_a_default_warmup_of_100_steps_has_the_hash_of_before():
    def made(warmup_steps: int | None) -> Experiment:
        return resolved(
            Experiment(optimizer=OptimizerConfig(warmup_steps=warmup_steps), train=TrainConfig(steps=1000))
        )

    assert configuration_hash(made(None)) == configuration_hash(made(100))


def test_a_grid_says_which_points_have_a_warmup_that_does_not_fit(tmp_path, capsys):
    base = Experiment(name="g", optimizer=OptimizerConfig(warmup_steps=20))
    points = Grid(base, [{"train.steps": 10}, {"train.steps": 100}, {"train.steps": 20}]).points([])
    assert warmup_line(points).startswith(
        "2 of 3 points have a warm-up that does not fit: that of point 0 steps10 is longer than the run"
    )
    assert (
        warmup_line(Grid(Experiment(name="g"), [{"train.steps": n} for n in (1, 10, 2000)]).points([])) == ""
    )
    path = write_grid(tmp_path, "[{'train.seed': 1}, {'train.seed': 2}]")
    assert launch(f"experiment={path}", "--dry-run", "train.steps=1") == 0
    assert "points have a warm-up that does not fit" in capsys.readouterr().out.replace("\n", " ")
