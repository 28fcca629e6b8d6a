"""Runs that are trained together in one program are the runs that they would have been alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from llm_jax.experiment import Experiment, load_experiment, override, resolved
from llm_jax.scaling.together import groups, run_together
from llm_jax.train import run
from llm_jax.train.console import Console
from llm_jax.train.metrics import read_metrics
from llm_jax.train.run_folder import flat
from llm_jax.train.stop import StopSignal
from tests.tiny_run import checkpoint, losses, shas, summary, write_experiment

SETTINGS = (("train.steps", 30), ("checkpoint.every", 100), ("evaluate.every", 15))
DIFFERENT = {
    "base": {},
    "seed": {"train.seed": 7},
    "rate": {"optimizer.learning_rate": 1e-3, "optimizer.schedule": "wsd", "optimizer.warmup_steps": 5},
    "decay": {"optimizer.weight_decay": 0.0},
    "scale": {"model.init_std": 0.04},
}
"""A run for each kind of key in which runs may differ."""


def make(path, folder, name, *more) -> Experiment:
    return resolved(override(load_experiment(str(path)), [("run_dir", str(folder / name)), *more]))


def train(experiments) -> list[int]:
    with StopSignal() as stop:
        return run_together(experiments, Console(), stop, 0.0)


def alone(experiment) -> int:
    with StopSignal() as stop:
        return run.prepare_and_train(experiment, Console(), stop, 0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_run_has_the_losses_and_batches_that_it_has_alone(tiny, tmp_path, optimizer):
    more = [("optimizer.name", optimizer), *SETTINGS]
    experiments = {name: make(tiny, tmp_path / "together", name, *more, *different.items()) for name, different in DIFFERENT.items()}
    assert train(list(experiments.values())) == [0] * len(DIFFERENT)
    ended = {}
    for name, different in DIFFERENT.items():
        other = make(tiny, tmp_path / "alone", name, *more, *different.items())
        assert alone(other) == 0
        ours, theirs = tmp_path / "together" / name, tmp_path / "alone" / name
        assert list(losses(ours)) == list(range(1, 31))
        # the same sums in another order: 1e-7 a step, which 30 steps of training carry on
        np.testing.assert_allclose(list(losses(ours).values()), list(losses(theirs).values()), rtol=1e-5)
        assert shas(ours) == shas(theirs)
        for key in ("eval_loss", "eval_bits_per_byte", "train_loss"):
            np.testing.assert_allclose(summary(ours)[key], summary(theirs)[key], rtol=1e-5)
        ended[name] = summary(ours)["eval_loss"]
    assert len(set(ended.values())) == len(DIFFERENT)  # each key did make a difference
