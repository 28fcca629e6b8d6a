"""launch submit=slurm under a real Slurm: the script that it writes requeues the job as the exit code and the
run folder require."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llm_jax.slurm import cancel, job, status
from tests.tiny_run import launch

pytestmark = pytest.mark.slurm


def submit(tiny: Path, run_dir: Path, site: Path, plan: str, *more: str) -> str:
    """Submits a run that goes as planned; returns its job's number."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "plan").write_text(plan)
    assert (
        launch(f"experiment={tiny}", f"run_dir={run_dir}", "submit=slurm", f"slurm.site={site}", *more) == 0
    )
    return job.job_number(run_dir)


def starts(run_dir: Path) -> int:
    """How often the run was started."""
    return len((run_dir / "starts").read_text().split()) if (run_dir / "starts").exists() else 0


def wait_for_start(run_dir: Path, count: int) -> None:
    """Until the run was started so often."""
    end = time.monotonic() + 60
    while starts(run_dir) < count:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_stopped_run_is_requeued_until_it_is_finished(slurm_cluster, tiny, tmp_path, site, capsys):
    run_dir = tmp_path / "a run, of 100%j"
    number = submit(
        tiny, run_dir, site, "85 4 wait\n0 8\n", "slurm.nodes=2", "slurm.tasks_per_node=2", "slurm.time=10"
    )
    printed = capsys.readouterr().out
    assert (
        f"submitted job {number}: tiny, 2 nodes with CPUs, 2 processes each, 10 minutes until it is requeued"
        in printed
    )
    assert f"site settings: {site}" in printed
    assert f"python -m llm_jax.slurm.status '{run_dir}'" in printed
    assert launch(f"experiment={tiny}", f"run_dir={run_dir}", "submit=slurm") == 2
    assert f"its job {number} is " in capsys.readouterr().err
    wait_for_start(run_dir, 1)
    assert status.status_of(run_dir, job.queued_jobs([number])).state == "running"
    slurm_cluster.ask("scancel", "--signal=USR1", number)  # as Slurm itself before the time limit
    assert slurm_cluster.wait(number, "COMPLETED")["Restarts"] == "1"
    assert starts(run_dir) == 2
    log = (run_dir / "slurm" / "job.log").read_text()
    assert log.count("hello world from the site") == 2
    assert log.count("tasks 4, GPUs None, experiment experiment=") == 2
    assert "requeue: stopped with a checkpoint of step 4: resumes from there" in log
    assert "the job ends: the run is finished" in log


def test_crashed_run_waits_before_it_is_tried_again_and_the_same_fault_ends_it(
    slurm_cluster, tiny, tmp_path, site
):
    run_dir = tmp_path / "run"
    number = submit(tiny, run_dir, site, "1 2\n1 2\n", "slurm.backoff_seconds=12")
    wait_for_start(run_dir, 1)
    shown = status.status_of(run_dir, job.queued_jobs([number]))
    while shown.state == "running":  # it is over in no time
        time.sleep(0.1)
        shown = status.status_of(run_dir, job.queued_jobs([number]))
    assert (shown.state, shown.restarts) == ("queued", 1)
    assert shown.error.startswith("failed with exit code 1; resumes at step 2 in 12 s")
    (first,) = job.read_decisions(run_dir)
    start = time.mktime(time.strptime(slurm_cluster.state(number)["EligibleTime"], "%Y-%m-%dT%H:%M:%S"))
    assert (
        11 <= start - first["time"] < 20
    )  # Slurm itself would start it after 6 s here; seconds are rounded, and the script takes a moment
    assert slurm_cluster.wait(number, "FAILED")["ExitCode"] == "87:0"
    shown = status.status_of(run_dir, job.queued_jobs([number]))
    assert (shown.state, starts(run_dir)) == ("failed", 2)
    assert "given up: the same fault" in shown.error


def test_a_cancelled_run_saves_and_ends_and_a_new_submission_resumes_it(
    slurm_cluster, tiny, tmp_path, site, capsys
):
    run_dir = tmp_path / "run"
    gpus = ("slurm.gpus_per_node=2", "layout=data_parallel") if slurm_cluster.gpus else ()
    number = submit(tiny, run_dir, site, "85 3 wait\n0 8\n", *gpus)
    wait_for_start(run_dir, 1)
    capsys.readouterr()
    assert cancel.main([str(run_dir)]) == 0
    assert (
        f"job {number} is running and received USR1: it saves, ends, and isn't requeued"
        in capsys.readouterr().out
    )
    assert slurm_cluster.wait(number, "FAILED")["ExitCode"] == "130:0"
    log = (run_dir / "slurm" / "job.log").read_text()
    assert "cancelled, with a checkpoint of step 3" in log
    if gpus:  # a process for each, which sees both
        assert "tasks 2, GPUs 0,1, " in log
    assert status.status_of(run_dir, {}).state == "stopped"
    again = submit(tiny, run_dir, site, "85 3\n0 8\n", *gpus)
    slurm_cluster.wait(again, "COMPLETED")
    assert starts(run_dir) == 2


def test_waiting_job_is_cancelled_at_once(slurm_cluster, tiny, tmp_path, site, capsys):
    slurm_cluster.ask(
        "scontrol", "update", f"NodeName={','.join(slurm_cluster.nodes)}", "State=DRAIN", "Reason=test"
    )
    number = submit(tiny, tmp_path / "run", site, "")
    assert status.status_of(tmp_path / "run", job.queued_jobs([number])).state == "queued"
    assert cancel.main([str(tmp_path / "run")]) == 0
    slurm_cluster.wait(number, "CANCELLED")
    assert cancel.main([str(tmp_path / "run")]) == 0
    assert "nothing to do: it is neither queued nor running" in capsys.readouterr().out


def test_what_slurm_refuses_is_one_line_with_its_own_error(slurm_cluster, tiny, tmp_path, capsys):
    assert (
        launch(f"experiment={tiny}", f"run_dir={tmp_path / 'run'}", "submit=slurm", "slurm.partition=gpus")
        == 2
    )
    error = capsys.readouterr().err
    assert "invalid partition specified: gpus" in error
    assert error.count("\n") == 1
