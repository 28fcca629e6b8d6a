"""Sampling, compared with an implementation in plain numpy that sorts one row at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.generate import sampling
from llm_jax.generate.request import Request
from llm_jax.generate.sampling import Settings, draw

V = 50
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 3, (4, V)).astype(np.float32)
NONE: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "seed": 0,
}
TYPES = {"top_k": np.int32, "seed": np.uint32}


def settings(rows: int = 4, **values: Any) -> Settings:
    """Settings of `rows` rows; each value is one for all rows, or an array."""
    return Settings(
        *(
            np.broadcast_to(np.asarray({**NONE, **values}[n], TYPES.get(n, np.float32)), rows)
            for n in Settings._fields
        )
    )


def allowed(
    x: np.ndarray, seen: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0
) -> np.ndarray:
    """The probabilities [V] that a row is drawn with, in transformers' order of steps, by sorting."""
    x = (
        np.where(seen, np.where(x > 0, x / repetition_penalty, x * repetition_penalty), x).astype(np.float64)
        / temperature
    )
    order = np.argsort(-x)
    keep = np.ones(len(x), bool)
    if top_k:
        keep[order[top_k:]] = False
    p = np.where(keep, np.exp(x - x.max()), 0)
    p /= p.sum()
    together = np.cumsum(p[order])
    keep[order[1:][together[:-1] >= top_p]] = False
    p = np.where(keep, p, 0)
    p = np.where(p >= min_p * p.max(), p, 0)
    return p / p.sum()


CASES: list[dict[str, Any]] = [
    {}, {"temperature": 0.5}, {"top_k": 5}, {"top_k": 1}, {"top_k": 500}, {"top_p": 0.7}, {"top_p": 1e-6},
    {"min_p": 0.1}, {"min_p": 1.0}, {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.5, "temperature": 2.0},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_are_drawn_with_their_probabilities_and_cut_ones_never(case):
    """6,000 draws of each row, at as many positions: within 4.5 standard deviations of each frequency (one
    false alarm in 700 runs of all)."""
    draws, seen = 6000, RANDOM.random((4, V)) < 0.3
    rows = jax.jit(
        jax.vmap(lambda position: draw(LOGITS, seen, jnp.full(4, position), settings(seed=7, **case))[0])
    )(jnp.arange(draws))
    for row in range(4):
        p = allowed(LOGITS[row], seen[row], **case)
        frequency = np.bincount(np.asarray(rows)[:, row], minlength=V) / draws
        assert not frequency[p == 0].any()
        assert (np.abs(frequency - p) <= 4.5 * np.sqrt(p * (1 - p) / draws) + 1e-3).all()


def test_greedy_is_the_most_likely_after_the_penalty_and_the_log_probability_is_the_models():
    seen = np.zeros((4, V), bool)
    seen[0, LOGITS[0].argmax()] = True
    token_B, logprob_B = draw(LOGITS, seen, np.arange(4), settings(temperature=0, repetition_penalty=100.0))
    expected = LOGITS.argmax(-1)
    expected[0] = np.argsort(LOGITS[0])[-2]
    assert token_B.tolist() == expected.tolist()
    by_hand = LOGITS.astype(np.float64) - np.log(np.exp(LOGITS.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprob_B, by_hand[np.arange(4), expected], atol=1e-5)  # float32


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-37, 1e-5])
def test_the_lower_the_temperature_the_surer_is_the_most_likely_token(temperature):
    """Plain division by it would make several logits infinite, and argmax would return the first of them."""
    token_B, _ = draw(LOGITS, np.zeros((4, V), bool), np.arange(4), settings(temperature=temperature))
    assert token_B.tolist() == LOGITS.argmax(-1).tolist()


def test_a_row_depends_on_its_own_logits_seed_and_position_alone():
    mixed = settings(
        temperature=np.array([0, 0.7, 1, 1.3]),
        top_k=np.array([0, 9, 0, 0]),
        top_p=np.array([1, 1, 0.8, 1]),
        seed=np.arange(4),
    )
    seen, position = RANDOM.random((4, V)) < 0.2, np.array([3, 900, 5, 0])
    together = draw(LOGITS, seen, position, mixed)
    for row in range(4):
        one = draw(
            LOGITS[row : row + 1],
            seen[row : row + 1],
            position[row : row + 1],
            Settings(*(a[row : row + 1] for a in mixed)),
        )
        assert [a.tolist()[0] for a in one] == [a.tolist()[row] for a in together]


def test_other_seeds_and_positions_give_other_noise():
    noise = {
        tuple(np.asarray(sampling.noise(jnp.uint32(s), jnp.int32(p), 3)).tolist())
        for s in (0, 1, 2**32 - 1)
        for p in range(5)
    }
    assert len(noise) == 15


