"""What all tests of scaling laws share."""

import pytest

from llm_jax.scaling.report import write
from tests.scaling.fit.conftest import epoch, published

__all__ = ["epoch", "published", "without_figures"]


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have no figures, which take seconds, in tests that look at something else."""
    monkeypatch.setattr(write, "draw", lambda study, folder: {})
