"""Whether a job is requeued: decided from the exit code, the faults and the checkpoints in its run folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llm_jax.core.files import BUSY
from llm_jax.slurm import job, requeue


@pytest.fixture
def run_dir(tmp_path):
    """A run that was submitted a moment ago."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job.json").write_text(json.dumps({"job": "12", "submitted": time.time() - 1}))
    return tmp_path


def end(
    run_dir: Path, code: int, step: int = 0, fault: dict | None = None, **settings: int
) -> requeue.Decision:
    """A start of the run ends: with a checkpoint of this step, perhaps with a fault."""
    (run_dir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    (run_dir / "checkpoints" / f"{step + 1}.tmp").mkdir(exist_ok=True)  # one that was being written
    if fault:
        with (run_dir / "faults.jsonl").open("a") as file:
            line = {
                "time": time.time(),
                "kind": "exception",
                "rank": 3,
                "host": "node7",
                "phase": "train",
                "batch": None,
                "message": "boom",
            }
            file.write(json.dumps(line | fault) + "\n")
    decision, record = requeue.decide(run_dir, code, **{"max_restarts": 3, "backoff_seconds": 10} | settings)
    requeue.append_decision(run_dir, record)
    time.sleep(0.01)  # times of faults and decisions must differ
    return decision


@pytest.mark.parametrize("code", [0, 2, 3, 87, 130])
def test_what_a_restart_would_not_mend_is_not_requeued(run_dir, code):
    assert end(run_dir, code, step=5).code == code


def test_a_stopped_run_is_requeued_at_once_as_long_as_it_makes_progress(run_dir):
    for step in range(1, 20):
        decision = end(run_dir, 85, step=step)
        assert (decision.code, decision.delay) == (85, 0)
        assert f"checkpoint of step {step}" in decision.reason


def test_a_signal_to_stop_that_comes_before_or_after_there_is_a_handler_is_no_crash(run_dir):
    for code, name in ((143, "SIGTERM"), (138, "SIGUSR1")):
        decision = end(run_dir, code, step=4)
        assert (decision.code, decision.delay) == (85, 0)
        assert decision.reason == f"ended by {name} with a checkpoint of step 4: resumes from there"
    assert end(run_dir, 143, step=4, fault={"kind": "silent", "step": 5}).delay == 40


def test_restarts_without_progress_are_counted_and_progress_counts_them_anew(run_dir):
    assert [end(run_dir, 85, step=4).code for _ in range(3)] == [85, 85, 85]
    assert end(run_dir, 85, step=6).code == 85
    assert [end(run_dir, 85, step=6).code for _ in range(2)] == [85, 85]
    last = end(run_dir, 85, step=6)
    assert last.code == 87
    assert "no checkpoint newer than step 6 in 3 restarts" in last.reason


def test_after_crashes_the_wait_doubles_until_there_is_progress(run_dir):
    kills = [
        {"kind": "killed", "step": step, "message": "its connection closed"} for step in (11, 12, 13, 24)
    ]
    assert [end(run_dir, 137, step=10, fault=kill, max_restarts=9).delay for kill in kills[:3]] == [
        10,
        20,
        40,
    ]
    decision = end(run_dir, 137, step=20, fault=kills[3], max_restarts=9)
    assert decision.delay == 10
    assert decision.reason.startswith(
        "rank 3 on node7 in phase train, step 24: its connection closed; resumes at step 20"
    )
    assert end(run_dir, 137, step=20, max_restarts=99, backoff_seconds=1700).delay == requeue.LONGEST_WAIT


def test_the_same_exception_at_the_same_step_is_the_end_and_its_batch_is_named(run_dir):
    fault = {"step": 17, "batch": "5eed0123", "message": "ValueError: token 9999 is not in the vocabulary"}
    assert end(run_dir, 86, step=10, fault=fault).code == 85
    assert end(run_dir, 85, step=12).code == 85  # preempted in between
    decision = end(run_dir, 86, step=12, fault={**fault, "rank": 1})
    assert decision.code == 87
    assert "the same fault at step 17, batch 5eed0123, 2 times: ValueError: token 9999" in decision.reason


def test_different_steps_and_different_faults_are_not_the_same(run_dir):
    assert end(run_dir, 86, step=10, fault={"step": 17}, max_restarts=9).code == 85
    assert end(run_dir, 86, step=10, fault={"step": 18}, max_restarts=9).code == 85
    assert end(run_dir, 86, step=10, fault={"step": 17, "kind": "hang"}, max_restarts=9).code == 85
    assert (
        end(
            run_dir,
            86,
            step=10,
            fault={"step": 0, "phase": "start", "message": "no route to host"},
            max_restarts=9,
        ).code
        == 85
    )
    assert (
        end(
            run_dir,
            86,
            step=10,
            fault={"step": 0, "phase": "start", "message": "disk is full"},
            max_restarts=9,
        ).code
        == 85
    )


def test_a_kill_may_hit_the_same_step_twice_by_chance_but_not_three_times(run_dir):
    fault = {"kind": "killed", "step": 17}
    assert [end(run_dir, 137, step=10, fault=fault, max_restarts=9).code for _ in range(3)] == [85, 85, 87]


def test_a_traceback_without_a_fault_record_is_not_tried_a_third_time(run_dir):
    assert end(run_dir, 1).code == 85
    decision = end(run_dir, 1)
    assert decision.code == 87
    assert "no fault recorded" in decision.reason


def test_cancelled_run_ends_whatever_its_exit_code(run_dir):
    job.cancel_mark(run_dir).touch()
    assert end(run_dir, 85, step=8).code == 130
    assert end(run_dir, 138, step=8).code == 130
    assert end(run_dir, 0, step=9).code == 0


def test_a_folder_that_is_still_locked_after_the_loss_of_a_node_is_waited_for(run_dir, monkeypatch):
    error = f"error: run_dir=a: {BUSY}; wait for it, or choose another\n"
    (run_dir / "slurm" / "job.log").write_text(error)
    assert end(run_dir, 2, step=4).code == 2  # a second job on the folder, from the start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    decision = end(run_dir, 2, step=8)
    assert (decision.code, decision.delay) == (85, 10)
    assert BUSY in decision.reason
    (run_dir / "slurm" / "job.log").write_text(error + "error: data.source=a.txt: no such file or folder\n")
    decision = end(run_dir, 2, step=12)
    assert (decision.code, decision.reason) == (2, "data.source=a.txt: no such file or folder")


def test_what_was_before_it_was_submitted_again_does_not_count(run_dir):
    fault = {"step": 17}
    assert end(run_dir, 86, fault=fault).code == 85
    assert end(run_dir, 86, fault=fault).code == 87
    (run_dir / "slurm" / "job.json").write_text(json.dumps({"job": "13", "submitted": time.time()}))
    time.sleep(0.01)
    assert end(run_dir, 86, fault=fault).code == 85


def test_the_command_prints_the_wait_alone_and_appends_the_decision(run_dir, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert requeue.main([str(run_dir), "code=137", "backoff_seconds=7"]) == 85
    out = capsys.readouterr()
    assert out.out == "7\n"
    assert out.err == "requeue: killed by SIGKILL; resumes at step 0 in 7 s at the earliest\n"
    (record,) = job.read_decisions(run_dir)
    assert {k: record[k] for k in ("job", "start", "exit", "step", "decision", "code", "delay")} == {
        "job": "12", "start": 3, "exit": 137, "step": 0, "decision": "requeue", "code": 85, "delay": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["code=1"], "RUN_DIR is missing"),
        (["none", "code=1"], "none: must be one run folder"),
        (["."], "code=CODE is missing"),
        ([".", "code=x"], "a whole number"),
        ([".", "cod=1"], "'code'"),
    ],
)
def test_user_errors(capsys, arguments, says):
    assert requeue.main(arguments) == 2
    assert says in capsys.readouterr().err
