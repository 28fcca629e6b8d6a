"""In muP activations change by as much at every width, in CompleteP at every depth, and in the standard
parametrisation by far more."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from llm_jax.model import parametrization
from llm_jax.model.config import ModelConfig
from llm_jax.model.transformer import Transformer
from llm_jax.scaling import coordinate_check
from llm_jax.scaling.coordinate_check import (
    PLACES,
    CoordinateCheck,
    activations,
    models_by_depth,
    models_by_width,
)
from llm_jax.train.optimizer import OptimizerConfig
from tests.training import packed_batch

MODEL = ModelConfig(
    layers=1,
    embed=32,
    heads=2,
    head_dim=16,
    mlp=64,
    vocab=128,
    init_std=0.1,
    activation="gelu",
    scan_layers=False,
).resolved()
OPTIMIZER = OptimizerConfig(learning_rate=4e-3)
STEPS = 4
FLAT = 0.35
"""The slope of what is flat. The change of a sum of few units has an error of its own, which falls with the
square root of the width: in the smallest model it adds to the change, more than in the largest, so slopes
begin below 0 (-0.23 was seen) and go to 0 as widths grow. A wrong rate of one kind of weight has a slope of
about 1, a wrong scale of about 0.5."""


@functools.cache
def widths(sizes: tuple[int, ...] = (32, 64, 256)) -> CoordinateCheck:
    return coordinate_check.check(
        "width",
        models_by_width(MODEL, list(sizes)),
        OPTIMIZER,
        [packed_batch(s) for s in range(STEPS)],
        packed_batch(STEPS),
    )


def last(found: CoordinateCheck, name: str) -> dict[str, float]:
    """Slopes after the last step."""
    return {place: slopes[-1] for place, slopes in found.slopes(name).items()}


def test_in_mup_activations_change_by_as_much_at_every_width():
    slopes = last(widths(), "mup")
    assert all(abs(slope) < FLAT for slope in slopes.values()), slopes


def test_in_the_standard_parametrization_wider_models_change_more():
    slopes = last(widths(), "standard")
    assert all(slopes[place] > 2 * FLAT for place in ("attention", "mlp", "residual")), slopes
    assert slopes["logits"] > FLAT


@pytest.mark.parametrize("broken", ["hidden", "READOUT"])
def test_a_wrong_power_in_the_table_is_seen(broken, monkeypatch):
    if broken == "hidden":
        monkeypatch.setitem(
            parametrization.WEIGHTS,
            "hidden",
            dataclasses.replace(parametrization.WEIGHTS["hidden"], rate=0.0),
        )
    else:
        monkeypatch.setattr(parametrization, "READOUT", 0.0)
    models = {"standard": {}, "mup": models_by_width(MODEL, [32, 256])["mup"]}
    models["standard"] = models["mup"]
    wide = coordinate_check.measure(models["mup"][256], dataclasses.replace(OPTIMIZER, schedule="constant",
    warmup_steps=0),
                                    [packed_batch(s) for s in range(STEPS)], packed_batch(STEPS))  # fmt: skip
    changes = {"mup": {32: widths().changes["mup"][32], 256: wide}}
    assert max(last(CoordinateCheck("width", 32, changes), "mup").values()) > FLAT


@pytest.mark.slow  # as in muP below, for depth
def test_in_completep_activations_change_by_as_much_at_every_depth():
    models = models_by_depth(dataclasses.replace(MODEL, scan_layers=True), [1, 4, 16])
    found = coordinate_check.check(
        "depth", models, OPTIMIZER, [packed_batch(s) for s in range(STEPS)], packed_batch(STEPS)
    )
    slopes = last(found, "completep")
    assert all(abs(slope) < FLAT for slope in slopes.values()), slopes
    assert last(found, "standard")["residual"] > FLAT + 0.15


def test_the_activations_are_those_of_the_model_itself():
    """Of every kind of block order, norm and multiplier: the logits are those of the model's own forward
    pass."""
    for changed in ({}, {"norm_placement": "after", "position": "learned", "tied_embeddings": False}):
        config = dataclasses.replace(
            MODEL,
            layers=2,
            parametrization="completep",
            base_embed=16,
            base_layers=1,
            scan_layers=True,
            **changed,
        )
        model = Transformer(config, rngs=nnx.Rngs(0))
        batch = packed_batch(0)
        logits = jax.jit(lambda tokens, m=model, b=batch: m(tokens, b["positions"], b["segments"]))(
            batch["tokens"]
        )
        found = activations(model, batch)
        np.testing.assert_allclose(found["logits"], logits, atol=1e-6)  # float32, logits of about 1
        assert set(found) == set(PLACES)


def test_the_figure_and_the_file_have_every_place(tmp_path):
    rng = np.random.default_rng(0)
    changes = {
        name: {size: {p: list(rng.uniform(1, 2, 2)) for p in PLACES} for size in (8, 16)}
        for name in ("standard", "mup")
    }
    found = CoordinateCheck("width", 8, changes)
    coordinate_check.draw(found, tmp_path / "figure.png", "a title")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    written = json.loads(json.dumps(found.as_json()))
    assert written["sizes"] == [8, 16]
    assert set(written["slopes"]["mup"]) == set(PLACES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("experiment=quickstart", "widths=N,N,... or depths=N,N,... is missing"),
        ("experiment=quickstart widths=64", "widths=64: must be two or more different sizes"),
        ("experiment=quickstart widths=64,128 steps=0", "steps=0: must be a whole number, at least 1"),
        ("experiment=quickstart widths=64,128", "optimizer.name=muon: has one learning rate for all weights"),
        (
            "experiment=quickstart optimizer.name=adamw widths=64,100",
            "for a width of 100 it would be 6.25, not whole",
        ),
        (
            "experiment=quickstart model.parametrization=mup model.base_embed=64 optimizer.name=lion "
            "depths=2,4",
            "scales widths only",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["coordinate_check", *arguments.split()])
    assert coordinate_check.main() == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
