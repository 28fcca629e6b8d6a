"""launch experiment=GRID submit=slurm: a job array, and a job that continues the grid; runs that are killed
or fail have rows with their state and reason."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llm_jax.slurm import cancel, job, status
from tests.scaling.tiny_grid import table, write_grid
from tests.slurm.cluster import SlurmCluster
from tests.tiny_run import launch

pytestmark = pytest.mark.slurm


def folders(run_dir: Path) -> dict[str, Path]:
    """name → run folder of each point."""
    return {path.name.rsplit("-", 1)[0]: path for path in sorted((run_dir / "points").iterdir())}


def wait_until_quiet(cluster: SlurmCluster, seconds: float = 120.0) -> None:
    """Until no job is left."""
    end = time.monotonic() + seconds
    while cluster.ask("squeue", "-h").strip():
        assert time.monotonic() < end, cluster.ask("squeue")
        time.sleep(0.2)


def test_what_is_killed_and_what_fails_is_in_the_table_as_it_was_and_what_is_held_out_comes_last(
    slurm_cluster, tiny, tmp_path, site, capsys
):
    plans = {
        "seed1": "0 8\n",
        "seed2": "-9 0\n0 8\n",  # killed, and resumes
        "seed3": "2 0\n",  # a user error
        "seed4": "1 4\n1 4\n",  # a bug
        "seed5": "85 6 wait\n0 8\n",  # taken away by scancel
        "seed9": "0 8\n",  # held out
    }
    for name, plan in plans.items():
        (tmp_path / "plans" / name).write_text(plan)
    run_dir = tmp_path / "run"
    path = write_grid(tmp_path, "over('train.seed', [1, 2, 3, 4, 5]), held_out=[{'train.seed': 9}]")
    command = (
        f"experiment={path}",
        f"run_dir={run_dir}",
        "submit=slurm",
        "slurm.at_once=2",
        f"slurm.site={site}",
    )
    assert launch(*command) == 0
    assert "5 runs, at most 2 at once" in capsys.readouterr().out
    assert launch(*command) == 2
    assert "is still queued or running" in capsys.readouterr().err
    fifth, end = folders(run_dir)["seed5"], time.monotonic() + 100
    while not (fifth / "starts").exists():
        assert time.monotonic() < end
        running = slurm_cluster.ask("squeue", "-h", "-t", "RUNNING,COMPLETING", "-o", "%i").split()
        assert len(running) <= 2
        time.sleep(0.1)
    slurm_cluster.ask("scancel", "--full", "--signal=KILL", job.job_number(fifth))
    slurm_cluster.ask("scancel", job.job_number(fifth))
    wait_until_quiet(slurm_cluster)

    found = table(run_dir)
    assert dict(found["status"]) == {
        "seed1": "finished", "seed2": "finished", "seed3": "failed", "seed4": "failed",
        "seed5": "unfinished", "seed9": "finished",
    }  # fmt: skip
    assert found["reason"]["seed3"] == "data.source=none.jsonl: no such file or folder"
    assert found["reason"]["seed4"].startswith("given up: the same fault")
    assert "ended without a result" in found["reason"]["seed5"]
    starts = {name: (folder / "starts").read_text() for name, folder in folders(run_dir).items()}
    assert {name: len(text.split()) for name, text in starts.items()} == {
        "seed1": 1, "seed2": 2, "seed3": 1, "seed4": 2, "seed5": 1, "seed9": 1,
    }  # fmt: skip
    log = (run_dir / "log.txt").read_text()
    assert (
        "held-out runs can't be predicted" in log
    )  # two runs are too few, which is logged before the held-out one runs
    assert log.index("held-out runs can't") < log.index("1 runs, at most 2")
    assert "3 of 6 points finished" in log
    assert [status.status_of(folder, {}).state for folder in folders(run_dir).values()] == [
        *["finished"] * 2,
        *["failed"] * 3,
        "finished",
    ]

    (tmp_path / "plans" / "seed3").write_text("\n0 8\n")  # mended
    (tmp_path / "plans" / "seed4").write_text("\n\n0 8\n")
    assert launch(*command) == 0  # runs that are not finished are tried again, and no others
    assert "array" in capsys.readouterr().out
    wait_until_quiet(slurm_cluster)
    assert set(table(run_dir)["status"]) == {"finished"}
    assert "6 of 6 points finished" in (run_dir / "log.txt").read_text()


def test_a_grid_is_cancelled_with_the_job_that_waits(slurm_cluster, tiny, tmp_path, site, capsys):
    run_dir = tmp_path / "run"
    for seed in (1, 2):
        (tmp_path / "plans" / f"seed{seed}").write_text("85 3 wait\n")
    path = write_grid(tmp_path, "over('train.seed', [1, 2])")
    assert (
        launch(
            f"experiment={path}",
            f"run_dir={run_dir}",
            "submit=slurm",
            "slurm.at_once=1",
            f"slurm.site={site}",
        )
        == 0
    )
    end = time.monotonic() + 60
    while not (folders(run_dir)["seed1"] / "starts").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    waiting = json.loads((run_dir / "slurm" / "grid.json").read_text())["job"]
    capsys.readouterr()
    assert cancel.main([str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert f"job {waiting}, which waits for the grid's runs, was removed from the queue" in out
    assert "is running and received USR1" in out
    assert "was pending, and was removed from the queue" in out
    wait_until_quiet(slurm_cluster)
    assert not (run_dir / "slurm" / "go_on.log").exists()
    first, second = (status.status_of(folder, {}) for folder in folders(run_dir).values())
    assert (first.state, first.error) == ("stopped", "cancelled, with a checkpoint of step 3")
    assert (second.state, second.error) == ("stopped", "cancelled before it started")
