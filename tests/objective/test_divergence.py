"""The chunked divergence against TRL's, against itself under every layout, and from a teacher's top
tokens."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS, preset
from llm_jax.model.config import ModelConfig
from llm_jax.model.weights import Weight
from llm_jax.objective.divergence import (
    DivergenceKind,
    Teacher,
    TopTokens,
    linear_divergence,
    linear_top_tokens,
)

FIXTURE = Path(__file__).parent / "distillation.npz"  # tools/make_distillation_fixtures.py


def weight(w_VD) -> Weight:
    """The array as a model has it."""
    return Weight(jnp.asarray(w_VD), dims=("vocab", "embed"), stacked=False)


@functools.cache
def fixture() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return dict(file)


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses(kind: DivergenceKind, chunk: int, x, head, teacher_x, teacher_head, targets, weights):
    """((total, divergence, cross-entropy), (dx, dhead)) of mean losses."""

    def loss(x, head):
        teacher = Teacher(teacher_x, weight(teacher_head), ModelConfig())
        sums = linear_divergence(x, weight(head), ModelConfig(), teacher, targets, weights, kind, chunk=chunk)
        return sums.total / jnp.sum(weights), sums

    (total, sums), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, head)
    return total, sums, gradients


ARRAYS = ("x", "head", "teacher_x", "teacher_head", "targets", "weights")


@pytest.mark.parametrize("number", range(11))
def test_losses_and_gradients_are_trls(number):
    made = fixture()
    beta, temperature, hard = (round(float(value), 6) for value in made["cases"][number])
    kind, chunk = DivergenceKind(beta, temperature, hard), (1000, 2, 5)[number % 3]
    total, _, (dx, dhead) = losses(kind, chunk, *(made[name] for name in ARRAYS))
    assert float(total) == pytest.approx(float(made["loss"][number]), rel=1e-6)
    for ours, theirs in ((dx, made["dx"][number]), (dhead, made["dhead"][number])):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_the_fixture_has_both_ends_and_three_temperatures():
    betas, temperatures, hards = fixture()["cases"].T
    assert {*betas.tolist()} > {0, 0.5, 1}
    assert len({*temperatures.tolist()}) == 3
    assert len({*hards.tolist()}) == 2


VOCAB, WIDE, NARROW, BATCH, LENGTH = 44, 24, 16, 8, 16  # 44 is no multiple of 8 devices: padded
KIND = DivergenceKind(0.3, 1.5, 0.2, 1e-3)


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "x": draw(BATCH, LENGTH, NARROW), "head": draw(VOCAB, NARROW),
        "teacher_x": draw(BATCH, LENGTH, WIDE), "teacher_head": draw(VOCAB, WIDE),
        "targets": rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32),
        "weights": (rng.random((BATCH, LENGTH)) < 0.8).astype(np.float32),
    }  # fmt: skip


def under(name: str, chunk: int, k: int | None = None):
    """(sums, gradients of x and head, top tokens) under a preset, with capped logits; k: from top tokens."""
    place = MeshPlacement(preset(name), make_mesh(preset(name), {}))
    x_dims, w_dims, t_dims = ("batch", "sequence", "embed"), ("vocab", "embed"), ("batch", "sequence")
    tables = {"x": (x_dims, "compute"), "teacher_x": (x_dims, "compute"), "head": (w_dims, "stored"),
              "teacher_head": (w_dims, "stored")}  # fmt: skip
    arrays = {
        key: jax.device_put(value, place.sharding(*tables.get(key, (t_dims, "compute")), value.shape))
        for key, value in inputs().items()
    }
    student = ModelConfig(vocab=VOCAB, embed=NARROW, logit_softcap=4.0)
    other = ModelConfig(vocab=VOCAB, embed=WIDE, logit_softcap=6.0)

    def loss(x, head, arrays):
        teacher = Teacher(arrays["teacher_x"], weight(arrays["teacher_head"]), other)
        top = linear_top_tokens(teacher, k or 5, KIND.temperature, place, chunk=chunk)
        sums = linear_divergence(
            x, weight(head), student, top if k else teacher, arrays["targets"], arrays["weights"], KIND, place,
            chunk=chunk,
        )  # fmt: skip
        return sums.total, (sums, top)

    with jax.set_mesh(place.mesh):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (_, found), gradients = gradient(arrays["x"], arrays["head"], arrays)
    return jax.tree.map(np.asarray, (found[0], gradients, found[1]))


@functools.cache
def on_one_device(k: int | None = None):
    return under("single", 1000, k)


def agree(found, expected):
    for ours, theirs in zip(jax.tree.leaves(found[:2]), jax.tree.leaves(expected[:2]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=1e-5)
    np.testing.assert_array_equal(np.sort(found[2].ids_BTK), np.sort(expected[2].ids_BTK))
    np.testing.assert_allclose(found[2].logp_BTJ, expected[2].logp_BTJ, atol=1e-5)


SLOW = ("zero1", "hybrid_fsdp", "fsdp", "context_gather", "context_ulysses", "expert", "pipeline_tensor")
"""They split the vocabulary, the batch or the positions as one of the others does."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in sorted({*PRESETS} - {"single"})],
)
def test_every_layout_gives_the_sums_and_gradients_of_one_device(name):
    agree(under(name, 4), on_one_device())


