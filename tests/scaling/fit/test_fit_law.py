"""The other laws: each recovers the constants that its points were made from, and raises where the points
don't determine them."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.scaling import fit
from llm_jax.scaling.fit.compute import frontier
from llm_jax.scaling.fit.repeated import effective
from tests.scaling.fit.conftest import TRUTH, made_runs

GADRE = {"E": 1.6, "a": 150.0, "b": 200.0, "eta": 0.125}
LINK = {"low": 0.25, "high": 0.9, "k": 4.0, "middle": 2.6}


def noise(count: int, size: float, seed: int = 0) -> np.ndarray:
    return np.exp(size * np.random.default_rng(seed).standard_normal(count))


def repeated_runs(size: float = 0.0) -> dict[str, np.ndarray]:
    """Sizes x unique tokens x epochs under the paper's constants. Single epochs are of sizes for which their
    tokens are enough: parameters in excess bend the paper's law even without repetition, and a law fitted to
    them would be another."""
    law, r_d, r_n = fit.published_repetition()
    n, u, epochs = (
        a.ravel()
        for a in np.meshgrid(
            np.geomspace(2e6, 1e9, 8), [3e8, 1e9, 3e9, 1e10], [1.0, 2, 4, 8, 20, 50], indexing="ij"
        )
    )
    kept = (epochs > 1) | (n < law.G * (law.G * u) ** (law.a / law.b))
    n, u, epochs = n[kept], u[kept], epochs[kept]
    loss = fit.repeated_loss(law, n, u * epochs, u, r_d, r_n)
    return {"parameters": n, "tokens": u * epochs, "unique_tokens": u, "loss": loss * noise(len(n), size)}


def test_the_compute_law_is_recovered_from_the_best_runs_alone():
    c = np.geomspace(1e17, 1e21, 25)
    loss = 1.7 + 1.1 * (c / 1e18) ** -0.15
    worse = np.concatenate([loss, 1.05 * loss])  # as many runs that are no best ones
    got = fit.compute_law(np.concatenate([c, c]), worse, bootstrap=50)
    assert got.parameters == {
        name: pytest.approx(value, rel=1e-4) for name, value in (("E", 1.7), ("K", 1.1), ("gamma", 0.15))
    }
    assert got.settings["runs_used"] == 25
    assert got.leave_largest_out["largest_relative_error"] < 1e-5
    pure = fit.compute_law(c, 1.1 * (c / 1e18) ** -0.15, irreducible=False, bootstrap=50)
    assert pure.parameters == {"K": pytest.approx(1.1, rel=1e-6), "gamma": pytest.approx(0.15, rel=1e-6)}


def test_the_frontier_are_the_runs_that_no_cheaper_run_beats():
    rng = np.random.default_rng(0)
    flops, loss = rng.uniform(1, 2, 60), rng.uniform(1, 2, 60)
    expected = [
        not any(loss[j] <= loss[i] and flops[j] <= flops[i] and j != i for j in range(60)) for i in range(60)
    ]
    assert frontier(flops, loss).tolist() == expected


def test_law_of_over_training_comes_back_and_is_approach_3_with_one_exponent():
    n, m = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 6), [5.0, 20, 80, 320, 640], indexing="ij"))
    loss = fit.overtrained_loss(GADRE, 6 * n * n * m, m)
    got = fit.overtraining(n, n * m, loss * noise(len(n), 1e-3), bootstrap=100)
    exact = fit.overtraining(n, n * m, loss, bootstrap=0)
    assert exact.parameters == {name: pytest.approx(value, rel=1e-4) for name, value in GADRE.items()}
    assert all(low < GADRE[name] < high for name, (low, high) in got.intervals_95.items())
    tied = fit.parametric(n, n * m, loss, tied=True, bootstrap=0)
    assert tied.parameters["alpha"] == pytest.approx(2 * GADRE["eta"], rel=1e-4)
    with pytest.raises(UserError, match="tokens/parameters: from 20 to 20 only"):
        fit.overtraining(n, 20 * n, loss)


def test_repeated_tokens_count_as_in_the_paper():
    """Arithmetic of arXiv:2305.16264: R_D repetitions are worth 1 - 1/e of new tokens each; the limit is U (1
    + R_D)."""
    u = 1e9
    assert effective(u, u, 15.0) == u
    assert effective(u, u / 2, 15.0) == u  # no fewer than the unique ones
    assert effective(u, u * 16, 15.0) == pytest.approx(u * (1 + 15 * (1 - np.exp(-1))))
    assert effective(u, u * 1e6, 15.0) == pytest.approx(16 * u)
    law, r_d, r_n = fit.published_repetition()
    best, tokens = law.optimal(1e20)
    assert fit.repeated_loss(law, best, tokens, tokens, r_d, r_n) == pytest.approx(
        law.loss(best, tokens), rel=1e-12
    )
    four, fresh = fit.repeated_loss(law, best, tokens, tokens / 4, r_d, r_n), law.loss(best, tokens)
    assert fresh < four < 1.02 * fresh  # "up to 4 epochs ... negligible changes to loss" (abstract)


def test_constants_of_repetition_come_back_with_a_law_that_is_given_or_fitted():
    law, r_d, r_n = fit.published_repetition()
    runs = repeated_runs()
    given = fit.repetition(**runs, base="muennighoff", bootstrap=0)
    assert given.parameters == {"R_D": pytest.approx(r_d, rel=1e-4), "R_N": pytest.approx(r_n, rel=1e-4)}
    noisy = fit.repetition(**repeated_runs(1e-3), base="muennighoff", bootstrap=100)
    assert all(
        low < truth < high for truth, (low, high) in zip((r_d, r_n), noisy.intervals_95.values(), strict=True)
    )
    fitted = fit.repetition(**runs, bootstrap=0)
    assert fitted.settings["base_law"]["alpha"] == pytest.approx(law.alpha, rel=1e-3)
    assert fitted.parameters == {"R_D": pytest.approx(r_d, rel=0.01), "R_N": pytest.approx(r_n, rel=0.01)}


def test_repetition_needs_repeated_runs():
    runs = made_runs()
    with pytest.raises(UserError, match="unique_tokens: 0 runs repeat tokens"):
        fit.repetition(runs.parameters, runs.tokens, runs.tokens, runs.loss, base="muennighoff")
    with pytest.raises(UserError, match=r"base=nowhere\.json: must be fresh"):
        fit.repetition(runs.parameters, 3 * runs.tokens, runs.tokens, runs.loss, base="nowhere.json")


def test_sigmoid_from_loss_to_accuracy_comes_back():
    loss = np.linspace(1.8, 3.6, 40)
    exact = fit.sigmoid_link(LINK, loss)
    got = fit.accuracy(loss, exact, bootstrap=50)
    assert got.parameters == {
        name: pytest.approx(LINK[name], rel=1e-5) for name in ("k", "middle", "low", "high")
    }
    fixed = fit.accuracy(loss, exact, chance=0.25, bootstrap=50)
    assert set(fixed.parameters) == {"k", "middle", "high"}
    noisy = np.clip(exact + 0.01 * np.random.default_rng(0).standard_normal(40), 0, 1)
    wide = fit.accuracy(loss, noisy, bootstrap=200)
    assert all(low < LINK[name] < high for name, (low, high) in wide.intervals_95.items())
    assert wide.standard_errors_delta["middle"] == pytest.approx(wide.standard_errors["middle"], rel=0.5)


def test_a_link_that_shows_neither_end_is_refused():
    loss = np.linspace(2.4, 2.7, 30)
    rising = 0.25 + 0.5 * (2.7 - loss) + 0.005 * np.random.default_rng(0).standard_normal(30)
    with pytest.raises(UserError, match="do not determine"):
        fit.accuracy(loss, rising, bootstrap=50)
    assert (
        fit.accuracy(loss, rising, chance=0.2, ceiling=1.0, bootstrap=50).parameters["middle"] < 2.4
    )  # with both ends known, it is


def test_an_accuracy_out_of_range_is_refused():
    loss = np.linspace(2, 3, 9)
    with pytest.raises(UserError, match=r"accuracy=1\.5: must be from 0 to 1"):
        fit.accuracy(loss, loss * 0 + 1.5)
    with pytest.raises(UserError, match="chance=2: must be from 0 to 1"):
        fit.accuracy(loss, loss / 4, chance=2)


def test_envelope_of_training_curves_finds_a_known_exponent():
    """Curves whose every point is the law's: sizes are a factor of 1.5 apart, which is what the exponent is
    read from."""
    sizes = np.geomspace(2e7, 5e9, 16)
    rows = []
    for i, n in enumerate(sizes):
        _, best_tokens = TRUTH.optimal(6 * n * n * 20)
        tokens = np.geomspace(best_tokens / 30, best_tokens * 30, 200)
        rows.append(np.stack([np.full(200, i), 6 * n * tokens, np.full(200, n), TRUTH.loss(n, tokens)]))
    run, flops, parameters, loss = np.concatenate(rows, -1)
    got = fit.envelope(run, flops, parameters, loss, computes=400, bootstrap=100)
    assert got.a == pytest.approx(TRUTH.a, abs=0.01)
    low, high = got.a_interval_95
    assert low < TRUTH.a < high
    inside = got.frontier["used"]
    best, _ = TRUTH.optimal(got.frontier["flops"][inside])
    assert np.abs(np.log(got.frontier["parameters"][inside] / best)).max() < np.log(1.5)
    assert (
        0 < inside.sum() < 400
    )  # the smallest and the largest size are best somewhere, and the optimum beyond is not known there
    with pytest.raises(UserError, match="2 different sizes"):
        fit.envelope(run[:400], flops[:400], parameters[:400], loss[:400])
