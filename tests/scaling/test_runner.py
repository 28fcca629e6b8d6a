"""RunState a grid: points that are skipped, resumed, killed or failed, and the table of runs."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pandas as pd
import pytest

from llm_jax.core.console import Console
from llm_jax.core.files import locked, write_json
from llm_jax.launch import main
from llm_jax.model import accounting
from llm_jax.run import prepare, run
from llm_jax.scaling import collect, runner
from llm_jax.scaling.progress import GridProgress
from llm_jax.train.metrics import MetricsWriter
from tests.scaling.tiny_grid import table, write_grid
from tests.tiny_run import launch, launch_process, losses, shas, summary

TWO_SEEDS = "over('train.seed', [1, 2])"


def folders(run_dir):
    """name → run folder of each point."""
    return {path.name.rsplit("-", 1)[0]: path for path in sorted((run_dir / "points").iterdir())}


@pytest.fixture
def grid(tiny, tmp_path):
    """The command line of a grid of two seeds."""
    return (f"experiment={write_grid(tmp_path, TWO_SEEDS)}", f"run_dir={tmp_path / 'run'}")


def test_a_grid_is_its_runs_and_a_table_and_is_not_run_twice(grid, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert launch(*grid, "train.steps=4") == 0
    out = capsys.readouterr().out
    assert "points 2/2" in out
    assert "2 of 2 points finished" in out
    assert (
        "loss" not in (run_dir / "log.txt").read_text().split("held-out loss")[0]
    )  # a run's own lines are in its own log
    found = table(run_dir)
    assert list(found.index) == ["seed1", "seed2"]
    assert tuple(found.reset_index().columns) == collect.COLUMNS
    parquet = pd.read_parquet(run_dir / "runs.parquet").set_index("name")
    for name, folder in folders(run_dir).items():
        recorded, row = summary(folder), found.loc[name]
        assert folder.name.endswith(row["hash"])
        assert {k: row[k] for k in ("status", "steps", "seed", "batch_size", "embed", "vocab")} == {
            "status": "finished", "steps": 4, "seed": int(name[-1]), "batch_size": 8, "embed": 32, "vocab": 320}  # fmt: skip
        for key in (
            "parameters",
            "tokens",
            "flops_exact",
            "flops_6nd_with_head",
            "eval_loss",
            "unique_tokens",
            "epochs",
            "devices",
        ):
            assert row[key] == pytest.approx(recorded[key], rel=1e-12), key
            assert parquet.loc[name][key] == pytest.approx(recorded[key], rel=1e-12), key
        assert row["train_loss"] == pytest.approx(sum(losses(folder).values()) / 4)
        assert json.loads((folder / collect.NOTE).read_text())["held_out"] is False
        assert not (folder / "samples.txt").exists()
        assert "step 4/4" in (folder / "log.txt").read_text()
        alone = tmp_path / f"alone_{name}"  # and an ordinary run: alone it has the same losses
        assert launch(f"experiment={folder / 'config.yaml'}", f"run_dir={alone}") == 0
        assert losses(alone) == losses(folder)
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "points").rglob("*") if path.is_file()}
    assert launch(*grid, "train.steps=4") == 0
    assert "2 of 2 points ended before: skipped" in capsys.readouterr().out
    assert before == {
        path: path.stat().st_mtime_ns for path in (run_dir / "points").rglob("*") if path.is_file()
    }
    assert launch(*grid, "train.steps=4", "grid.points=1") == 0
    assert "1 of 1 points" in capsys.readouterr().out


def test_the_corpus_is_prepared_once_for_all_points(tiny, tmp_path, monkeypatch):
    prepared, given = [], []
    real, train = run.data.prepare, trained_at_once(lambda e: 1.0)
    monkeypatch.setattr(run.data, "prepare", lambda *a, **k: prepared.append(1) or real(*a, **k))

    def prepare_and_train(experiment, console, stop, started, shared):
        shape = {"sequence_length": 32, "batch_size": 8, "seed": experiment.train.seed}
        given.append(shared.prepare(experiment.data, experiment.tokenizer, run_dir=None, log=print, **shape))
        return train(experiment, console, stop, started, shared)

    monkeypatch.setattr(run, "prepare_and_train", prepare_and_train)
    path = write_grid(tmp_path, "over('optimizer.learning_rate', [1e-3, 2e-3, 3e-3])")
    assert launch(f"experiment={path}", f"run_dir={tmp_path / 'run'}") == 0
    assert len(prepared) == 1
    assert given[0] is given[1] is given[2]


def test_a_killed_grid_resumes_without_repeating_a_finished_run_or_losing_a_checkpoint(tmp_path):
    path = write_grid(tmp_path, TWO_SEEDS)
    arguments = (f"experiment={path}", f"run_dir={tmp_path / 'run'}")
    kill = """
