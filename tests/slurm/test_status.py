"""llm_jax.slurm.status and cancel without Slurm, from the files in run folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_jax.core.errors import UserError
from llm_jax.core.files import read_json_lines
from llm_jax.slurm import cancel, requeue, status
from tests.tiny_run import ROOT, launch, write_experiment


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    """These tests don't depend on whether Slurm is installed."""
    monkeypatch.setattr(status.job.shutil, "which", lambda name: None)


def run_of(folder: Path, state: str | None, step: int = 30, **more: object) -> Path:
    """A run folder of 40 steps as a run leaves it."""
    (folder / "slurm").mkdir(parents=True)
    (folder / "config.yaml").write_text("train:\n  steps: 40\n")
    lines = [
        {"step": i, "train_loss": 5.0 - i / 10, "step_seconds": 0.5, "tokens_per_second": 2e6, "mfu": 0.5}
        for i in range(1, step + 1)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 31, "train_l'
    )
    if state:
        (folder / "summary.json").write_text(json.dumps({"state": state, "step": step, "goodput": 0.875}))
    for name, content in more.items():
        (folder / name.replace("_", "/", 1)).with_suffix(".jsonl").write_text(json.dumps(content) + "\n")
    return folder


def test_the_table_has_each_state_and_its_reason(tmp_path, capsys):
    fault = {
        "time": time.time(),
        "kind": "exception",
        "rank": 3,
        "host": "n7",
        "phase": "train",
        "step": 30,
        "batch": None,
        "message": "boom [x]",
    }
    given_up = {
        "time": time.time(),
        "exit": 1,
        "code": 87,
        "decision": "end",
        "start": 3,
        "step": 20,
        "reason": "given up: the same fault",
    }
    run_of(tmp_path / "runs" / "done", "finished", 40)
    run_of(tmp_path / "runs" / "longer", "finished", 30)  # of 40 by now: train.steps has grown
    run_of(tmp_path / "runs" / "nan", "diverged")
    run_of(tmp_path / "runs" / "paused", "stopped")
    run_of(tmp_path / "runs" / "crashed", None, faults=fault)
    run_of(tmp_path / "runs" / "gone", None)
    run_of(tmp_path / "runs" / "hopeless", None, slurm_restarts=given_up)
    assert status.main([str(tmp_path / "runs"), f"json={tmp_path / 'table.json'}"]) == 0
    table = {Path(row["run"]).name: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert {name: row["state"] for name, row in table.items()} == {
        "done": "finished", "longer": "failed", "nan": "diverged", "paused": "stopped", "crashed": "failed",
        "gone": "failed", "hopeless": "failed",
    }  # fmt: skip
    assert table["crashed"]["error"] == "rank 3 on n7 in phase train, step 30: boom [x]"
    assert (table["hopeless"]["error"], table["hopeless"]["restarts"]) == ("given up: the same fault", 2)
    done = table["done"]
    assert (done["step"], done["steps"], done["loss"], done["tokens_per_second"], done["mfu"]) == (
        40,
        40,
        1.0,
        2e6,
        0.5,
    )
    assert (done["eta_seconds"], done["goodput"]) == (None, 0.875)
    printed = capsys.readouterr().out
    for word in ("40/40", "30/40", "1.0000", "2M", "50.0%", "88%", "boom [x]", "given up: the same fault"):
        assert word in printed


def test_run_on_this_machine_is_seen_and_cancelled_with_a_checkpoint(tmp_path, capsys):
    run_dir = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "llm_jax.launch",
        f"experiment={write_experiment(tmp_path)}",
        f"run_dir={run_dir}",
        "train.steps=100000",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "XLA_FLAGS": ""}
    )
    try:
        end = time.monotonic() + 120
        while not read_json_lines(run_dir / "metrics.jsonl"):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        shown = status.status_of(run_dir, {})
        assert (shown.state, shown.steps) == ("running", 100000)
        assert status.lock_holder(run_dir) == process.pid
        assert cancel.main([str(run_dir)]) == 0
        assert f"process {process.pid} on this machine received SIGTERM" in capsys.readouterr().out
        assert process.wait(60) == 85
    finally:
        process.send_signal(signal.SIGKILL)
    shown = status.status_of(run_dir, {})
    assert shown.state == "stopped"
    assert shown.step == max(
        int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()
    )
    assert cancel.main([str(run_dir)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_real_run_has_what_the_table_shows(tiny, tmp_path, capsys):
    assert launch(f"experiment={tiny}", f"run_dir={tmp_path / 'run'}") == 0
    shown = status.status_of(tmp_path / "run", {})
    assert (shown.state, shown.step, shown.steps, shown.restarts, shown.error) == ("finished", 8, 8, 0, "")
    for value in (shown.loss, shown.eval_loss, shown.tokens_per_second, shown.mfu, shown.goodput):
        assert value
        assert value > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/no/such"], "there is no such folder"),
        (["."], "has no run in it"),
        ([".", "jsn=a"], "did you mean 'json'?"),
    ],
)
def test_user_errors(tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert status.main(arguments) == 2
    assert says in capsys.readouterr().err


DECISION = {
    "time": 1.0, "start": 1, "exit": 85, "step": 4, "fault": None, "decision": "requeue", "code": 85,
    "reason": "r",
}  # fmt: skip
FAULT = {
    "time": 1.0,
    "kind": "exception",
    "rank": 0,
    "host": "h",
    "phase": "train",
    "step": 5,
    "message": "m",
}
LINE = {"step": 30, "train_loss": 2.0, "step_seconds": 0.5, "tokens_per_second": 2e6, "mfu": 0.5}


@pytest.mark.parametrize("junk", [None, "x", [1], {"a": 1}, True])
@pytest.mark.parametrize(
    ("file", "record"),
    [("slurm/restarts.jsonl", DECISION), ("faults.jsonl", FAULT), ("metrics.jsonl", LINE)],
    ids=["restarts", "faults", "metrics"],
)
def test_records_that_are_none_are_passed_over(tmp_path, file, record, junk, capsys):
    """Lines of another version, of another program, or of a damaged disk: each value in turn is another."""
    for name in record:
        run = run_of(tmp_path / f"{name}{len(list(tmp_path.iterdir()))}", "stopped")
        changed = [record, {**record, name: junk}, {key: record[key] for key in record if key != name}]
        (run / file).write_text("".join(json.dumps(line) + "\n" for line in changed))
        row = status.status_of(run, {})
        assert row.step == 30
        status.show([row])
        for code in (1, 85, 137):
            requeue.decide(run, code, max_restarts=3, backoff_seconds=1)


@pytest.mark.parametrize(
    "change", [{"step": [1]}, {"step": "30"}, {"state": 3}, {"goodput": "x"}, {"eval_loss": {}}]
)
def test_a_damaged_summary_is_named(tmp_path, change):
    run = run_of(tmp_path / "run", "finished")
    (run / "summary.json").write_text(json.dumps({"state": "finished", "step": 40, **change}))
    with pytest.raises(
        UserError, match=r"summary.json: is damaged: state, step, .* must be text or numbers; remove it"
    ):
        status.status_of(run, {})
    (run / "summary.json").write_text('{"state": "finished"}')
    assert status.status_of(run, {}).step == 30
