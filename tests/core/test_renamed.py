"""Modules of old names: a command of such a name exits with 2, an import raises, and both give
the new name.
"""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT

RENAMED = {f"llm_jax.cluster.{name}": f"llm_jax.slurm.{name}" for name in ("cancel", "requeue", "status")}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_command_exits_with_2_and_names_the_new_one(old):
    done = subprocess.run([sys.executable, "-m", old, "runs/a"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {old} was renamed: use {RENAMED[old]}\n"
    assert (
        subprocess.run(
            [sys.executable, "-m", RENAMED[old], "--help"], cwd=ROOT, capture_output=True
        ).returncode
        == 0
    )


@pytest.mark.parametrize("old", RENAMED)
def test_an_import_by_an_old_name_raises_the_new_one(old):
    with pytest.raises(ImportError, match=f"{old} was renamed: use {RENAMED[old]}"):
        importlib.import_module(old)
    importlib.import_module(RENAMED[old])
