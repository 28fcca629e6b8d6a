"""One server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llm_jax.generate.request import Request, Result
    from llm_jax.pretrained.model import PretrainedModel
    from llm_jax.serve.models import ServedModel
    from tests.serve.serving import RunningServer

REASON = "the extra `serve` isn't installed: pip install 'llm_jax[serve]'"


@pytest.fixture(scope="session")
def extra() -> None:
    """Skips where the packages of the extra `serve` are missing."""
    for name in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(name, reason=REASON)


@pytest.fixture(scope="session")
def opened(extra: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PretrainedModel]:
    """The models "chat" and "text", with their parameters."""
    from tests.serve.serving import two_models

    return two_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def models(opened: dict[str, PretrainedModel]) -> dict[str, ServedModel]:
    """The same with their engines."""
    from tests.serve.serving import models_of

    return models_of(opened)


@pytest.fixture(scope="session")
def cases(models: dict[str, ServedModel]) -> list[tuple[str, Request, Result]]:
    """(model, request, what the engine makes of it by itself): before the server has the engines."""
    from tests.serve.cases import made_cases

    return made_cases(models)


@pytest.fixture(scope="session")
def server(
    models: dict[str, ServedModel], cases: list[tuple[str, Request, Result]]
) -> Iterator[RunningServer]:
    """A server that is ready."""
    from tests.serve.serving import running

    yield from running(lambda log: models)