from llm_jax.train.metrics import MetricsWriter
write = MetricsWriter.write
def and_die(self, values):
    write(self, values)
    if values["step"] == 7 and "seed2" in self.jsonl.name:
        os.kill(os.getpid(), signal.SIGKILL)
MetricsWriter.write = and_die
"""
    assert launch_process(*arguments, patch=kill).returncode == -9
    first, second = folders(tmp_path / "run").values()
    assert table(tmp_path / "run").loc["seed1"]["status"] == "finished"
    finished = (first / "metrics.jsonl").read_text()
    done = launch_process(*arguments)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 points ended before" in done.stdout
    assert (first / "metrics.jsonl").read_text() == finished
    assert "resuming at step" in (second / "log.txt").read_text()
    assert list(losses(second)) == list(range(1, 9))  # and no step twice with another loss
    assert list(table(tmp_path / "run")["status"]) == ["finished", "finished"]
    alone = launch_process(f"experiment={second / 'config.yaml'}", f"run_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0
    assert losses(tmp_path / "alone") == losses(second)
    assert shas(tmp_path / "alone") == shas(second)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_whole_grid_with_a_checkpoint_of_the_point(
    grid, tmp_path, monkeypatch, capsys, number
):
    write, sent = MetricsWriter.write, []

    def with_signal(self, values):
        write(self, values)
        if values["step"] == 3 and not sent:
            sent.append(1)
            signal.raise_signal(number)

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(MetricsWriter, "write", with_signal)
    assert launch(*grid) == (130 if number == signal.SIGINT else 85)
    assert f"stopped by {number.name}; rerun this command to resume" in capsys.readouterr().out
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    (first,) = folders(tmp_path / "run").values()
    assert summary(first)["state"] == "stopped"
    if number == signal.SIGINT:
        return  # from here on it is the same
    assert launch(*grid) == 0
    assert "resuming at step" in (first / "log.txt").read_text()
    assert list(table(tmp_path / "run")["status"]) == ["finished", "finished"]


DIVERGES = """
import jax.numpy as jnp
from dataclasses import dataclass

from llm_jax.objective.next_token import NextToken


@dataclass(frozen=True)
class NanIfLarge(NextToken):
    name: str = "nan_if_large"

    def loss(self, policy, frozen, batch):
        loss = super().loss(policy, frozen, batch)
        return loss._replace(total=loss.total * (jnp.nan if self.z_loss > 1 else 1))
