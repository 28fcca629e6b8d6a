"""Evaluation on tasks between two steps: its scores are those that the command gives for the checkpoint, and it
changes nothing of what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_jax.core.files import read_json_lines
from llm_jax.evaluate.__main__ import main
from tests.tiny_run import launch, losses, write_experiment

PAIRS = [{"good": f"the model reads {n}.", "bad": f"the model read {n}."} for n in range(9)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in PAIRS))
    return file


def test_scores_are_those_of_the_command_and_training_is_the_same(tmp_path: Path, tasks: Path, capsys):
    experiment = f"experiment={write_experiment(tmp_path)}"
    with_tasks, without = tmp_path / "with", tmp_path / "without"
    often = (
        "evaluate.every=2",
        "evaluate.tasks_every=4",
        f"evaluate.tasks={tasks}",
        "evaluate.tasks_limit=7",
    )
    assert launch(experiment, f"run_dir={with_tasks}", "checkpoint.keep=9", *often) == 0
    assert "tasks: pairs " in capsys.readouterr().out
    assert launch(experiment, f"run_dir={without}", "evaluate.every=2") == 0
    assert losses(with_tasks) == losses(without)
    lines = [line for line in read_json_lines(with_tasks / "metrics.jsonl") if "task_pairs" in line]
    assert [line["step"] for line in lines] == [4, 8]
    assert all("eval_loss" in line for line in lines)
    for line in lines:
        out = tmp_path / "scores.json"
        step = f"step={line['step']}"
        assert main([str(with_tasks), f"tasks={tasks}", "limit=7", step, f"out={out}"]) == 0
        (result,) = json.loads(out.read_text())["results"]
        assert line["task_pairs"] == result["value"]
        assert line["task_pairs_bits_per_byte"] == pytest.approx(result["gold_bits_per_byte"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("evaluate.tasks=nothing",), "error: evaluate.tasks=nothing: is no task"),
        (("evaluate.tasks=long.jsonl", "model.positions=64", "model.position=learned"), "Evaluate the checkpoints instead, with too_long=left"),
        (("evaluate.tasks=arc_easy",), "or give evaluate.tasks_data=FOLDER"),
        (("evaluate.tasks=arc_easy", "evaluate.tasks_data=none"), "error: evaluate.tasks_data=none: has no folder"),
        (("evaluate.tasks_every=4",), "evaluate.tasks_every=4: must be 0 without evaluate.tasks=NAMES"),
        (("evaluate.tasks_every=3", "evaluate.tasks=english", "evaluate.every=2"), "evaluate.tasks_every=3: must be a multiple"),
        (("evaluate.tasks_limit=0", "evaluate.tasks=english"), "evaluate.tasks_limit=0: must be at least 1"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_a_run_folder_is_made(tmp_path: Path, capsys, monkeypatch, words, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "the model " * 100}))
    run_dir = tmp_path / "run"
    assert launch(f"experiment={write_experiment(tmp_path)}", f"run_dir={run_dir}", *words) == 2
    assert error in capsys.readouterr().err
    assert not run_dir.exists()
