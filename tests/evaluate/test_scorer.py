"""What the scorer promises: the log-probabilities of the training forward pass, the same bits for every batch
size, order and company, and that what requests share is read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.evaluate import scorer as module
from llm_jax.evaluate.scorer import Scored, Scorer, ScoreRequest
from llm_jax.layout.presets import preset
from llm_jax.pretrained.model import PretrainedModel
from tests.generate.test_engine import LAYOUTS, MODELS, VOCAB, forward, opened
from tests.parity.test_processes import free_port
from tests.xla_flags import simulated


def requests_of(seed: int, longest: int = 48, shots: int = 12, items: int = 5) -> list[ScoreRequest]:
    """Items with a common beginning, each with four choices, of which one begins another; and texts from BOS
    alone."""
    random = np.random.default_rng(seed)

    def some(most: int) -> tuple[int, ...]:
        return tuple(random.integers(3, VOCAB, random.integers(1, most + 1)).tolist())

    beginning = (1, *some(shots))
    found = []
    for _ in range(items):
        context, first = (*beginning, *some(longest // 3)), some(longest // 4)
        for choice in (first, first[:1], some(longest // 4), (*first, *some(3))):
            found.append(ScoreRequest(context, choice))
    return [*found, ScoreRequest((1,), some(longest - 2)), ScoreRequest((1,), found[0].context[1:])]


def assert_equal(found: list[Scored], expected: list[Scored]) -> None:
    """To the bit."""
    for one, other in zip(found, expected, strict=True):
        for values, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(values, wanted)


def assert_close(found: list[Scored], expected: list[Scored], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(one.greedy, other.greedy)


def by_forward(model: PretrainedModel, requests: list[ScoreRequest], length: int = 48) -> list[np.ndarray]:
    """Log-probabilities [continuation, V] of the training forward pass."""
    rows = forward(model, [[*r.context, *r.continuation] for r in requests], length)
    return [
        row[len(r.context) - 1 : len(r.context) + len(r.continuation) - 1]
        for row, r in zip(rows, requests, strict=True)
    ]


QUICK = ("blocked, grouped-query heads", "GPT-2", "Gemma 3", "DeepSeek")
"""Together they have all that a position's result depends on; the others repeat parts of them."""


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_scores_are_those_of_the_training_forward_pass(name):
    """Tolerance 1e-4 nats: float32 sums in another order, with weights of order 0.2."""
    model, requests = opened(**MODELS[name]), requests_of(0)
    for request, scored, expected_TV in zip(
        requests, Scorer(model, top=3).score(requests), by_forward(model, requests), strict=True
    ):
        tokens = np.array(request.continuation)
        np.testing.assert_allclose(scored.logprobs, expected_TV[np.arange(len(tokens)), tokens], atol=1e-4)
        np.testing.assert_array_equal(scored.greedy, expected_TV.argmax(-1) == tokens)
        np.testing.assert_array_equal(scored.top_ids, np.argsort(-expected_TV)[:, :3])
        np.testing.assert_allclose(scored.top_logprobs, -np.sort(-expected_TV)[:, :3], atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "Gemma 3",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("blocked, grouped-query heads", "experts", "DeepSeek")
        ),
    ],
)
def test_scores_have_the_same_bits_for_every_batch_size_order_and_company(name):
    model, requests = opened(**MODELS[name]), requests_of(1)
    expected = Scorer(model).score(requests)
    random = np.random.default_rng(0)
    for rows in (1, 8, 64):
        order = random.permutation(len(requests))
        found = Scorer(model, batch_size=rows).score([requests[i] for i in order])
        assert_equal(found, [expected[i] for i in order])
    scorer = Scorer(model, batch_size=1)
    for i in (0, 5, -1):
        assert_equal(scorer.score([requests[i]]), [expected[i]])