"""
FOUR = """chain(over('objective.z_loss', [0.0, 2.0]), [{'model.layers': 3}, {'model.heads': 3}])"""


def test_failed_and_diverged_points_are_recorded_and_the_others_run(tiny, tmp_path, monkeypatch, capsys):
    """One point diverges, one runs out of memory, one has an invalid configuration."""
    path = write_grid(tmp_path, FOUR, more=DIVERGES, fields="objective=NanIfLarge()")
    arguments = (
        f"experiment={path}",
        f"run_dir={tmp_path / 'run'}",
        "train.steps=4",
        "train.stop_after_bad_steps=2",
    )
    real = prepare.TrainModel

    def out_of_memory(model, *rest):
        if model.layers == 3:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.\nmore")
        return real(model, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "TrainModel", out_of_memory)
        assert launch(*arguments) == 1
    out = capsys.readouterr().out
    found = table(tmp_path / "run")
    assert dict(found["status"]) == {
        "z_loss0.0": "finished",
        "z_loss2.0": "diverged",
        "layers3": "failed",
        "heads3": "failed",
    }
    assert found.loc["layers3"]["reason"].startswith(
        "out of memory: RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    )
    assert "model.heads=3: does not divide model.embed=32" in found.loc["heads3"]["reason"]
    assert "not finite" in found.loc["z_loss2.0"]["reason"]
    assert "1 of 4 points finished" in out
    for name, reason in (
        ("layers3", "failed: out of memory"),
        ("heads3", "failed: model.heads=3"),
        ("z_loss2.0", "diverged"),
    ):
        assert f"{name}: {reason}" in out.split("points finished")[1]
    assert "Traceback" in (folders(tmp_path / "run")["layers3"] / "log.txt").read_text()

    assert launch(*arguments) == 1  # the failed one is tried again, the diverged one is not
    assert dict(table(tmp_path / "run")["status"]) == {
        "z_loss0.0": "finished",
        "z_loss2.0": "diverged",
        "layers3": "finished",
        "heads3": "failed",
    }
    assert "the last start diverged" not in (folders(tmp_path / "run")["z_loss2.0"] / "log.txt").read_text()
    assert launch(*arguments, "grid.retry=true") == 1
    assert "the last start diverged" in (folders(tmp_path / "run")["z_loss2.0"] / "log.txt").read_text()


def test_a_mistake_in_every_point_ends_the_grid_at_once(grid, tmp_path, capsys):
    assert launch(*grid, "mesh.data=16") == 2
    assert "needs 16 devices" in capsys.readouterr().err
    assert not (tmp_path / "run" / "points").exists()


def test_a_grid_that_another_process_runs_is_left_alone_but_parts_run_side_by_side(grid, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run", print, shared=True):
        assert launch(*grid, "train.steps=2") == 2
        assert "another process is running in this folder" in capsys.readouterr().err
        assert launch(*grid, "train.steps=2", "grid.points=0") == 0
    with locked(folders(tmp_path / "run")["seed1"], print):
        assert launch(*grid, "train.steps=3", "grid.points=0") == 0  # another hash, another folder


def trained_at_once(loss_of):
    """In place of training: a summary with a loss that follows from the experiment."""

    def prepare_and_train(experiment, console, stop, started, shared):
        tokens = experiment.train.steps * 256
        counted = accounting.account(experiment.model, experiment.train.sequence_length, tokens)
        values = {
            "state": "finished",
            "step": experiment.train.steps,
            "tokens": tokens,
            **counted,
            "eval_loss": loss_of(experiment),
        }
        write_json(Path(experiment.run_dir) / "summary.json", values)
        return 0

    return prepare_and_train


def test_points_that_a_design_adds_are_run_too(tiny, tmp_path, monkeypatch, capsys):
    """The curve's lowest loss is at its largest size, so the next size is run, and once more."""
    sizes = "[{'model.embed': w} for w in (16, 32, 64, 128, 256)]"
    path = write_grid(tmp_path, f"isoflop([3e8], {sizes}, per_curve=2, tokens_per_parameter=1e9)")
    arguments = (f"experiment={path}", f"run_dir={tmp_path / 'run'}")
    monkeypatch.setattr(run, "prepare_and_train", trained_at_once(lambda e: abs(e.model.embed - 65.0)))
    assert launch(*arguments) == 0
    assert list(table(tmp_path / "run")["embed"]) == [16, 32, 64, 128]
    out = capsys.readouterr().out
    assert out.count("added by the design") == 2
    assert "points 4/4" in out
    assert launch(*arguments) == 0
    assert "4 of 4 points ended before" in capsys.readouterr().out


def test_main_runs_grids_too(capsys):
    assert main(["experiment=quickstart", "--dry-run"]) == 2
    assert runner.EXIT_SOME_FAILED == 1


def test_the_eta_counts_only_what_this_start_has_done():
    console, lines = Console(), []
    console.log = lines.append  # type: ignore[method-assign]
    progress = GridProgress(console, points=2, done=0, flops=100.0, flops_done=0.0)
    progress.started -= 10  # ten seconds in which a point went from 40 FLOPs to 50
    progress.resume_from(40.0)
    progress.update("half-done", 50.0, "")
    assert "50%" in progress.line()
    assert "ETA 00:50" in progress.line()


def test_several_processes_are_refused_before_their_rendezvous(grid, tmp_path, monkeypatch, capsys):
    for name, value in {"RANK": "0", "SIZE": "2", "COORDINATOR": "127.0.0.1:9"}.items():
        monkeypatch.setenv(f"LLM_JAX_{name}", value)
    assert launch(*grid) == 2
    assert "is a grid, which one process runs, but 2 processes were started" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
