"""The numbers of a page, compared with computations by hand in numpy."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.evaluate.scorer import Scorer, ScoreRequest
from llm_jax.inspect import figures, logit_lens
from llm_jax.inspect.analysis import analyse_model
from llm_jax.inspect.arguments import InspectArguments
from llm_jax.inspect.attention import (
    attention_weights,
    head_scores,
    induction_score,
    quantise,
    uniform_scores,
)
from llm_jax.inspect.checkpoint_diff import check_alike, stack_layers, weight_differences
from llm_jax.inspect.compare import last_stream
from llm_jax.inspect.contexts import WordInContexts, mean_pair_cosine, principal_axes
from llm_jax.inspect.logit_lens import Readout, divergence
from llm_jax.model.config import ModelConfig, MoEConfig
from tests.inspect.conftest import SMALL, opened_with, replaced


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- heads ---


def causal_weights(heads: int, length: int, seed: int = 0) -> np.ndarray:
    """Random rows that sum to 1, [H, T, T]."""
    scores = np.random.default_rng(seed).normal(0, 2, (heads, length, length))
    return softmax(np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)).astype(np.float32)


def test_head_scores_are_the_means_by_hand_and_padding_counts_for_nothing():
    weights, length = causal_weights(3, 12), 9
    found = head_scores(jnp.asarray(weights), length)
    for h, w in enumerate(weights):
        rows = range(2, length)
        entropy = [-sum(p * math.log(p) for p in w[i] if p > 0) for i in rows]
        assert float(found.entropy[h]) == pytest.approx(np.mean(entropy), abs=1e-5)
        assert float(found.previous[h]) == pytest.approx(np.mean([w[i, i - 1] for i in rows]), abs=1e-6)
        assert float(found.first[h]) == pytest.approx(np.mean([w[i, 0] for i in rows]), abs=1e-6)


def test_scores_of_uniform_attention_are_those_given_for_comparison():
    uniform = uniform_scores(6)
    assert float(uniform.previous) == pytest.approx(np.mean([1 / (i + 1) for i in range(2, 6)]))
    assert float(uniform.entropy) == pytest.approx(np.mean([math.log(i + 1) for i in range(2, 6)]), abs=1e-6)


def test_scores_of_two_tokens_are_nan():
    assert math.isnan(float(head_scores(jnp.asarray(causal_weights(1, 2)), 2).previous[0]))


def test_a_hand_built_induction_head_scores_one_a_previous_token_head_does_not():
    """Its queries encode their own token, its keys the token before them: what induction heads are made of
    (Olsson et al. 2022)."""
    vocab, repeated, start = 24, 10, 1
    random = np.random.default_rng(3)
    rows = np.array(
        [
            [0, *row, *row]
            for row in (random.choice(np.arange(1, vocab), repeated, replace=False) for _ in range(3))
        ]
    )
    one_hot = jax.nn.one_hot(rows, vocab)
    before = jnp.pad(one_hot[:, :-1], ((0, 0), (1, 0), (0, 0)))
    here = jax.nn.one_hot(jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape), vocab)
    behind = jnp.pad(here[:, :-1], ((0, 0), (1, 0), (0, 0)))
    q_BTHK = 100 * jnp.stack([one_hot, behind, jnp.zeros_like(one_hot)], 2)  # induction, previous token, none
    k_BSGK = jnp.stack([before, here, here], 2)
    weights = attention_weights(q_BTHK, k_BSGK, ModelConfig(heads=3, embed=3 * vocab).resolved(vocab), None)
    score = np.asarray(induction_score(weights, start, repeated))
    assert score[0] > 0.999
    assert score[1] < 1e-3
    even = np.mean([1 / (i + 1) for i in range(start + repeated, start + 2 * repeated)])
    assert score[2] == pytest.approx(even, rel=1e-5)
    assert float(head_scores(weights[0], rows.shape[1]).previous[1]) > 0.999


def test_weights_on_the_page_are_exact_to_half_a_255th():
    weights = causal_weights(2, 16)
    assert np.abs(np.asarray(quantise(jnp.asarray(weights))) / 255 - weights).max() <= 0.5 / 255 + 1e-7


# --- predictions ---


def stream(opened, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (length, opened.config.embed)).astype(np.float32)


def test_predictions_are_the_softmax_of_the_logits(monkeypatch):
    opened = opened_with()
    x, targets = stream(opened, 23), np.random.default_rng(1).integers(0, 96, 23)
    logits = Readout(opened).all_logits(x)
    monkeypatch.setattr(logit_lens, "LOGITS_AT_ONCE", 96 * 5)  # in chunks of 5, the last one padded
    found = Readout(opened).predictions(x, targets)
    p = softmax(logits)
    for i, t in enumerate(targets):
        order = np.argsort(-logits[i], kind="stable")
        assert found.top_ids[i].tolist() == order[:10].tolist()
        assert found.rank[i] == 1 + int(np.flatnonzero(order == t)[0])
        np.testing.assert_allclose(found.top_probabilities[i], p[i, order[:10]], rtol=1e-4)
    np.testing.assert_allclose(found.log_probability, np.log(p[np.arange(23), targets]), atol=1e-4)
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(-1), atol=1e-4)


def test_predictions_of_the_text_are_those_of_the_scorer():
    """A page reads every layer's stream and weights, so it has a forward pass of its own; the evaluation's
    figures for the same tokens are these. Float32 of two programs: 1e-4 nats."""
    opened = opened_with()
    ids = np.random.default_rng(3).integers(0, 96, 30)
    x = last_stream(opened, ids)
    found = Readout(opened).predictions(x, np.array([*ids[1:], 0], np.int32))
    request = ScoreRequest(tuple(map(int, ids[:1])), tuple(map(int, ids[1:])))
    (scored,) = Scorer(opened, top=3).score([request])
    np.testing.assert_allclose(found.log_probability[:-1], scored.logprobs, atol=1e-4)
    assert (found.rank[:-1] == 1).tolist() == scored.greedy.tolist()
    assert found.top_ids[:-1, :3].tolist() == scored.top_ids.tolist()


def test_divergence_is_the_sum_by_hand_and_zero_between_a_model_and_itself():
    one, other = opened_with(), opened_with(seed=1)
    x, y = stream(one, 7), stream(one, 7, seed=2)
    p, q = (softmax(Readout(o).all_logits(z)) for o, z in ((one, x), (other, y)))
    found = divergence(Readout(one), Readout(other), x, y)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(-1), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.kl_back, (q * np.log(q / p)).sum(-1), rtol=1e-3, atol=1e-5)
    assert not divergence(Readout(one), Readout(one), x, x).kl.any()


# --- words in contexts ---


def test_principal_axes_are_the_eigenvectors_of_the_covariance():
    points = np.random.default_rng(0).normal(0, 1, (9, 5)) * [3, 2, 1, 0.5, 0.1]
    found, explained = principal_axes(points)
    centred = points - points.mean(0)
    sizes, axes = np.linalg.eigh(centred.T @ centred)
    for k in range(2):
        axis = axes[:, -1 - k] * np.sign(axes[np.abs(axes[:, -1 - k]).argmax(), -1 - k])
        np.testing.assert_allclose(found[:, k], centred @ axis, atol=1e-5)
    np.testing.assert_allclose(explained, sizes[::-1][:2] / sizes.sum(), rtol=1e-5)


def test_cosines_are_those_of_numpy():
    random = np.random.default_rng(0)
    vectors = random.normal(0, 1, (2, 4, 6)).astype(np.float32)
    word = WordInContexts("w", ("a", "b"), ([1], [2]), True, vectors, np.zeros(4, np.float32))
    for layer, c in enumerate(word.cosines):
        a, b = vectors[:, layer]
        assert c == pytest.approx(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)), abs=1e-6)
    x, ids = random.normal(0, 1, (5, 6)), np.array([3, 1, 3, 2, 1])
    pairs = [(i, j) for i, j in itertools.permutations(range(5), 2) if ids[i] != ids[j]]
    by_hand = np.mean([x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i, j in pairs])
    assert mean_pair_cosine(x, ids) == pytest.approx(by_hand)


def test_a_legend_names_contexts_that_begin_with_an_underscore():
    vectors = np.random.default_rng(0).normal(0, 1, (2, 4, 6)).astype(np.float32)
    word = WordInContexts(
        "init", ("__init__ of $a$", "_init"), ([1], [2]), True, vectors, np.zeros(4, np.float32)
    )
    drawn = figures.word_path(SimpleNamespace(word=word))
    assert [text.get_text() for text in drawn.figure.axes[0].get_legend().get_texts()] == [
        r"“__init__ of \$a\$”",
        "“_init”",
    ]


def test_a_model_that_outputs_nan_has_no_page():
    broken = replaced(opened_with(), lambda path, w: w * np.nan)
    with pytest.raises(UserError, match=r"random: the model outputs NaN"):
        analyse_model(broken, InspectArguments(folder=Path("random"), ids=(1, 2, 3)))


# --- weights ---


def test_weight_differences_are_of_the_layer_and_kind_that_changed():
    opened = opened_with()

    def change(path: str, w: np.ndarray) -> np.ndarray:
        if path == "['blocks']['mlp']['up']":
            w = w.copy()
            w[1] *= 1.25
        return -w if path == "['embedding']" else w

    found = {(d.kind, d.layer): d for d in weight_differences(opened, replaced(opened, change))}
    assert found["mlp.up", 1].relative == pytest.approx(0.25, rel=1e-5)
    assert found["mlp.up", 1].cosine == pytest.approx(1, abs=1e-6)
    assert found["mlp.up", 1].numbers == 32 * 48
    assert found["embedding", None].relative == pytest.approx(2, rel=1e-5)
    assert found["embedding", None].cosine == pytest.approx(-1, abs=1e-6)
    others = [d for key, d in found.items() if key not in (("mlp.up", 1), ("embedding", None))]
    assert all(d.relative == 0 for d in others)
    assert ("attention.query", 0) in found


def test_layers_of_mixed_stacks_keep_their_numbers():
    opened = opened_with(
        ModelConfig(
            layers=4,
            embed=16,
            heads=2,
            mlp=16,
            vocab=32,
            moe=MoEConfig(experts=2, top_k=1, dense_layers=(0, 2)),
        )
    )
    assert stack_layers(opened.model) == {"blocks": [1, 3], "dense_blocks": [0, 2]}


def test_other_kinds_of_models_are_not_compared():
    with pytest.raises(
        UserError, match=r"diff=x: is another kind of model: model\.mlp is 64 there and 48 here"
    ):
        check_alike(opened_with(), opened_with(dataclasses.replace(SMALL, mlp=64)), "diff=x")
    with pytest.raises(
        UserError, match=r"model\.attention_softcap is 2\.0 there and 0\.0 here"
    ):  # not a kernel, although its name begins with attention too
        check_alike(opened_with(), opened_with(dataclasses.replace(SMALL, attention_softcap=2.0)), "diff=x")


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention", "blocked"), ("scan_layers", False), ("init_std", 0.01), ("softmax_dtype", "bfloat16")],
)
def test_settings_of_computation_do_not_make_another_kind_of_model(key, value):
    check_alike(opened_with(), opened_with(dataclasses.replace(SMALL, **{key: value})), "diff=x")
