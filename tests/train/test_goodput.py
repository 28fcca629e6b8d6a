"""Where the time of a run goes is told, over all its starts, and adds up to the time that it took."""

from __future__ import annotations

import json
import time

import pytest

from llm_jax.train import goodput
from llm_jax.train.goodput import Goodput
from tests.tiny_run import launch, launch_process, losses, summary, write_experiment


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 - self.now  # a wall clock that is set back all the time changes nothing


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(goodput, "time", made)
    return made


def spend(account: Goodput, clock: Clock, **parts: float) -> None:
    for part, seconds in parts.items():
        account.spend(part)
        clock.now += seconds


def test_every_second_is_in_one_part_and_steps_done_again_are_lost(tmp_path, clock):
    first = Goodput(begun=90.0)
    first.resume(tmp_path, {})
    spend(first, clock, compile=5, data=1, step=20, checkpoint=2)
    at_checkpoint = first.seconds()
    spend(first, clock, step=7, evaluation=3)
    first.write()  # and then it is killed

    second = Goodput(begun=clock.now)
    clock.now += 4
    second.resume(tmp_path, at_checkpoint)
    spend(second, clock, step=10)
    told = second.summary()
    expected = {
        "start": 14,
        "compile": 5,
        "data": 1,
        "step": 30,
        "evaluation": 0,
        "checkpoint": 2,
        "sample": 0,
        "lost": 10,
    }
    assert told["seconds"] == pytest.approx(expected)
    assert told["wall_seconds"] == pytest.approx(clock.now - 90)
    assert (told["goodput"], told["starts"]) == (pytest.approx(30 / 62), 2)


def test_a_run_that_branched_off_brings_its_trunks_account(tmp_path, clock):
    account = Goodput(begun=clock.now)
    account.resume(tmp_path, {"start": 2.0, "step": 30.0})
    spend(account, clock, step=3)
    assert account.seconds()["step"] == pytest.approx(33)


def test_an_account_that_was_cut_off_does_not_stop_a_run(tmp_path, clock):
    (tmp_path / "time.json").write_text('{"starts": 3, "seco')
    account = Goodput(begun=clock.now)
    account.resume(tmp_path, {"step": 9.0})
    assert account.seconds()["step"] == 9
    assert "time.json: is damaged" in account.notice
    assert json.loads((tmp_path / "time.json").read_text())["starts"] == 1


KILL = """
import pathlib, time
from llm_jax.train.run_state import RunState
add = RunState.add
def and_die(self, done, *rest, **more):
    add(self, done, *rest, **more)
    if done == 5:
        self.goodput.write()
        pathlib.Path({path!r}).write_text(str(time.monotonic() - begun))
        os.kill(os.getpid(), signal.SIGKILL)
RunState.add = and_die
begun = time.monotonic()
"""


def test_the_parts_of_a_run_that_was_killed_add_up_to_the_time_that_it_took(tmp_path):
    run_dir, killed_after = tmp_path / "run", tmp_path / "seconds"
    arguments = (
        f"experiment={write_experiment(tmp_path)}",
        f"run_dir={run_dir}",
        "sample.tokens=2",
        "evaluate.every=2",
    )
    patch = KILL.format(path=str(killed_after))
    assert (
        launch_process(*arguments, patch=patch, devices=8).returncode == -9
    )  # as here: else sums are taken in another order
    begun = time.time()
    assert launch(*arguments) == 0
    took = float(killed_after.read_text()) + (run_dir / "summary.json").stat().st_mtime - begun
    told = summary(run_dir)
    assert list(losses(run_dir)) == list(range(1, 9))
    assert sum(told["seconds"].values()) == pytest.approx(told["wall_seconds"])
    # Not counted is how long the launcher itself takes to be imported: tenths of a second.
    assert told["wall_seconds"] == pytest.approx(took, rel=0.02, abs=0.3)
    assert told["starts"] == 2
    assert all(told["seconds"][part] > 0 for part in goodput.PARTS)
