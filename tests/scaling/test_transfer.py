"""The best learning rate of a small model is that of a wide one in muP, and not in the standard
parametrisation."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from llm_jax.data import Corpus, DataConfig, TokenizerConfig, prepare
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.model.config import ModelConfig
from llm_jax.model.parametrization import of_width
from llm_jax.objective.next_token import NextToken
from llm_jax.scaling import transfer
from llm_jax.scaling.transfer import Curve, curves, rate_shift
from llm_jax.train.optimizer import OptimizerConfig, make_schedule
from llm_jax.train.state import TrainModel
from llm_jax.train.step import make_step
from tests.data.conftest import documents, write_jsonl

ROOT = Path(__file__).parents[2]
STEPS = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    config = DataConfig(
        source=str(write_jsonl(folder / "small.jsonl", documents(400))), cache_dir=str(folder), workers=1
    )
    ignore = lambda line: None  # noqa: E731
    return prepare(
        config, TokenizerConfig(vocab=320), sequence_length=32, batch_size=8, seed=0, run_dir=None, log=ignore
    )


def best_rate(model: ModelConfig, corpus, rates: list[float]) -> float:
    """Of these learning rates the one with the lowest loss at the end; the program is the same for all."""
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    program = TrainModel(model, optimizer, MeshPlacement(PRESETS["single"], make_mesh(PRESETS["single"], {})))
    objective, schedule = NextToken(), make_schedule(optimizer, STEPS)
    step = jax.jit(
        lambda state, batch, rate: make_step(program, objective, lambda s: rate * schedule(s), 1.0)(
            state, batch
        )
    )
    losses = []
    with jax.set_mesh(program.place.mesh):
        for rate in rates:
            state, run = program.new_state(0), []
            for s in range(STEPS):
                state, metrics = step(
                    state, {name: value[None] for name, value in corpus.batch(s).items()}, rate
                )
                run.append(metrics["train_loss"])
            losses.append(float(np.mean(jax.device_get(run[-10:]))))
    curve = Curve(model.embed, tuple(rates), tuple(losses))
    assert not curve.at_edge, losses
    return curve.optimum


@pytest.mark.slow  # a sweep of runs; that activations keep their size is in test_coordinate_check.py
def test_the_best_rate_of_a_small_model_is_that_of_one_eight_times_as_wide_in_mup_only(corpus):
    rates = [2.0**-power for power in range(11, 3, -1)]
    model = ModelConfig(
        layers=1,
        embed=32,
        heads=2,
        head_dim=16,
        mlp=64,
        activation="gelu",
        vocab=320,
        init_std=0.1,
        scan_layers=False,
        base_embed=32,
    )
    best = {}
    narrow = best_rate(model.resolved(), corpus, rates)
    for name in ("mup", "standard"):
        wide = dataclasses.replace(of_width(model.resolved(), 256), parametrization=name)
        best[name] = best_rate(wide, corpus, rates)
    assert 1 / 2 <= best["mup"] / narrow <= 2
    assert best["standard"] < narrow / 2.5


def test_the_best_rate_stays_within_a_factor_of_two_from_width_64_to_512_on_real_text_in_mup_only():
    """The table of runs that docs/mup.md shows (experiments/scaling/mup_transfer.py)."""
    found = curves(pd.read_csv(ROOT / "docs" / "figures" / "mup" / "transfer.csv"))
    assert (
        [curve.size for curve in found["mup"]]
        == [curve.size for curve in found["standard"]]
        == [64, 128, 256, 512]
    )
    assert not any(curve.at_edge for of_sizes in found.values() for curve in of_sizes)
    best = {name: [curve.rates[curve.best] for curve in of_sizes] for name, of_sizes in found.items()}
    assert max(best["mup"]) / min(best["mup"]) <= 2
    assert rate_shift(found["mup"]) <= 2
    assert best["standard"][0] / best["standard"][-1] >= 4
    assert best["standard"] == sorted(best["standard"], reverse=True)


def table(rows: list[tuple[str, int, float, float]]) -> pd.DataFrame:
    columns = ["parametrization", "embed", "learning_rate", "eval_loss"]
    return pd.DataFrame(rows, columns=columns).assign(status="finished")


def test_the_optimum_is_the_lowest_point_of_the_parabola_over_the_logarithm():
    rates = [2.0**-power for power in (9, 8, 7, 6)]
    rows = [
        ("mup", size, rate, 3 + (math.log2(rate) - at) ** 2)
        for size, at in ((64, -7.3), (128, -7.8))
        for rate in rates
    ]
    found = curves(table(rows))["mup"]
    assert [math.log2(curve.optimum) for curve in found] == pytest.approx([-7.3, -7.8])
    assert rate_shift(found) == pytest.approx(2**0.5)


def test_runs_that_diverged_are_the_worst_and_unfinished_ones_are_none():
    made = table(
        [
            ("mup", size, rate, loss)
            for size in (64, 128)
            for rate, loss in ((0.01, 3.0), (0.02, 2.9), (0.04, 2.0), (0.08, 9.0))
        ]
    )
    made.loc[made["learning_rate"] == 0.04, ["status", "eval_loss"]] = ["diverged", None]
    made.loc[made["learning_rate"] == 0.08, "status"] = "unfinished"
    curve = curves(made)["mup"][0]
    assert curve.rates == (0.01, 0.02, 0.04)
    assert curve.losses == (3.0, 2.9, math.inf)
    assert curve.optimum == 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("out=x.png", "data=PATH is missing"),
        ("data=missing.csv", "data=missing.csv: there is no such file"),
        (
            "data=runs.csv against=embd",
            "against=embd: the table of runs has no column 'embd'; did you mean 'embed'?",
        ),
        ("data=runs.csv agains=embed", "there is no key 'agains'; did you mean 'against'?"),
        ("data=runs.csv out=no/such/x.png", "there is no folder no/such"),
        ("data=runs.csv out=x.foo", "out=x.foo: must be a file that ends in .png or .pdf or .svg"),
        ("data=runs.csv out=", "out=: must be a file"),
        ("data=one.csv", "no parametrization with two learning rates at each of two sizes"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table([("mup", size, rate, 3.0) for size in (64, 128) for rate in (0.1, 0.2)]).to_csv("runs.csv")
    table([("mup", 64, rate, 3.0) for rate in (0.1, 0.2)]).to_csv("one.csv")
    monkeypatch.setattr("sys.argv", ["transfer", *arguments.split()])
    assert transfer.main() == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_draws_and_says_what_is_in_the_table(tmp_path, capsys, monkeypatch):
    rows = [("mup", size, 2.0**-power, 3 + abs(power - 7)) for size in (64, 128) for power in (8, 7, 6)]
    rows += [
        ("standard", size, 2.0**-power, 3 + abs(power - (7 if size == 64 else 8)))
        for size in (64, 128)
        for power in (9, 8, 7, 6)
    ]
    table(rows).to_csv(tmp_path / "runs.csv")
    monkeypatch.setattr(
        "sys.argv", ["transfer", f"data={tmp_path / 'runs.csv'}", f"out={tmp_path / 'figure.png'}"]
    )
    assert transfer.main() == 0
    printed = capsys.readouterr().out
    assert "standard   the best rate moves by a factor of 2.00" in printed
    assert "mup        the best rate moves by a factor of 1.00" in printed
    assert (tmp_path / "figure.png").stat().st_size > 10_000
