"""A model that was never trained knows nothing: it scores what a guess does."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import jax
import pytest

from llm_jax.evaluate.encode import convention_of, encode
from llm_jax.evaluate.scorer import Scorer, ScoreRequest
from llm_jax.evaluate.statistics import Estimate, group, proportion
from llm_jax.evaluate.suites import SUITES, Suite
from llm_jax.pretrained.model import PretrainedModel, open_model
from llm_jax.pretrained.source import open_source
from tests.tiny_run import launch, write_experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a tokenizer and the shape of a model; its weights are replaced."""
    folder = tmp_path_factory.mktemp("untrained")
    run = (f"experiment={write_experiment(folder)}", f"run_dir={folder / 'run'}")
    assert launch(*run, "train.steps=1", "evaluate.every=0") == 0
    return folder / "run"


def untrained(run: Path, seed: int) -> PretrainedModel:
    """The run's model with the weights that a seed initializes."""
    opened = open_model(open_source(run))
    with jax.set_mesh(opened.place.mesh):
        return dataclasses.replace(opened, parameters=opened.program.new_parameters(seed))


def scores(model: PretrainedModel, run: Path, suites: list[Suite], limit: int) -> dict[str, Estimate]:
    """The share of right answers in each suite, by the largest log-probability."""
    convention = convention_of(open_source(run), model.tokenizer)
    items = {suite.name: suite.items()[:limit] for suite in suites}
    requests = [
        encode(model.tokenizer, convention, *pair)
        for item in itertools.chain(*items.values())
        for pair in item.continuations()
    ]
    scored = Scorer(model, batch_size=64).score([ScoreRequest(r.context, r.continuation) for r in requests])
    totals = iter([float(s.logprobs.sum()) for s in scored])
    found = {}
    for name, asked in items.items():
        right = []
        for item in asked:
            values = [next(totals) for _ in item.choices]
            right.append(values.index(max(values)) == item.gold)
        found[name] = proportion(right, [item.source for item in asked])
    return found


def assert_chance(found: dict[str, Estimate], outside: int) -> None:
    """All but a few intervals hold the score of a guess, and so does the interval of the mean."""
    wrong = {
        name: estimate
        for name, estimate in found.items()
        if not estimate.ci95[0] <= SUITES[name].chance <= estimate.ci95[1]
    }
    assert len(wrong) <= outside, wrong
    together = group(list(found.values()), [SUITES[name].chance for name in found])
    assert together.ci95[0] <= 0 <= together.ci95[1], together


def test_an_untrained_model_is_at_chance_within_its_interval(run):
    """Of 45 intervals of 95%, 2 exclude the truth on average, and more than 5 in one of 60 cases."""
    grammar = [suite for suite in SUITES.values() if suite.kind == "pair"]
    assert_chance(scores(untrained(run, 0), run, grammar, 40), outside=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_untrained_models_are_at_chance_on_all_items(run, seed):
    suites = [suite for suite in SUITES.values() if suite.group != "recall"]
    assert_chance(scores(untrained(run, seed), run, suites, 500), outside=7)
