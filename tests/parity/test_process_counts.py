"""A run that is stopped and resumed with other processes and devices equals an uninterrupted run.

Losses agree with those of one process to 1e-5: collectives between processes over CPUs are gloo's, which add
in another order than XLA's within one process (seen: 1e-7 a step). With the same processes and devices they
are the same bits.
"""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.core.files import read_json_lines
from tests.tiny_run import launch, launch_processes, losses, shas, steps_saved, summary

STOP = """
from llm_jax.train import loop
read = loop.Loop.read
def and_signal(self, done, *rest):
    read(self, done, *rest)
    if done == {step}:
        os.kill(os.getpid(), signal.{signal})
loop.Loop.read = and_signal
"""
UNREADABLE = """
from llm_jax.core import checksums
check = checksums.check
def check_most(folder, *rest):
    if folder.name == "{step}":
        raise checksums.Damaged("state is not what was written")
    check(folder, *rest)
checksums.check = check_most
"""


@pytest.fixture
def whole(tiny, tmp_path):
    """The run of one process with 4 devices, never stopped."""
    folder = tmp_path / "whole"
    assert (
        launch(
            f"experiment={tiny}",
            f"run_dir={folder}",
            "layout=fsdp",
            "mesh.data=4",
            "sample.tokens=3",
            "train.steps=9",
        )
        == 0
    )
    return folder


@pytest.mark.slow  # test_processes.py has two processes, tests/faults/test_checkpoints.py another mesh
def test_two_processes_with_2_devices_each_and_then_one_with_2_are_the_run_of_one_with_4(
    tiny, whole, tmp_path
):
    run_dir = tmp_path / "run"
    arguments = (
        f"experiment={tiny}",
        f"run_dir={run_dir}",
        "layout=fsdp",
        "sample.tokens=3",
        "train.steps=9",
    )

    first = launch_processes(2, *arguments, patches={1: STOP.format(step=3, signal="SIGTERM")})
    assert [done.returncode for done in first] == [85, 85], [done.stderr for done in first]
    assert "stopped by SIGTERM" in first[0].stdout
    assert [done.stderr for done in first] == ["", ""]
    # only rank 0 prints
    assert not [line for line in first[1].stdout.splitlines() if line and "[Gloo]" not in line]
    stopped = max(steps_saved(run_dir))
    assert stopped in (3, 4, 5)
    assert list(losses(run_dir)) == list(range(1, stopped + 1))

    # The second process can't read what was saved last: both go on from the checkpoint before.
    patches = {0: STOP.format(step=5, signal="SIGUSR1"), 1: UNREADABLE.format(step=stopped)}
    second = launch_processes(2, *arguments, patches=patches)
    assert [done.returncode for done in second] == [85, 85], [done.stderr for done in second]
    assert f"checkpoint {stopped} can't be read and was moved to" in second[0].stdout
    assert "(state is not what was written (rank 1 on" in second[0].stdout
    assert "resuming at step 2" in second[0].stdout
    again = {line["step"] for line in read_json_lines(run_dir / "metrics.jsonl") if "train_loss" in line}
    assert losses(run_dir).keys() == again  # and what was done again had the same losses, bit for bit

    assert launch(*arguments, "mesh.data=2") == 0
    assert list(losses(run_dir)) == list(range(1, 10))
    assert shas(run_dir) == shas(whole)
    np.testing.assert_allclose(list(losses(run_dir).values()), list(losses(whole).values()), rtol=1e-5)
    assert (run_dir / "samples.txt").read_text() == (whole / "samples.txt").read_text()
    assert summary(run_dir)["starts"] == 3
    assert summary(run_dir)["seconds"]["lost"] > 0
