"""Optimizers against the papers' formulas in float64 NumPy, schedules at their corners, decay masks, EMA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layout.presets import PRESETS
from llm_jax.train.optimizer import (
    OptimizerConfig,
    ParameterInfo,
    decays,
    make_optimizer,
    make_schedule,
    warmup,
    warmup_fault,
)
from tests.training import SMALL, train

INFO = {
    "matrix": ParameterInfo(("embed", "mlp"), False),
    "table": ParameterInfo(("vocab", "embed"), False),
    "scale": ParameterInfo(("embed",), False),
}
SHAPES = {"matrix": (6, 10), "table": (7, 6), "scale": (6,)}


def values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def ours(config: OptimizerConfig, steps: int) -> dict[str, np.ndarray]:
    """Parameters after some steps with the rate 0.01, by the transformation that the train step uses."""
    optimizer = make_optimizer(config, INFO)
    parameters = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), values(0))
    state = optimizer.init(parameters)
    for step in range(steps):
        grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), values(step + 1))
        updates, state = optimizer.update(grads, state, parameters)
        parameters = jax.tree.map(lambda p, u: p + 0.01 * u, parameters, updates)
    return {name: np.asarray(x) for name, x in parameters.items()}


def assert_close(found, expected):
    for name in SHAPES:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=2e-5, atol=2e-6, err_msg=name
        )  # float32 over 5 steps


@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_adamw_is_the_papers(decay_embeddings):
    config = OptimizerConfig(
        beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3, decay_embeddings=decay_embeddings
    )
    p = values(0)
    m, v = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
    for t in range(1, 6):
        for k, g in values(t).items():
            m[k] = 0.8 * m[k] + 0.2 * g
            v[k] = 0.9 * v[k] + 0.1 * g**2
            decay = 0.3 if k == "matrix" or (k == "table" and decay_embeddings) else 0.0
            p[k] = p[k] - 0.01 * (m[k] / (1 - 0.8**t) / (np.sqrt(v[k] / (1 - 0.9**t)) + 1e-6) + decay * p[k])
    assert_close(ours(config, 5), p)


def test_lion_is_the_papers():
    p = values(0)
    m = {k: np.zeros_like(x) for k, x in p.items()}
    for t in range(1, 6):
        for k, g in values(t).items():
            p[k] = p[k] - 0.01 * (np.sign(0.8 * m[k] + 0.2 * g) + (0.3 if k != "scale" else 0) * p[k])
            m[k] = 0.9 * m[k] + 0.1 * g
    assert_close(ours(OptimizerConfig(name="lion", beta1=0.8, beta2=0.9, weight_decay=0.3), 5), p)


def muon_update(info: ParameterInfo, shape: tuple[int, ...], **config: float) -> np.ndarray:
    """The first update of a weight without decay."""
    optimizer = make_optimizer(OptimizerConfig(name="muon", weight_decay=0.0, **config), {"w": info})  # type: ignore[arg-type]
    w = {"w": jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)}
    return np.asarray(optimizer.update(w, optimizer.init(w), w)[0]["w"])


@pytest.mark.parametrize(
    ("dims", "shape", "inputs"),
    [
        (("embed", "mlp"), (2, 16, 24), 16),
        (("embed", "heads", "head_dim"), (2, 16, 3, 8), 16),
        (("heads", "head_dim", "embed"), (2, 3, 8, 16), 24),
        (("embed", "latent"), (2, 16, 24), 16),
        (("latent", "heads", "head_dim"), (2, 16, 3, 8), 16),
        (("experts", "embed", "mlp"), (2, 1, 16, 24), 16),
        (("experts", "mlp", "embed"), (2, 1, 24, 16), 24),
    ],
)
def test_muon_makes_each_layers_matrix_of_inputs_by_outputs_orthogonal(dims, shape, inputs):
    update = muon_update(ParameterInfo(dims, True), shape)
    for layer in update.reshape(shape[0], inputs, -1):
        singular = np.linalg.svd(layer, compute_uv=False)
        # Newton-Schulz with Jordan's coefficients brings singular values to about 0.7 to 1.2, not to 1
        assert singular.min() / singular.max() > 0.5
        # consistent RMS: 0.2 sqrt(max side) of an orthogonal matrix is 0.2 an entry; within the spread above
        assert np.sqrt(np.mean(layer**2)) == pytest.approx(0.2, rel=0.3)


def test_muon_updates_each_expert_as_if_it_were_alone():
    update = muon_update(ParameterInfo(("experts", "embed", "mlp"), True), (2, 3, 16, 24))
    layers = muon_update(ParameterInfo(("embed", "mlp"), True), (6, 16, 24))
    np.testing.assert_allclose(update.reshape(6, 16, 24), layers, rtol=1e-5, atol=1e-6)


def test_muon_gives_matrices_their_own_learning_rate():
    info = ParameterInfo(("embed", "mlp"), False)
    one, two = (
        muon_update(info, (16, 24), matrix_learning_rate=rate, learning_rate=1e-2) for rate in (1e-2, 2e-2)
    )
    np.testing.assert_allclose(two, 2 * one, rtol=1e-5)


def test_muon_leaves_the_rest_to_adam_with_nesterov_momentum():
    """Dozat 2016, as Optax has it: the momentum of the next step, bias-corrected, and this step's
    gradient.
    """
    found = ours(OptimizerConfig(name="muon", weight_decay=0.3), 3)
    p = values(0)
    m, v = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
    for t in range(1, 4):
        for k, g in values(t).items():
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.95 * v[k] + 0.05 * g**2
            ahead = 0.9 * m[k] / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
            p[k] = p[k] - 0.01 * (
                ahead / (np.sqrt(v[k] / (1 - 0.95**t)) + 1e-8) + (0.3 if k == "table" else 0) * p[k]
            )
    for name in ("table", "scale"):
        np.testing.assert_allclose(found[name], p[name], rtol=2e-5, atol=2e-6)
    assert np.abs(found["matrix"] - p["matrix"]).max() > 1e-3


@pytest.mark.parametrize("name", ["adafactor", "muon", "lion"])
def test_optimizer_learns(name):
    rate = {"lion": 3e-4, "adafactor": 3e-2}.get(
        name, 3e-3
    )  # Adafactor's updates are of the parameters' size, 0.02 at first
    history, _, _ = train(
        PRESETS["single"],
        {},
        steps=20,
        optimizer=OptimizerConfig(name=name, learning_rate=rate, warmup_steps=2),
    )
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.1


def test_norms_and_biases_never_decay():
    config = OptimizerConfig()
    assert decays(config, INFO) == {"matrix": True, "table": True, "scale": False}
    bias = ParameterInfo(("heads", "head_dim"), True)
    assert decays(config, {"bias": bias, "positions": ParameterInfo((None, "embed"), False)}) == {
        "bias": False,
        "positions": True,
    }


def rates(steps: int, **config: object) -> list[float]:
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, **config), steps)  # type: ignore[arg-type]
    return [float(schedule(jnp.int32(step))) for step in range(steps + 2)]


def test_schedules_at_their_corners():
    for name in ("cosine", "linear", "wsd", "constant"):
        found = rates(100, schedule=name, warmup_steps=10, final_fraction=0.1)
        assert found[0] == pytest.approx(0.1)  # the first step moves
        assert found[9] == pytest.approx(1.0)
        assert found[99] == pytest.approx(0.1 if name != "constant" else 1.0)
        assert found[101] == found[99]  # and nothing happens after the end
    assert rates(100, schedule="cosine", warmup_steps=10, final_fraction=0.1)[54] == pytest.approx(
        0.55
    )  # half way
    assert rates(100, schedule="linear", warmup_steps=10, final_fraction=0.1)[54] == pytest.approx(0.55)
    wsd = rates(100, schedule="wsd", warmup_steps=10, decay_fraction=0.2, final_fraction=0.0)
    assert wsd[79] == 1.0
    assert wsd[89] == pytest.approx(0.5)
    assert wsd[99] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 9, 10, 25, 999, 1000, 5000])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_the_default_warmup_fits_every_run(steps, schedule):
    """A tenth of the steps, and 100 at most; the learning rate reaches its peak, and decays as it is to."""
    for fraction in (0.0, 0.2, 0.95, 1.0):
        config = OptimizerConfig(schedule=schedule, decay_fraction=fraction)
        left = round(steps * (1 - fraction)) if schedule == "wsd" else steps
        assert warmup(config, steps) == min(100, steps // 10, left)
        assert not warmup_fault(config, steps)
        if steps in (10, 25):
            found = rates(steps, schedule=schedule, decay_fraction=fraction, final_fraction=0.0)
            assert max(found) > 0.89
            assert found[steps - 1] == pytest.approx(
                1.0 if schedule == "constant" or (not fraction and schedule == "wsd") else 0.0, abs=1e-6
            )


FAULTS = {
    (100, 10, "cosine", 0.2): "longer than the run: the learning rate reaches 10% of its peak",
    (11, 10, "constant", 0.2): "longer than the run: the learning rate reaches 91% of its peak",
    (50, 20, "wsd", 0.2): "longer than the run: the learning rate reaches 40% of its peak",
    (10, 10, "cosine", 0.2): "as long as the run: no step is left for the decay",
    (1, 1, "linear", 0.2): "as long as the run: no step is left for the decay",
    (9, 10, "wsd", 0.5): "into the decay: 1 of its 5 steps are left",
    (10, 10, "wsd", 0.2): "into the decay: 0 of its 2 steps are left",
    (9, 10, "cosine", 0.2): "",
    (10, 10, "constant", 0.2): "",
    (5, 10, "wsd", 0.5): "",
    (10, 10, "wsd", 0.0): "",
    (0, 1, "cosine", 0.2): "",
}


@pytest.mark.parametrize("case", FAULTS, ids=str)
def test_a_warmup_that_does_not_fit_is_described(case):
    warmup_steps, steps, schedule, fraction = case
    config = OptimizerConfig(schedule=schedule, warmup_steps=warmup_steps, decay_fraction=fraction)
    assert warmup_fault(config, steps) == FAULTS[case]


@pytest.mark.parametrize(
    "config",
    [
        {"warmup_steps": 0},
        {"warmup_steps": 500},
        {"schedule": "wsd", "decay_fraction": 0.0},
        {"schedule": "wsd", "decay_fraction": 1.0},
    ],
)
def test_schedules_are_finite_at_their_edges(config):
    found = rates(4, **config)
    assert all(0 < rate <= 1 for rate in found)
    if config == {"warmup_steps": 0}:
        assert found[0] > 0.8


def test_clipping_scales_gradients_to_the_norm():
    sgd_free = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant", weight_decay=0.0)
    import dataclasses

    free = train(PRESETS["single"], {}, steps=1, optimizer=dataclasses.replace(sgd_free, clip_norm=0.0))
    clipped = train(PRESETS["single"], {}, steps=1, optimizer=dataclasses.replace(sgd_free, clip_norm=0.01))
    norm = free[0][0]["gradient_norm"]
    assert clipped[0][0]["gradient_norm"] == pytest.approx(
        norm, rel=1e-6
    )  # the norm that is logged is the one before
    first_moment = lambda state: state.moments[0].mu["embedding"]  # noqa: E731
    np.testing.assert_allclose(
        first_moment(clipped[1]), first_moment(free[1]) * (0.01 / norm), rtol=1e-3, atol=1e-12
    )  # 1e-6 is added to the norm


def test_moving_average_follows_its_formula():
    decay, steps = 0.8, 4
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant")
    history = [
        train(PRESETS["single"], {}, steps=n, optimizer=config, ema_decay=decay)[1]
        for n in range(1, steps + 1)
    ]
    from llm_jax.layout.layout import MeshPlacement
    from llm_jax.layout.mesh import make_mesh
    from llm_jax.train.state import TrainModel

    place = MeshPlacement(PRESETS["single"], make_mesh(PRESETS["single"], {}))
    average = np.asarray(
        TrainModel(SMALL.resolved(), config, place).new_state(0).parameters["embedding"], np.float64
    )
    for state in history:
        average = decay * average + (1 - decay) * np.asarray(state.parameters["embedding"], np.float64)
    np.testing.assert_allclose(history[-1].average["embedding"], average, rtol=1e-5, atol=1e-7)
