"""The order of the tests where a worker dies (tests/lanes.py)."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFTEST = """
from tests.lanes import Lanes

def pytest_xdist_make_scheduler(config, log):
    return Lanes(config, log)
"""
DIES = """
import os, pytest

@pytest.mark.parametrize("i", range({tests}))
def test_it(i):
    if i == {dies_at}:
        os.abort()
"""


def test_what_a_dead_worker_had_left_is_run_and_its_last_test_is_not_tried_again(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name, tests, dies_at in (("a", 1, -1), ("b", 4, 1), ("c", 1, 0), ("d", 4, 3), ("e", 1, -1)):
        (tmp_path / f"test_{name}.py").write_text(DIES.format(tests=tests, dies_at=dies_at))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert "3 failed, 8 passed" in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert done.stdout.count("FAILED ") == 3
