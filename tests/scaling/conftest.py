"""Fixtures of all tests of scaling laws."""

import pytest

from llm_jax.scaling.report import write
from tests.scaling.fit.conftest import epoch, published

__all__ = ["epoch", "published", "without_figures"]


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have no figures, which take seconds, in tests of something else."""
    monkeypatch.setattr(write, "draw", lambda study, folder: {})
