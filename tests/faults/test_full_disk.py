"""A full disk: a small file system of the test's own, which only root can make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_run import ROOT, launch_process, losses, shas, steps_saved, write_experiment

FILL_AT_STEP_5 = """
from llm_jax.train.metrics import MetricsWriter
write = MetricsWriter.write
def and_fill(self, values):
    write(self, values)
    if values["step"] == 5:
        try:
            with open({filler!r}, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            pass
MetricsWriter.write = and_fill
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 30 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=30m", "none", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("only root can mount a file system, and not in every container")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_is_one_line_and_the_run_resumes_when_there_is_room_again(tmp_path, small_disk):
    experiment, run_dir, filler = (
        f"experiment={write_experiment(tmp_path)}",
        small_disk / "run",
        small_disk / "filler",
    )
    full = launch_process(experiment, f"run_dir={run_dir}", patch=FILL_AT_STEP_5.format(filler=str(filler)))
    assert full.returncode == 1
    errors = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, full.stderr
    assert f"run_dir={run_dir}: No space left on device" in errors[0]
    assert "Traceback" not in full.stderr
    saved = max(steps_saved(run_dir))
    assert saved in (2, 4)  # the save of step 4 may not have been complete
    assert f"resume from step {saved}" in errors[0]

    filler.unlink()
    again, whole = (
        launch_process(experiment, f"run_dir={run_dir}"),
        launch_process(experiment, f"run_dir={tmp_path / 'whole'}"),
    )
    assert (again.returncode, whole.returncode) == (0, 0), again.stderr
    assert f"resuming at step {saved}" in again.stdout
    assert losses(run_dir) == losses(tmp_path / "whole")
    assert shas(run_dir) == shas(tmp_path / "whole")


LATE = """
import asyncio
import tensorstore
from llm_jax.train.checkpoint import drop_late_writes

async def fails(promise, late):
    waiting = asyncio.ensure_future(wait(late))
    await asyncio.sleep(0)
    raise OSError("No space left on device")

async def wait(future):
    await future

class Other:
    def __del__(self):
        raise ValueError("is still printed")

drop_late_writes()
promise, late = tensorstore.Promise.new()
loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(fails(promise, late))
except OSError as error:
    print(error)
loop.close()
promise.set_exception(OSError("No space left on device"))
Other()
"""


def test_writes_that_fail_after_the_first_one_print_no_tracebacks():
    """A disk that fills up fails many writes at once; Orbax closes its event loop at the first one."""
    program = "import logging; logging.disable()\n" + LATE
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "No space left on device\n", result.stderr
    assert "Event loop is closed" not in result.stderr
    assert "is still printed" in result.stderr
