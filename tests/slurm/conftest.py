"""Fixtures of the tests of Slurm jobs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def site(tmp_path):
    """A site file whose Python is fake_python.py."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent / "fake_python.py"} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "plans").mkdir()
    lines = [
        f"python: {python}",
        f"environment: {{GREETING: hello world, PLANS: {tmp_path / 'plans'}}}",
        "setup: ['echo \"$GREETING from the site\"']",
        "slurm: {backoff_seconds: 0}",
    ]
    (tmp_path / "site.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path / "site.yaml"