@pytest.mark.parametrize("name", ["fsdp_tensor"])
def test_from_top_tokens_every_layout_gives_the_same(name):
    agree(under(name, 4, 5), on_one_device(5))


def outcomes(probabilities, ids):
    """The probabilities of some tokens and, last, of all others: float64."""
    chosen = np.take_along_axis(probabilities, ids, -1)
    others = probabilities.copy()
    np.put_along_axis(others, ids, 0, -1)
    return np.concatenate([chosen, others.sum(-1, keepdims=True)], -1)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_from_top_tokens_the_divergence_is_that_of_their_and_one_more_outcome(beta):
    made, kind = inputs(), DivergenceKind(beta, 2.0)
    softmax = lambda x: (e := np.exp(x - x.max(-1, keepdims=True))) / e.sum(-1, keepdims=True)  # noqa: E731
    student, teacher = (
        softmax(x.astype(np.float64) @ w.T.astype(np.float64) / 2)
        for x, w in ((made["x"], made["head"]), (made["teacher_x"], made["teacher_head"]))
    )
    ids = np.argsort(-teacher, -1)[..., :3]
    s, t = outcomes(student, ids), outcomes(teacher, ids)
    top = TopTokens(ids.astype(np.int32), np.log(t).astype(np.float32))

    def total(x):
        arrays = (made["targets"], made["weights"])
        return linear_divergence(x, weight(made["head"]), ModelConfig(), top, *arrays, kind, chunk=1000).total

    both = jax.jit(jax.value_and_grad(total))
    found, dx = both(made["x"])
    m = beta * t + (1 - beta) * s
    kl = lambda p, q: (p * np.log(p / q)).sum(-1)  # noqa: E731
    expected = {0.0: kl(t, s), 1.0: kl(s, t)}.get(beta, beta * kl(t, m) + (1 - beta) * kl(s, m))
    assert float(found) == pytest.approx((expected * made["weights"]).sum(), rel=1e-5)
    step = 1e-2 * np.asarray(dx) / np.linalg.norm(dx)
    slope = (float(both(made["x"] + step)[0]) - float(both(made["x"] - step)[0])) / 2e-2
    assert slope == pytest.approx(float(np.linalg.norm(dx)), rel=1e-3)


def test_a_student_that_is_the_teacher_has_no_divergence_and_no_gradient():
    made = inputs()
    for beta in (0.0, 0.5, 1.0):
        arrays = (made["x"], made["head"], made["x"], made["head"], made["targets"], made["weights"])
        _, sums, gradients = losses(DivergenceKind(beta), 64, *arrays)
        assert abs(float(sums.divergence)) < 1e-5
        assert all(np.abs(gradient).max() < 1e-6 for gradient in gradients)


def test_whole_logits_are_in_no_array_of_the_program():
    """Neither model's: of 8 x 16 positions, 16 at once have logits."""
    made = inputs()
    text = losses.lower(KIND, 16, *(made[name] for name in ARRAYS)).compile().as_text()
    assert f"f32[16,{VOCAB}]" in text
    for rows in (f"{BATCH},{LENGTH}", f"{BATCH * LENGTH}", f"{BATCH * LENGTH // 16},16"):
        assert f"[{rows},{VOCAB}]" not in text
