"""A small experiment, and a fixture that plans it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_jax.plan.__main__ import main

EXPERIMENT = '''"""A model small enough to plan in a second."""

from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.train.config import TrainConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(layers=2, embed=64, heads=8, kv_heads=4, mlp=128, vocab=512, tied_embeddings=False),
        layout=preset("fsdp"),
        objective=NextToken(chunk=64),
        train=TrainConfig(batch_size=16, sequence_length=64),
    )
'''


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The file of the small experiment."""
    path = tmp_path / "small.py"
    path.write_text(EXPERIMENT)
    return path


_plans: dict[tuple, dict[str, Any]] = {}
"""Plans by arguments: compiling takes seconds, so each is made once per process."""


@pytest.fixture
def planned(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., dict[str, Any]]:
    """A function that plans the small experiment for 8 H100 and returns the JSON, with "printed", "trace" and
    "text" added."""

    def run(*arguments: str, compiler: str = "cpu") -> dict[str, Any]:
        if (arguments, compiler) not in _plans:
            files = {name: tmp_path / name for name in ("json", "trace", "text")}
            line = [
                f"experiment={small}",
                "devices=8",
                "hardware=h100",
                *(f"{name}={path}" for name, path in files.items()),
                *arguments,
            ]
            assert main([*line, *([f"compiler={compiler}"] if compiler != "gpu" else [])]) == 0
            more = {
                "printed": capsys.readouterr().out,
                "trace": json.loads(files["trace"].read_text()),
                "text": files["text"].read_text(),
            }
            _plans[arguments, compiler] = json.loads(files["json"].read_text()) | more
        return _plans[arguments, compiler]

    return run
