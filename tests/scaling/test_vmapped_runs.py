"""Runs that one program trains by vmap equal the same runs trained one by one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.console import Console
from llm_jax.core.errors import UserError
from llm_jax.core.files import read_json_lines
from llm_jax.experiment import Experiment, load_experiment, override, resolved
from llm_jax.processes.group import alone as group_of_one
from llm_jax.run import run
from llm_jax.scaling.vmapped_runs import group_by_shape, run_vmapped
from llm_jax.train.optimizer import BUILDERS, register
from tests.scaling.tiny_grid import table, write_grid
from tests.tiny_run import checkpoint, launch, launch_process, losses, shas, steps_saved, summary

SETTINGS = (("train.steps", 30), ("checkpoint.every", 100), ("evaluate.every", 15))
DIFFERENT = {
    "base": {},
    "seed": {"train.seed": 7},
    "rate": {"optimizer.learning_rate": 1e-3, "optimizer.schedule": "wsd", "optimizer.warmup_steps": 5},
    "decay": {"optimizer.weight_decay": 0.0},
    "scale": {"model.init_std": 0.04},
}
"""A run for each kind of key in which runs may differ."""


def make(path, folder, name, *more) -> Experiment:
    return resolved(override(load_experiment(str(path)), [("run_dir", str(folder / name)), *more]))


def train(experiments) -> list[int]:
    with group_of_one() as group:
        return run_vmapped(experiments, Console(), group, time.monotonic())


def alone(experiment) -> int:
    with group_of_one() as group:
        return run.prepare_and_train(experiment, Console(), group, time.monotonic())


@pytest.mark.parametrize(
    ("optimizer", "devices", "chosen"),
    [
        ("adamw", 1, tuple(DIFFERENT)),
        pytest.param("adamw", 2, ("base", "seed"), marks=pytest.mark.slow),
        pytest.param("muon", 1, ("base", "decay"), marks=pytest.mark.slow),
    ],
)
def test_each_vmapped_run_has_the_losses_and_batches_of_the_run_trained_alone(
    tiny, tmp_path, optimizer, devices, chosen
):
    more, mesh = [("optimizer.name", optimizer), *SETTINGS], ("mesh.data", devices)
    experiments = {
        name: make(tiny, tmp_path / "vmapped", name, *more, mesh, *DIFFERENT[name].items()) for name in chosen
    }
    assert train(list(experiments.values())) == [0] * len(chosen)
    ended = {}
    for name in chosen:
        other = make(tiny, tmp_path / "alone", name, *more, ("mesh.data", 1), *DIFFERENT[name].items())
        assert alone(other) == 0
        ours, theirs = tmp_path / "vmapped" / name, tmp_path / "alone" / name
        assert list(losses(ours)) == list(range(1, 31))
        # the same sums in another order: 1e-7 a step, which 30 steps of training carry on
        np.testing.assert_allclose(list(losses(ours).values()), list(losses(theirs).values()), rtol=1e-5)
        assert shas(ours) == shas(theirs)
        for key in ("eval_loss", "eval_bits_per_byte", "train_loss"):
            np.testing.assert_allclose(summary(ours)[key], summary(theirs)[key], rtol=1e-5)
        ended[name] = summary(ours)["eval_loss"]
    assert len(set(ended.values())) == len(chosen)  # each key did make a difference
    assert summary(ours)["devices"] == devices
    if devices == 1:
        assert_same_folder(ours, theirs)


def assert_same_folder(ours, theirs):
    """Both folders have equal files with equal keys, but for the number of vmapped runs."""
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    assert set(summary(ours)) - set(summary(theirs)) == {"vmapped_runs"}
    assert set(summary(theirs)) <= set(summary(ours))
    lines = [read_json_lines(folder / "metrics.jsonl") for folder in (ours, theirs)]
    assert [(line["step"], set(line)) for line in lines[0]] == [
        (line["step"], set(line)) for line in lines[1]
    ]
    same = ("steps", "tokens", "parameters", "train_flops", "devices", "mesh", "state", "epochs")
    assert {key: summary(ours).get(key) for key in same} == {key: summary(theirs).get(key) for key in same}
    configs = [(folder / "config.yaml").read_text().replace(str(folder), "") for folder in (ours, theirs)]
    assert configs[0] == configs[1]


def test_a_vmapped_run_starts_from_the_weights_of_the_run_trained_alone_bit_for_bit(tiny, tmp_path):
    # a learning rate of next to nothing, without decay: after a step the weights are those of the beginning
    still = [
        ("train.steps", 1),
        ("optimizer.learning_rate", 1e-30),
        ("optimizer.weight_decay", 0.0),
        ("evaluate.batches", 1),
    ]
    different = {"a": [("train.seed", 1)], "b": [("train.seed", 2), ("model.init_std", 0.05)]}
    assert train(
        [make(tiny, tmp_path / "vmapped", name, *still, *more) for name, more in different.items()]
    ) == [0, 0]
    for name, more in different.items():
        assert alone(make(tiny, tmp_path / "alone", name, *still, *more)) == 0
        ours, theirs = (checkpoint(tmp_path / how / name, 1) for how in ("vmapped", "alone"))
        assert ours.keys() == theirs.keys()
        for key in (key for key in ours if "parameters" in key):
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_a_run_that_diverges_is_recorded_and_the_others_continue(tiny, tmp_path, capsys):
    more = [
        ("train.steps", 12),
        ("train.stop_after_bad_steps", 3),
        ("optimizer.clip_norm", 0.0),
        ("optimizer.warmup_steps", 0),
    ]
    rates = {"low": 1e-3, "high": 1e38}  # the first update makes weights whose products are infinite
    codes = train(
        [make(tiny, tmp_path, name, *more, ("optimizer.learning_rate", rate)) for name, rate in rates.items()]
    )
    assert codes == [0, run.EXIT_DIVERGED]
    low, high = (summary(tmp_path / name) for name in rates)
    assert (low["state"], low["step"], low["bad_steps"]) == ("finished", 12, 0)
    assert np.isfinite(low["eval_loss"])
    assert (high["state"], high["bad_steps"]) == ("diverged", 3)
    assert high["step"] < 12
    assert max(losses(tmp_path / "high")) == high["step"]  # nothing is written of it afterwards
    assert "high: diverged: 3 updates in a row skipped" in capsys.readouterr().out
    assert alone(make(tiny, tmp_path / "alone", "low", *more, ("optimizer.learning_rate", 1e-3))) == 0
    np.testing.assert_allclose(summary(tmp_path / "alone" / "low")["eval_loss"], low["eval_loss"], rtol=1e-5)


KILL_WHILE_STEP_4_IS_SAVED = """
from llm_jax.train.checkpoint import Checkpoints
save, saved = Checkpoints.save, []
def and_die(self, state, step, info, eval_loss):
    save(self, state, step, info, eval_loss)
    if step == 4:
        self.wait()
        saved.append(step)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save = and_die
