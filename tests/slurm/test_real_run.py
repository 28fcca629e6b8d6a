"""The generated script with a real run of two processes on two nodes: stopped, requeued, finished, and every
step done once."""

from __future__ import annotations

import time

import pytest

from llm_jax.core.files import read_json_lines
from llm_jax.slurm import job, status
from tests.tiny_run import launch, losses, summary
from tests.xla_flags import simulated

pytestmark = pytest.mark.slurm


def test_submitted_run_stops_saves_is_requeued_and_finishes(slurm_cluster, tiny, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    monkeypatch.setenv("XLA_FLAGS", simulated(2))  # of each process
    monkeypatch.setenv("LLM_JAX_SITE", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    slow = ("train.steps=60", "checkpoint.every=1000", "evaluate.every=0", "train.log_every=1")
    keys = ("submit=slurm", "slurm.nodes=2", "slurm.cpus_per_task=2", "slurm.backoff_seconds=0")
    assert launch(f"experiment={tiny}", "layout=data_parallel", f"run_dir={run_dir}", *slow, *keys) == 0
    number, end = job.job_number(run_dir), time.monotonic() + 200
    while len(read_json_lines(run_dir / "metrics.jsonl")) < 2:
        assert time.monotonic() < end, (run_dir / "slurm" / "job.log").read_text()
        time.sleep(0.05)
    slurm_cluster.ask("scancel", "--signal=USR1", number)  # as Slurm itself does before the time limit
    found = slurm_cluster.wait(number, "COMPLETED", seconds=240)
    log = (run_dir / "slurm" / "job.log").read_text()
    assert found["Restarts"] == "1", log
    first, last = job.read_decisions(run_dir)
    assert (first["exit"], last["exit"]) == (85, 0), log
    assert 0 < first["step"] < 60
    assert f"resuming at step {first['step']}" in log
    assert list(losses(run_dir)) == list(range(1, 61))
    assert (summary(run_dir)["state"], summary(run_dir)["devices"]) == ("finished", 4)
    assert status.status_of(run_dir, {}).state == "finished"
