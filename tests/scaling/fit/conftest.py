"""Published points, where they are at hand, and points made from a known law."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_jax.scaling.fit import Law
from tests.conftest import ROOT

TRUTH = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
"""Hoffmann et al. 2022, eq. 10."""


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of published points that are not part of the project."""
    folder = Path(os.environ.get("LLM_JAX_SHARED_DATA", ROOT.parent / "shared" / "data")) / "scaling"
    if not folder.is_dir():
        pytest.skip(
            f"no published points: {folder} is not there (LLM_JAX_SHARED_DATA names the folder above it)"
        )
    return folder


@pytest.fixture(scope="session")
def epoch(published: Path) -> pd.DataFrame:
    """Epoch AI's 245 points of Hoffmann et al.'s figure 4: parameters, tokens, flops, loss."""
    table = pd.read_csv(published / "chinchilla_epoch" / "svg_extracted_data.csv")
    made = table.rename(columns={"Model Size": "parameters", "Training FLOP": "flops"})[
        ["parameters", "flops", "loss"]
    ]
    return made.assign(tokens=made.flops / 6 / made.parameters)


def made_runs(noise: float = 0.0, seed: int = 0, budgets: int = 6, sizes: int = 9) -> pd.DataFrame:
    """An IsoFLOP design about the optimum of `TRUTH`, with noise in log loss."""
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    best, _ = TRUTH.optimal(flops)
    parameters = best * np.tile(np.geomspace(1 / 8, 8, sizes), budgets)
    tokens = flops / 6 / parameters
    loss = TRUTH.loss(parameters, tokens) * np.exp(
        noise * np.random.default_rng(seed).standard_normal(len(flops))
    )
    return pd.DataFrame({"parameters": parameters, "tokens": tokens, "flops": flops, "loss": loss})