"""


@pytest.mark.slow  # a grid that is killed, and a run: test_runner.py and tests/faults
def test_a_group_killed_between_two_checkpoints_resumes_from_the_newest_common_one_and_is_not_run_again(
    tiny, tmp_path, capsys
):
    grid = write_grid(tmp_path, "product(over('train.seed', range(3)))")
    command = f"experiment={grid}", "grid.executor=vmap"
    assert launch_process(*command, f"run_dir={tmp_path / 'unbroken'}").returncode == 0
    assert (
        launch_process(
            *command, f"run_dir={tmp_path / 'killed'}", patch=KILL_WHILE_STEP_4_IS_SAVED
        ).returncode
        == -9
    )
    folders = sorted((tmp_path / "killed" / "points").iterdir())
    assert [steps_saved(folder) for folder in folders] == [[2, 4], [2, 4], [2]]
    assert launch_process(*command, f"run_dir={tmp_path / 'killed'}").returncode == 0
    for folder, other in zip(folders, sorted((tmp_path / "unbroken" / "points").iterdir()), strict=True):
        assert "resuming at step 2" in (folder / "log.txt").read_text()
        assert losses(folder) == losses(other)
        ours, theirs = checkpoint(folder, 8), checkpoint(other, 8)
        for key, values in ours.items():
            np.testing.assert_array_equal(values, theirs[key], err_msg=key)
    assert table(tmp_path / "killed")["status"].tolist() == ["finished"] * 3
    before = {folder: (folder / "metrics.jsonl").stat().st_mtime_ns for folder in folders}
    assert launch(*command, f"run_dir={tmp_path / 'killed'}") == 0
    assert "3 of 3 points ended before: skipped" in capsys.readouterr().out
    assert before == {folder: (folder / "metrics.jsonl").stat().st_mtime_ns for folder in folders}


def test_a_vmapped_grid_has_the_table_of_one_that_runs_one_by_one(tiny, tmp_path, capsys):
    grid = write_grid(tmp_path, "over('optimizer.learning_rate', [1e-3, 3e-3, 1e-2])")
    for executor in ("vmap", "one_by_one"):
        assert (
            launch(
                f"experiment={grid}",
                f"grid.executor={executor}",
                "grid.at_once=2",
                f"run_dir={tmp_path / executor}",
            )
            == 0
        )
    ours, theirs = table(tmp_path / "vmap"), table(tmp_path / "one_by_one")
    assert ours.index.tolist() == theirs.index.tolist()
    for name in ours.columns.difference(["run_dir", "tokens_per_second", "mfu", "wall_seconds"]):
        if ours[name].dtype.kind == "f":
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
        else:
            assert ours[name].astype(str).tolist() == theirs[name].astype(str).tolist(), name
    recorded = [summary(Path(folder)).get("vmapped_runs") for folder in ours["run_dir"]]
    assert recorded == [2, 2, None]  # a group of one is a run like any other
    assert "3 of 3 points finished" in capsys.readouterr().out


def test_runs_of_a_group_differ_only_in_what_may_vary():
    def of(**values):
        return resolved(
            override(Experiment(name="x"), [(key.replace("__", "."), value) for key, value in values.items()])
        )

    seeds = [of(train__seed=seed) for seed in range(5)]
    mixed = [
        of(model__embed=64),
        *seeds,
        of(optimizer__weight_decay=0.3, model__init_std=0.1),
        of(train__steps=7),
        of(optimizer__beta2=0.9),
    ]
    assert group_by_shape(mixed, 4) == [[mixed[0]], mixed[1:5], mixed[5:7], [mixed[7]], [mixed[8]]]
    assert group_by_shape([], 4) == []


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            ("layout", "data_parallel"),
            "layout.name=data_parallel: splits arrays over devices, but grid.executor=vmap",
        ),
        (
            ("optimizer.name", "deciding"),
            "optimizer.name=deciding: branches on optimizer.weight_decay, so grid.executor=vmap",
        ),
    ],
)
def test_what_cannot_be_vmapped_is_refused_with_the_key(tiny, tmp_path, setting, line):
    @register("deciding")
    def deciding(config, info):
        return BUILDERS["adamw"](config, info) if config.weight_decay else BUILDERS["lion"](config, info)

    try:
        with pytest.raises(UserError, match=line):
            train(
                [
                    make(tiny, tmp_path, name, setting, ("optimizer.weight_decay", decay))
                    for name, decay in (("a", 0.1), ("b", 0.2))
                ]
            )
    finally:
        del BUILDERS["deciding"]
