"""An evaluation on tasks as a Slurm job: requeued in the middle, it goes on where it was."""

from __future__ import annotations

import json
import sys
import time

import pytest

from llm_jax.evaluate.__main__ import main
from tests.tiny_run import launch

pytestmark = [pytest.mark.slurm, pytest.mark.slow]  # a minute
VARY = ("seconds", "tokens", "n_resumed")


def test_a_requeued_evaluation_repeats_no_finished_task(slurm_cluster, tiny, tmp_path):
    run_dir, out, log = tmp_path / "run", tmp_path / "scores", tmp_path / "job.log"
    assert launch(f"experiment={tiny}", f"run_dir={run_dir}", "train.steps=1") == 0
    words = [str(run_dir), "tasks=german,english", "limit=200"]
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -m llm_jax.evaluate {' '.join(words)} out={out}\n")
    job = slurm_cluster.ask(
        "sbatch",
        "--parsable",
        "--requeue",
        "--cpus-per-task=2",
        "--open-mode=append",
        f"--output={log}",
        script,
    ).strip()
    end = time.monotonic() + 120
    while len(done := list(out.glob("*.json"))) < 5:
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    before = {file: file.stat().st_mtime_ns for file in done}
    slurm_cluster.ask("scontrol", "requeue", job)
    found = slurm_cluster.wait(job, "COMPLETED", seconds=240)
    assert found["Restarts"] == "1"
    assert {file: file.stat().st_mtime_ns for file in before} == before
    results = json.loads((out / "scores.json").read_text())["results"]
    assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    whole = json.loads((tmp_path / "whole" / "scores.json").read_text())["results"]
    assert [{k: v for k, v in one.items() if k not in VARY} for one in results] == [
        {k: v for k, v in one.items() if k not in VARY} for one in whole
    ]