def test_ties_are_kept_together():
    """Sorting would let token ids decide which of the equally likely tokens stays."""
    x = jnp.array([[2.0, 1.0, 1.0, -0.0, 0.0, -5.0]])
    assert (sampling.top_k(x, jnp.array([2])) > -jnp.inf).tolist() == [
        [True, True, True, False, False, False]
    ]
    assert (sampling.top_k(x, jnp.array([4])) > -jnp.inf).tolist() == [[True, True, True, True, True, False]]


def test_ids_that_the_tokenizer_does_not_have_are_never_drawn():
    logits = np.full((1, V), -20, np.float32)
    logits[0, 40:] = 20
    for temperature in (0.0, 1.0):
        token, _ = draw(
            logits,
            np.zeros((1, V), bool),
            np.zeros(1, np.int32),
            settings(1, temperature=temperature),
            vocab=40,
        )
        assert token[0] < 40


SMALL = [1e-38, 1e-39, 1e-45, 0.0]
"""Around and below float32's smallest normal number; 0 is what a smaller one is rounded to."""


@pytest.mark.parametrize("p", [1e-6, *SMALL])
def test_the_least_top_p_leaves_the_most_likely_token(p):
    """Below float32's range no token was kept, and the argmax of nothing is token 0."""
    for jitted in (draw, jax.jit(draw)):
        for position in range(5):
            token_B, _ = jitted(LOGITS, np.zeros((4, V), bool), np.full(4, position), settings(top_p=p))
            assert token_B.tolist() == LOGITS.argmax(-1).tolist()


@pytest.mark.parametrize("penalty", [*SMALL, 1e38, 3e38, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1.0])
def test_the_extreme_repetition_penalties_are_finite(penalty, temperature):
    """The smallest prefer what was seen, the largest what was not; never a token for its id."""
    x = np.array([[-1.0, 2.0, 0.5, -3.0, 1.0, 0.1]] * 2, np.float32)
    seen = np.array([[False, False, True, True, True, False], [True, True, True, True, True, True]])
    token_B, logprob_B = draw(
        x, seen, np.zeros(2, int), settings(2, repetition_penalty=penalty, temperature=temperature)
    )
    assert token_B[0] in ((2, 4) if penalty < 1 else (1,) if temperature < 1 else (0, 1, 5))
    assert x[1, token_B[1]] > 0
    assert np.isfinite(logprob_B).all()


@pytest.mark.parametrize("temperature", [1e38, 3e38, np.inf])
def test_the_highest_temperature_draws_any_token_that_there_is(temperature):
    """Infinity made NaN of tokens that only pad the vocabulary, and argmax takes NaN."""
    rows = jax.vmap(
        lambda i: draw(LOGITS, np.zeros((4, V), bool), jnp.full(4, i), settings(temperature=temperature), 40)[
            0
        ]
    )(jnp.arange(200))
    assert int(rows.min()) >= 0
    assert int(rows.max()) < 40
    assert len(np.unique(rows)) > 35


@pytest.mark.parametrize("p", SMALL)
def test_the_least_min_p_leaves_all_tokens(p):
    plain = draw(LOGITS, np.zeros((4, V), bool), np.arange(4), settings())
    for got, wanted in zip(
        draw(LOGITS, np.zeros((4, V), bool), np.arange(4), settings(min_p=p)), plain, strict=True
    ):
        assert got.tolist() == wanted.tolist()


@pytest.mark.parametrize("temperature", [1e-50, 1e-40, 1e40, 5e-324, 1e308])
def test_samples_of_a_run_take_every_temperature(temperature):
    scaled = sampling.divide_by_temperature(jnp.asarray(LOGITS), temperature)
    assert not jnp.isnan(scaled).any()
    assert jnp.argmax(scaled, -1).tolist() == LOGITS.argmax(-1).tolist() or temperature > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repetition_penalty": 1e-40}, "repetition_penalty=1e-40: must be above 0"),
        ({"repetition_penalty": 1e39}, "repetition_penalty=1e+39: must be above 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: must be above 0"),
        ({"temperature": 1e39}, "temperature=1e+39: must be 0"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0"),
    ],
)
def test_what_float32_can_not_hold_is_refused(changes, message):
    with pytest.raises(UserError) as error:
        Request(**changes).check()
    assert message in str(error.value)
    for accepted in (
        {"top_p": 1e-50},
        {"min_p": 1e-50},
        {"temperature": 1e-50},
        {"repetition_penalty": 1e-37},
    ):
        Request(**accepted).check()
