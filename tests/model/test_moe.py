"""The mixture of experts, compared with plain loops over tokens and experts in NumPy; its losses, loads and
biases."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm_jax.layout.presets import PRESETS
from llm_jax.model import router
from llm_jax.model.accounting import active_parameters, matmul_parameters
from llm_jax.model.config import ModelConfig, MoEConfig
from llm_jax.model.dims import Placement
from llm_jax.model.grouped_matmul import grouped_product
from llm_jax.model.moe import MoE, capacity
from llm_jax.model.transformer import Transformer
from tests.training import SMALL, train

E, K, B, T, D, F = 8, 3, 2, 40, 16, 24
SMALL_MOE = dataclasses.replace(SMALL, moe=MoEConfig(experts=8, top_k=2, mlp=16))
# float32 sums of 16 to 40 products, in another order; results are near 1, some near 10
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def config_of(**moe: object) -> ModelConfig:
    return ModelConfig(
        layers=1, embed=D, heads=2, vocab=8, init_std=0.5, moe=MoEConfig(experts=E, top_k=K, mlp=F, **moe)
    ).resolved()  # type: ignore[arg-type]


def block_of(config: ModelConfig) -> MoE:
    return MoE(config, nnx.Rngs(0), None, Placement())


@functools.partial(jax.jit, static_argnums=0)
def _applied(graph, state, x, segments, weights):
    return nnx.merge(graph, state)(x, segments > 0, weights)


def applied(
    block: MoE, x: np.ndarray, segments: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, router.Routing]:
    """The outputs of a block, jitted."""
    y, routing = _applied(*nnx.split(block), x, segments, weights)
    return np.asarray(y), routing


def some_input(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(x_BTD, segments), with padding at the end of the first row."""
    x = np.random.default_rng(seed).normal(size=(B, T, D)).astype(np.float32)
    segments = np.ones((B, T), np.int32)
    segments[0, -5:] = 0
    return x, segments


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def route_one(logits: np.ndarray, bias: np.ndarray, c: MoEConfig) -> tuple[list[int], list[float]]:
    """One token's experts, best first, and their weights, by the papers' definitions in float64."""
    scores = softmax(logits) if c.scores == "softmax" else 1 / (1 + np.exp(-logits))
    judged = scores + bias
    size = c.experts // c.groups
    by_group = sorted(range(c.groups), key=lambda g: -sum(sorted(judged[g * size : (g + 1) * size])[-2:]))
    allowed = [e for g in by_group[: c.top_groups] for e in range(g * size, (g + 1) * size)]
    chosen = sorted(allowed, key=lambda e: -judged[e])[: c.top_k]
    weights = [scores[e] / (sum(scores[i] for i in chosen) if c.normalise else 1) * c.scale for e in chosen]
    return chosen, weights


def expert(block: MoE, e: int, x: np.ndarray) -> np.ndarray:
    """The output of expert e for one token, in float64."""
    gate, up, down = (np.asarray(w[...][e], np.float64) for w in (block.gate, block.up, block.down))
    g = x @ gate
    return (g / (1 + np.exp(-g)) * (x @ up)) @ down


def by_loops(block: MoE, x: np.ndarray, room: int | None = None) -> np.ndarray:
    """y_BTD, token by token in float64. room: the most tokens of a row that an expert takes."""
    moe, y = block.config.moe, np.zeros(x.shape)
    bias = np.asarray(block.bias[...], np.float64) if moe.bias else np.zeros(E)
    for b in range(B):
        taken = dict.fromkeys(range(E), 0)
        for t in range(T):
            token = x[b, t].astype(np.float64)
            for e, weight in zip(
                *route_one(token @ np.asarray(block.router[...], np.float64), bias, moe), strict=True
            ):
                taken[e] += 1
                if room is None or taken[e] <= room:
                    y[b, t] += weight * expert(block, e, token)
    return y


ROUTERS = {
    "mixtral: softmax over the chosen": {},
    "qwen 3: softmax over all": {"normalise": False},
    "deepseek v3": {"scores": "sigmoid", "bias": True, "groups": 4, "top_groups": 2, "scale": 2.5},
    "softmax with bias": {"bias": True},
}