def test_the_bucket_of_a_length_does_not_show(monkeypatch):
    """Nor how much of the cache is read: a text of 300 tokens in caches of 512 and 1,024 positions, and its
    first 120 tokens alone, in one of 256."""
    model = opened(**MODELS["a window"])
    ids = tuple(np.random.default_rng(2).integers(3, VOCAB, 300).tolist())
    long, short = ScoreRequest(ids[:1], ids[1:]), ScoreRequest(ids[:1], ids[1:120])
    scorer = Scorer(model)
    (expected,) = scorer.score([long])
    (found,) = scorer.score([short])
    np.testing.assert_array_equal(found.logprobs, expected.logprobs[:119])
    monkeypatch.setattr(module, "SHORTEST_CACHE", 1024)
    assert_equal(scorer.score([long]), [expected])


def test_what_requests_share_is_read_once():
    """Shots by all, a context by its choices, and a choice that another begins with."""
    random = np.random.default_rng(4)
    shots = (1, *random.integers(3, VOCAB, 150).tolist())
    contexts = [(*shots, 5 + i, *random.integers(3, VOCAB, 20).tolist()) for i in range(40)]
    requests = [ScoreRequest(context, (3 + c, 7, 8, 9)) for context in contexts for c in range(4)]
    scorer = Scorer(opened())
    found = scorer.score(requests)
    # a context's choices differ in their first token, so its last one is read with the first choice
    assert scorer.tokens_read <= len(shots) + 40 * (21 + 4 * 3)
    alone = Scorer(scorer.opened)
    for i in (0, 87, 159):
        assert_equal(alone.score([requests[i]]), [found[i]])
    assert alone.tokens_read == 3 * (len(shots) + 21 + 3)


def layout_model(name: str, on_one: bool = False) -> PretrainedModel:
    """A model of `LAYOUTS` on its mesh, or on one device."""
    mesh, changes = LAYOUTS[name]
    changes = {"heads": 8, **({} if "latent" in changes else {"kv_heads": 2}), **changes}
    return opened(**changes) if on_one else opened(preset(name), mesh, **changes)


@pytest.mark.parametrize(
    "name", [n if n == "fsdp_tensor" else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS]
)
def test_layouts_score_what_one_device_does(name):
    """On eight simulated devices. Tolerance 1e-5 nats, relative to log-probabilities of order 5: float32 sums
    over devices, in another order."""
    one, many = (Scorer(layout_model(name, on_one)).score(requests_of(5)) for on_one in (True, False))
    assert_close(many, one, 1e-5)


@pytest.mark.slow
def test_two_processes_score_what_one_device_does():
    """Four simulated devices each; both get all scores."""
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "XLA_FLAGS": simulated(4), "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "tests.evaluate.scorer_worker", address, "2"]
    processes = [
        subprocess.Popen(
            [*words, str(rank)],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    expected = Scorer(layout_model("fsdp_tensor", on_one=True)).score(requests_of(5))
    for output in outputs:
        for logprobs, scored in zip(json.loads(output.splitlines()[-1]), expected, strict=True):
            np.testing.assert_allclose(logprobs, scored.logprobs, rtol=1e-5, atol=1e-5)


def test_requests_that_cannot_be_scored_are_refused_in_one_line():
    scorer = Scorer(opened(**MODELS["GPT-2"]))
    for request, line in (
        (ScoreRequest((), (5,)), r"context=\(\): must be at least one token"),
        (ScoreRequest((1,), ()), r"continuation=\(\): must be at least one token"),
        (ScoreRequest((1,), (VOCAB,)), "tokens: the tokenizer makes the token id 96"),
        (ScoreRequest((1,) * 40, (5,) * 10), "tokens=50: the model reads 48"),
    ):
        with pytest.raises(UserError, match=line):
            scorer.score([ScoreRequest((1,), (5,)), request])
    with pytest.raises(UserError, match="batch_size=0: must be at least 1"):
        Scorer(scorer.opened, batch_size=0)
