"""Grids with trunks: a branch from the trunk's checkpoint equals the run trained from scratch, bit for
bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llm_jax.run import run
from tests.scaling.test_runner import folders
from tests.scaling.tiny_grid import table, write_grid
from tests.tiny_run import checkpoint, launch, losses, shas, steps_saved, summary

GRID = "horizons([{}], [256 * 6, 256 * 10, 256 * 20]), trunks=True"
WSD = ("optimizer.schedule=wsd", "optimizer.decay_fraction=0.3")


@pytest.fixture
def arguments(tiny, tmp_path):
    return (f"experiment={write_grid(tmp_path, GRID)}", f"run_dir={tmp_path / 'run'}", *WSD)


def test_a_branch_is_bit_identical_to_the_whole_run_and_costs_only_its_decay(arguments, tmp_path, capsys):
    assert launch(*arguments, "checkpoint.every=1000", "checkpoint.keep=1") == 0
    found = folders(tmp_path / "run")
    assert list(table(tmp_path / "run").index) == ["steps20", "steps6", "steps10"]  # the trunk first
    assert {4, 7, 20} <= set(steps_saved(found["steps20"]))  # and those that its evaluations keep
    for name, first in (("steps6", 4), ("steps10", 7)):
        log = (found[name] / "log.txt").read_text()
        assert f"resuming at step {first}" in log
        assert "differs from the last start" not in log
    whole = tmp_path / "whole"
    assert launch(f"experiment={found['steps10'] / 'config.yaml'}", f"run_dir={whole}") == 0
    branch = found["steps10"]
    assert losses(branch) == losses(whole)
    assert shas(branch) == shas(whole)
    assert summary(branch)["eval_loss"] == summary(whole)["eval_loss"]
    ours, theirs = checkpoint(branch, 10), checkpoint(whole, 10)
    assert ours.keys() == theirs.keys()
    for key, values in ours.items():
        np.testing.assert_array_equal(values, theirs[key], err_msg=key)
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "points").rglob("*") if path.is_file()
    }
    assert launch(*arguments, "checkpoint.every=1000", "checkpoint.keep=1") == 0
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "points").rglob("*") if path.is_file()
    }


def test_without_its_trunk_a_branch_is_trained_from_the_start_and_the_log_names_it(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "prepare_and_train", lambda experiment, *rest: 1 / 0)
    assert launch(*arguments) == 1
    out = capsys.readouterr().out
    assert "trunk steps20 has no checkpoint of step 4; training from the start" in out
    assert dict(table(tmp_path / "run")["status"]) == {
        "steps20": "failed",
        "steps6": "failed",
        "steps10": "failed",
    }
    assert (
        json.loads((folders(tmp_path / "run")["steps6"] / "point.json").read_text())["reason"]
        == "ZeroDivisionError: division by zero"
    )


def test_trunks_need_a_schedule_that_decays_late(tiny, tmp_path, capsys):
    path = write_grid(tmp_path, GRID)
    assert launch(f"experiment={path}", f"run_dir={tmp_path / 'run'}") == 2
    assert (
        "optimizer.schedule=cosine: a grid with trunks needs a schedule whose decay begins late"
        in capsys.readouterr().err
    )


def test_trunks_and_roll_backs_exclude_each_other(arguments, capsys):
    assert launch(*arguments, "train.rollback.spike=1.5") == 2
    assert "train.rollback.spike=1.5: a trunk that was rolled back" in capsys.readouterr().err