@pytest.mark.parametrize("variant", ROUTERS)
@pytest.mark.parametrize("product", ["loop", "ragged_dot"])
def test_dropless_equals_a_loop_over_tokens_and_experts(variant, product):
    block = block_of(config_of(product=product, **ROUTERS[variant]))
    if block.config.moe.bias:
        block.bias[...] = jnp.asarray(np.random.default_rng(1).normal(size=E) * 0.3, jnp.float32)
    x, segments = some_input()
    y, routing = applied(block, x, segments)
    np.testing.assert_allclose(y, by_loops(block, x), **TIGHT)
    assert float(jnp.sum(routing.load_PE)) == K * (segments > 0).sum()
    assert float(jnp.sum(routing.dropped_PE)) == 0


def test_softmax_over_the_chosen_is_softmax_over_all_divided_by_its_sum():
    logits = np.random.default_rng(0).normal(size=(1, 5, E)).astype(np.float32)
    weights, experts, _ = router.choose(jnp.asarray(logits), None, config_of().moe)
    np.testing.assert_allclose(weights, softmax(np.take_along_axis(logits, np.asarray(experts), -1)), **TIGHT)


def dense_form(block: MoE, x: jax.Array, real_BT: jax.Array) -> jax.Array:
    """Every expert on every token, with weight zero if it was not chosen: a form whose gradients autodiff
    gets right."""
    weights, experts, _ = router.choose(
        jnp.einsum("BTD,DE->BTE", x, block.router[...]), None, block.config.moe
    )
    weights_BTE = jnp.sum(jnp.where(experts[..., None] == jnp.arange(E), weights[..., None], 0), 2)
    up, gate = (jnp.einsum("BTD,EDF->BTEF", x, w[...]) for w in (block.up, block.gate))
    return jnp.einsum("BTEF,EFD,BTE->BTD", jax.nn.silu(gate) * up, block.down[...], weights_BTE)


@pytest.mark.parametrize(
    "moe", [{}, {"product": "ragged_dot"}, {"dispatch": "capacity", "capacity_factor": 8.0}], ids=str
)
def test_gradients_equal_those_of_the_dense_form(moe):
    graph, weights = nnx.split(block_of(config_of(**moe)))
    x, segments = (jnp.asarray(a) for a in some_input())
    target = jnp.asarray(some_input(1)[0])
    loss = lambda form: lambda w, x: jnp.sum(target * form(nnx.merge(graph, w), x, segments > 0))  # noqa: E731
    ours = jax.jit(jax.grad(loss(lambda block, *a: block(*a)[0]), (0, 1)))(weights, x)
    theirs = jax.jit(jax.grad(loss(dense_form), (0, 1)))(weights, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # sums of up to 80 products of three
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("factor", [0.3, 1.0, 8.0])
def test_capacity_keeps_the_first_tokens_of_each_row_and_drops_the_rest(factor):
    block = block_of(config_of(dispatch="capacity", capacity_factor=factor))
    x, segments = some_input()
    room = capacity(block.config.moe, T)
    assert room == min(T, {0.3: 5, 1.0: 15, 8.0: T}[factor])
    y, routing = applied(block, x, segments)
    np.testing.assert_allclose(y, by_loops(block, x, room), **TIGHT)
    assert float(jnp.sum(routing.load_PE)) == K * (segments > 0).sum()
    rows = [applied(block, x[b : b + 1], np.ones((1, T)))[1] for b in range(B)]
    for row in rows:
        np.testing.assert_array_equal(row.dropped_PE, np.maximum(row.load_PE - room, 0))
    dropped = float(jnp.sum(routing.dropped_PE))
    assert (dropped > 0) == (factor < 8)
    assert dropped <= sum(float(jnp.sum(row.dropped_PE)) for row in rows)  # without those of padding


def test_a_tokens_output_depends_on_no_later_token():
    block = block_of(config_of(dispatch="capacity", capacity_factor=0.5))
    x, segments = some_input()
    later = x.copy()
    later[:, 20:] = some_input(3)[0][:, 20:]
    y, other = (applied(block, a, segments)[0] for a in (x, later))
    np.testing.assert_array_equal(y[:, :20], other[:, :20])
    assert np.abs(y[:, 20:] - other[:, 20:]).max() > 0.1


def test_every_token_goes_through_the_shared_expert():
    config = config_of(shared_mlp=12)
    block = block_of(config)
    x, segments = some_input()
    y, _ = applied(block, x, segments)
    assert block.shared.up[...].shape == (D, 12)
    np.testing.assert_allclose(y, by_loops(block, x) + np.asarray(block.shared(jnp.asarray(x))), **TIGHT)


@pytest.mark.parametrize("sizes", [[0, 0, 300, 0], [64, 1, 0, 130], [10, 20, 30, 40], [0, 0, 0, 0]])
def test_grouped_products_equal_each_groups_product(sizes):
    rng = np.random.default_rng(0)
    x, w, dy = (rng.normal(size=shape).astype(np.float32) for shape in ((300, 6), (4, 6, 5), (300, 5)))

    @jax.jit
    def both(x, w, sizes, dy):
        y, back = jax.vjp(lambda x, w: grouped_product(x, w, sizes, "loop"), x, w)
        return y, *back(dy)

    y, dx, dw = both(x, w, jnp.asarray(sizes, jnp.int32), dy)
    expected = {"y": np.zeros_like(dy), "dx": np.zeros_like(x), "dw": np.zeros_like(w)}
    for e, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
        rows = slice(end - size, end)
        expected["y"][rows], expected["dx"][rows], expected["dw"][e] = (
            x[rows] @ w[e],
            dy[rows] @ w[e].T,
            x[rows].T @ dy[rows],
        )
    for name, found in (("y", y), ("dx", dx), ("dw", dw)):
        # sums of up to 300 products near 1
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("over", ["batch", "sequence"])
def test_router_losses_are_the_papers(over):
    config = config_of(balance_over=over, balance_loss=0.3, z_loss=0.2)
    block = block_of(config)
    x, segments = some_input()
    weights = np.random.default_rng(2).random((B, T)) * (segments > 0)
    _, routing = applied(block, x, segments, weights.astype(np.float32))
    loss, sums = router.losses(config, jax.tree.map(lambda a: a[None], routing), jnp.float32(weights.sum()))
    logits = x.astype(np.float64) @ np.asarray(block.router[...], np.float64)
    counts = segments > 0

    def balance(rows: list[int]) -> float:
        keep = counts[rows]
        p = softmax(logits[rows])[keep]
        f = (
            np.mean(
                [
                    np.isin(np.arange(E), route_one(token, np.zeros(E), config.moe)[0])
                    for token in logits[rows][keep]
                ],
                0,
            )
            / K
        )
        return E * float(f @ p.mean(0))

    z = [np.mean(np.log(np.exp(logits[b][counts[b]]).sum(-1)) ** 2) for b in range(B)]
    row = weights.sum(-1)
    expected_balance = (
        balance([0, 1]) * row.sum() if over == "batch" else sum(balance([b]) * row[b] for b in range(B))
    )
    np.testing.assert_allclose(sums["balance_loss"], expected_balance, rtol=1e-5)
    np.testing.assert_allclose(sums["router_z_loss"], z @ row, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.3 * expected_balance + 0.2 * (z @ row), rtol=1e-5)
    # an objective that counts something else than tokens, such as pairs: coefficients refer to its mean too
    pairs, _ = router.losses(config, jax.tree.map(lambda a: a[None], routing), jnp.float32(3))
    np.testing.assert_allclose(pairs / 3, loss / weights.sum(), rtol=1e-5)


def test_a_balanced_router_has_a_balance_loss_of_one():
    load = jnp.full((1, 2, E), 5.0)
    tokens = jnp.sum(load, -1) / K
    routing = router.Routing(load, load * 0, load / K, tokens, tokens * 0, tokens * 0, tokens)
    _, sums = router.losses(config_of(), routing, jnp.float32(7))
    assert float(sums["balance_loss"]) / 7 == pytest.approx(1, rel=1e-6)


def run(
    steps: int = 20,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    model: ModelConfig = SMALL_MOE,
    **moe: object,
):
    model = dataclasses.replace(model, moe=dataclasses.replace(model.moe, **moe))  # type: ignore[arg-type]
    return train(
        PRESETS["single"], {}, steps=steps, microbatches=microbatches, ema_decay=ema_decay, model=model
    )


def test_biases_even_out_the_loads():
    """All tokens prefer the first experts: biases bring the largest load from over twice the mean to near
    it."""
    config = config_of(scores="sigmoid", bias=True, bias_rate=0.005).moe
    logits = jnp.asarray(
        np.random.default_rng(0).normal(size=(1, 2000, E)) + np.linspace(4, 0, E), jnp.float32
    )

    @jax.jit
    def step(bias_E):
        load_1E = jnp.sum(jax.nn.one_hot(router.choose(logits, bias_E, config)[1], E), (0, 1, 2))[None]
        return bias_E + router.bias_change(config, load_1E)[0], jnp.max(load_1E) / jnp.mean(load_1E)

    bias_E, loads = jnp.zeros(E), []
    for _ in range(300):
        bias_E, load = step(bias_E)
        loads.append(float(load))
    assert loads[0] > 2
    assert max(loads[-20:]) < 1.15  # it goes on swinging by what one step of the rate moves


def test_biases_move_by_their_rate_and_nothing_else_moves_them():
    rate = 0.25
    _, state, _ = run(3, bias=True, bias_rate=rate)
    moved = np.asarray(state.parameters["blocks"]["mlp"]["bias"]) / rate
    assert moved.shape == (2, 8)
    np.testing.assert_array_equal(moved, np.round(moved))  # no learning rate, decay or gradient
    assert np.abs(moved).max() in (1, 2, 3)
    for tree in jax.tree.leaves(state.moments, is_leaf=lambda x: isinstance(x, dict)):
        if isinstance(tree, dict):
            assert float(jnp.abs(tree["blocks"]["mlp"]["bias"]).max()) == 0


@pytest.mark.slow  # tests/parity/test_experts.py has microbatches on a mesh
def test_microbatches_agree_with_the_whole_batch_where_balance_is_of_each_sequence():
    """Losses and loads. (With balance_over=batch, shares and means are of each microbatch, and losses
    differ.)"""
    whole, parts = (run(8, n, bias=True, balance_over="sequence")[0] for n in (1, 4))
    for name in ("train_loss", "gradient_norm", "balance_loss", "router_z_loss", "expert_load_max"):
        # as tests/parity
        np.testing.assert_allclose(
            [m[name] for m in parts], [m[name] for m in whole], rtol=1e-5, err_msg=name
        )


def test_dense_layers_among_sparse_ones_run_in_their_order():
    model = dataclasses.replace(
        SMALL_MOE, layers=4, moe=dataclasses.replace(SMALL_MOE.moe, dense_layers=(0, 2))
    )
    scanned, state, _ = run(4, model=model)
    unrolled, _, _ = run(4, model=dataclasses.replace(model, scan_layers=False, remat="full"))
    blocks, dense = state.parameters["blocks"], state.parameters["dense_blocks"]
    assert blocks["mlp"]["up"].shape == (2, 8, 32, 16)
    assert dense["mlp"]["up"].shape == (2, 32, 64)
    # other order of sums
    np.testing.assert_allclose(
        [m["train_loss"] for m in scanned], [m["train_loss"] for m in unrolled], rtol=1e-5
    )


def test_flops_and_active_parameters_count_the_experts_that_a_token_is_sent_to():
    moe = MoEConfig(experts=8, top_k=2, mlp=16, shared_mlp=24, dense_layers=(0,))
    model = ModelConfig(layers=3, embed=32, heads=4, mlp=64, vocab=100, moe=moe).resolved()
    _, weights = nnx.split(nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0))))
    total = sum(w.size for w in jax.tree.leaves(weights))
    attention, dense, expert_, shared, router_, table = (
        4 * 32 * 32,
        3 * 32 * 64,
        3 * 32 * 16,
        3 * 32 * 24,
        32 * 8,
        100 * 32,
    )
    # and the norms
    assert total == 3 * attention + dense + 2 * (8 * expert_ + shared + router_) + table + 7 * 32
    matmul = 3 * attention + dense + 2 * (2 * expert_ + shared + router_) + table
    assert matmul_parameters(model) == matmul
    assert active_parameters(model, total) == matmul + 7 * 32
