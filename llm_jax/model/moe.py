"""A mixture of experts: many feed-forward blocks, of which each token goes through the few that the router
chooses.

Experts are an array dim, `experts`, which a layout may split over a mesh axis. If the axis also splits the
batch, devices exchange tokens:

- dropless: each device gathers the tokens of all devices that share the experts of a layer, runs its own
  experts on them, and the results are summed over devices (all-gather, reduce-scatter). Shapes are those of
  the worst case, all tokens on one device;
- capacity: each device sends its rows' tokens to their experts' devices, and receives the results
  (all-to-all, twice).

If the axis splits nothing else, every device has all tokens, and the outputs of its experts are summed over
devices.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.errors import UserError
from llm_jax.model.config import ModelConfig, MoEConfig
from llm_jax.model.dims import Placement
from llm_jax.model.expert_matrix import expert_matrix, expert_matrix_dims, is_dims
from llm_jax.model.grouped_matmul import batched_product, block_rows, grouped_product
from llm_jax.model.mlp import ACTIVATIONS, FeedForward
from llm_jax.model.parametrization import residual_std
from llm_jax.model.router import Routing, choose, routing_sums
from llm_jax.model.weights import gathered, project, weight

TOKENS = ("batch", "sequence", None)
SUMS = (*[("batch", None)] * 3, *[("batch",)] * 4)
"""The dims of the arrays of a `Routing`, while devices hold their own parts."""


class MoE(nnx.Module):
    """The sum over the chosen experts of weight * down(act(gate(x)) * up(x)), plus a shared expert that takes
    every token."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layers: int | None, place: Placement):
        self.config, self.place = config, place
        D, E, F = config.embed, config.moe.experts, config.moe.mlp
        assert F is not None
        std = config.init_std
        self.router = weight(rngs, config, (D, E), ("embed", None), std, layers)
        if config.gated:
            self.gate = weight(rngs, config, (E, D, F), ("experts", "embed", "mlp"), std, layers)
        self.up = weight(rngs, config, (E, D, F), ("experts", "embed", "mlp"), std, layers)
        self.down = weight(rngs, config, (E, F, D), ("experts", "mlp", "embed"), residual_std(config), layers)
        if config.moe.bias:
            self.bias = weight(rngs, config, (E,), (None,), 0, layers, dtype="float32")
        if config.moe.shared_mlp:
            self.shared = FeedForward(config, rngs, layers, place, mlp=config.moe.shared_mlp)

    def __call__(
        self, x_BTD: jax.Array, real_BT: jax.Array | None = None, weights_BT: jax.Array | None = None
    ) -> tuple[jax.Array, Routing]:
        """x_BTD in the compute placement → (y_BTD in the residual placement, the routing's statistics).

        real_BT: bool, False for padding; None: no padding. weights_BT: the tokens' weights in the main loss;
        None: 1 each.
        """
        config, place, moe = self.config, self.place, self.config.moe
        check(config, place)
        logits_BTE = self.router_logits(x_BTD)
        ones_BT = jnp.ones_like(logits_BTE[..., 0])
        beside = [
            ones_BT if a is None else place.move(a.astype(jnp.float32), TOKENS[:2])
            for a in (real_BT, weights_BT)
        ]
        bias = [gathered(self.bias, config, place, "float32")] if moe.bias else []
        in_dims = (TOKENS, TOKENS[:2], TOKENS[:2], *[(None,)] * len(bias))
        route = place.local(functools.partial(_route, config, place), in_dims, (TOKENS, TOKENS, *SUMS))
        weights_BTk, slots_BTk, *sums = route(logits_BTE, *beside, *bias)
        weights = (self.gate, self.up, self.down) if config.gated else (self.up, self.down)
        matrices, structure = jax.tree.flatten([expert_matrix(w, config, place) for w in weights])
        dims = jax.tree.leaves([expert_matrix_dims(w) for w in weights], is_leaf=is_dims)
        form = functools.partial(
            _dropless if moe.dispatch == "dropless" else _capacity, config, place, structure
        )
        run = place.local(form, (TOKENS, TOKENS, TOKENS, *dims), TOKENS)
        y_BTD = run(x_BTD, weights_BTk, slots_BTk, *matrices)
        y_BTD = place.move(y_BTD, ("batch", "sequence", "embed"), "residual")
        return (y_BTD + self.shared(x_BTD) if moe.shared_mlp else y_BTD), Routing(*sums)

    def router_logits(self, x_BTD: jax.Array) -> jax.Array:
        """The router's logits_BTE, float32."""
        return project(
            "BTD,DE->BTE", x_BTD.astype(jnp.float32), self.router, self.config, self.place, dtype="float32"
        )


def check(config: ModelConfig, place: Placement) -> None:
    """Raises UserError for a layout that experts can't run under."""
    experts, tokens = place.axes("experts"), _token_axes(place)
    if config.moe.dispatch == "capacity" and place.axes("sequence"):
        raise UserError(
            "model.moe.dispatch=capacity: an expert's capacity is for a whole sequence, and the layout "
            "(compute) splits dim 'sequence' over "
            f"{', '.join(place.axes('sequence'))}; use model.moe.dispatch=dropless"
        )
    if 0 < len(set(experts) & set(tokens)) < len(experts):
        raise UserError(
            f"layout.compute.experts={', '.join(experts)}: either all of these axes split the batch or "
            "the sequence too, or none of them"
        )
    if place.axes("layers") and config.moe.dense_layers:
        raise UserError(
            f"model.moe.dense_layers={config.moe.dense_layers}: the layout splits dim 'layers' over "
            f"{', '.join(place.axes('layers'))}, and the "
            "stages of a pipeline hold layers of one kind; use a layout without a pipeline, or no dense "
            "layers"
        )
    if place.axes("embed"):
        raise UserError(
            f"layout.compute.embed={', '.join(place.axes('embed'))}: experts multiply whole rows; split "
            "'mlp' or 'experts'"
        )


def capacity(config: MoEConfig, tokens: int) -> int:
    """The most tokens of a sequence of `tokens` that an expert takes."""
    return min(tokens, math.ceil(config.capacity_factor * tokens * config.top_k / config.experts))


def _token_axes(place: Placement) -> tuple[str, ...]:
    """The mesh axes that split tokens where they are multiplied."""
    return (*place.axes("batch"), *place.axes("sequence"))


def _route(config: ModelConfig, place: Placement, logits_BTE, counts_BT, weights_BT, bias_E=None):
    """Routes one device's tokens: (weights_BTk, slots_BTk, the sums of `Routing`).

    A slot is a token's destination: the number of the expert or, with capacity, expert * capacity + index,
    and one past the last slot for tokens that are dropped. An expert's capacity is filled in the order of
    positions, at one position in the order of scores: no token is dropped because of a later one, and padding
    at the end of a row displaces nothing.
    """
    moe, E = config.moe, config.moe.experts
    weights_BTk, slots_BTk, probability_BTE = choose(logits_BTE, bias_E, moe)
    B, T, k = slots_BTk.shape
    sent_BTkE = slots_BTk[..., None] == jnp.arange(E)
    axes = place.axes("sequence")
    over = lambda a: jax.lax.psum(a, axes) if axes else a  # noqa: E731
    sent_BTE = jnp.any(sent_BTkE, 2) * counts_BT[..., None]
    load_1E, *sums = routing_sums(moe, logits_BTE, probability_BTE, sent_BTE, counts_BT, weights_BT, over)
    dropped_1E = jnp.zeros_like(load_1E)
    if moe.dispatch == "capacity":
        room = capacity(moe, T)
        before_BTkE = (
            jnp.cumsum(sent_BTkE.reshape(B, T * k, E).astype(jnp.int32), 1).reshape(sent_BTkE.shape) - 1
        )
        place_BTk = jnp.take_along_axis(before_BTkE, slots_BTk[..., None], -1)[..., 0]
        slots_BTk = jnp.where(place_BTk < room, slots_BTk * room + place_BTk, E * room)
        late_BTkE = sent_BTkE & (place_BTk >= room)[..., None]
        dropped_1E = over(jnp.sum(jnp.any(late_BTkE, 2) * counts_BT[..., None], (0, 1))[None])
    return weights_BTk, slots_BTk, load_1E, dropped_1E, *sums


def _dropless(config: ModelConfig, place: Placement, structure, x_BTD, weights_BTk, experts_BTk, *arrays):
    """Runs one device's experts on the tokens of all devices that share the experts, and sends the results
    back."""
    matrices = jax.tree.unflatten(structure, arrays)
    k, D = config.moe.top_k, x_BTD.shape[-1]
    axes = place.axes("experts")
    group = axes if set(axes) <= set(_token_axes(place)) else ()
    x_ND, weights_Nk, experts_Nk = (
        x_BTD.reshape(-1, D),
        weights_BTk.reshape(-1, k),
        experts_BTk.reshape(-1, k),
    )
    if group:
        x_ND, weights_Nk, experts_Nk = (
            jax.lax.all_gather(a, group, tiled=True) for a in (x_ND, weights_Nk, experts_Nk)
        )
    E = len(matrices[0].base)
    own_Nk = experts_Nk - _first_expert(axes, E)
    own_Nk = jnp.where((own_Nk >= 0) & (own_Nk < E), own_Nk, E)
    # rows sorted by expert; those of other devices' experts last
    choice_R = jnp.argsort(own_Nk.reshape(-1), stable=True).astype(jnp.int32)
    slots_Nk = (
        jnp.zeros_like(choice_R)
        .at[choice_R]
        .set(jnp.arange(len(choice_R), dtype=jnp.int32))
        .reshape(own_Nk.shape)
    )
    sizes_E = jnp.sum(own_Nk.reshape(-1, 1) == jnp.arange(E), 0, dtype=jnp.int32)
    rows_RD = take_rows(x_ND, choice_R // k, slots_Nk)
    # How often the loop over an expert's blocks runs depends on the tokens: a plan assumes even loads
    # (`plan.timeline`).
    expected = -(-len(choice_R) // config.moe.experts // block_rows(len(choice_R), E))
    with jax.named_scope(f"trips={expected}"):
        rows_RD = _feed_forward(
            config, lambda x, w: grouped_product(x, w, sizes_E, config.moe.product), rows_RD, matrices
        )
    y_ND = _combine(rows_RD, weights_Nk, slots_Nk, choice_R)
    y_ND = _sum_over(y_ND, place, group)
    if group:
        y_ND = jax.lax.psum_scatter(y_ND, group, tiled=True)
    return y_ND.reshape(x_BTD.shape)


def _capacity(config: ModelConfig, place: Placement, structure, x_BTD, weights_BTk, slots_BTk, *arrays):
    """Fills every expert's capacity for each row, sends it to the expert's device, and receives the
    results."""
    matrices = jax.tree.unflatten(structure, arrays)
    (B, T, D), k, E = x_BTD.shape, config.moe.top_k, config.moe.experts
    room = capacity(config.moe, T)
    axes = place.axes("experts")
    group = axes if set(axes) <= set(_token_axes(place)) else ()
    S = B * E * room
    slots_Nk = jnp.where(
        slots_BTk < E * room, slots_BTk + E * room * jnp.arange(B)[:, None, None], S
    ).reshape(-1, k)
    choice_S = (
        jnp.full(S, B * T * k, jnp.int32)
        .at[slots_Nk.reshape(-1)]
        .set(jnp.arange(B * T * k, dtype=jnp.int32), mode="drop")
    )
    rows_BECD = take_rows(x_BTD.reshape(-1, D), choice_S // k, slots_Nk).reshape(B, E, room, D)
    own = len(matrices[0].base)
    first = _first_expert(axes, own)
    if group:
        rows_BECD = jax.lax.all_to_all(rows_BECD, group, 1, 0, tiled=True)
    elif axes:
        rows_BECD = jax.lax.dynamic_slice_in_dim(rows_BECD, first, own, 1)
    y_BECD = _feed_forward(config, batched_product, rows_BECD, matrices)
    if group:
        y_BECD = jax.lax.all_to_all(y_BECD, group, 0, 1, tiled=True)
    elif axes:
        y_BECD = jax.lax.dynamic_update_slice_in_dim(
            jnp.zeros((B, E, room, D), y_BECD.dtype), y_BECD, first, 1
        )
    return _sum_over(
        _combine(y_BECD.reshape(S, D), weights_BTk.reshape(-1, k), slots_Nk, choice_S), place, group
    ).reshape(x_BTD.shape)


def _first_expert(axes: tuple[str, ...], experts: int) -> jax.Array | int:
    """The number of this device's first expert, where each device has `experts` of them."""
    return jax.lax.axis_index(axes) * experts if axes else 0


def _feed_forward(config: ModelConfig, product, x: jax.Array, matrices) -> jax.Array:
    """down(act(gate(x)) * up(x)), with `product(x, w)` as the product of rows with their experts'
    matrices."""
    *gate, up, down = matrices
    act = ACTIVATIONS[config.activation]
    up_x = checkpoint_name(up.product(product, x), "mlp_up")
    hidden = act(checkpoint_name(gate[0].product(product, x), "mlp_gate")) * up_x if gate else act(up_x)
    return down.product(product, hidden)


def _combine(
    rows_RD: jax.Array, weights_Nk: jax.Array, slots_Nk: jax.Array, choice_R: jax.Array
) -> jax.Array:
    """y_ND: each token's results from its k experts, weighted and summed in float32."""
    N, k = slots_Nk.shape
    rows_NkD = take_rows(rows_RD, slots_Nk.reshape(-1), choice_R[:, None]).reshape(N, k, -1)
    return jnp.einsum("NkD,Nk->ND", rows_NkD, weights_Nk, preferred_element_type=jnp.float32).astype(
        rows_RD.dtype
    )


def _sum_over(y_ND: jax.Array, place: Placement, group: tuple[str, ...]) -> jax.Array:
    """The sum over devices that have other hidden units of these experts, or other experts for these
    tokens."""
    axes = tuple(
        axis for axis in dict.fromkeys((*place.axes("experts"), *place.axes("mlp"))) if axis not in group
    )
    return jax.lax.psum(y_ND, axes) if axes else y_ND


@jax.custom_vjp
def take_rows(x_ND: jax.Array, index_R: jax.Array, back_Nk: jax.Array) -> jax.Array:
    """x_ND[index_R], with zeros where the index is N. back_Nk: the rows of the result that are copies of each
    row of x, R for none.

    By back_Nk the gradient is a sum of gathered rows, not a scatter, which adds row after row on CPUs and in
    any order on GPUs.
    """
    return x_ND.at[index_R].get(mode="fill", fill_value=0)


def _take_rows_forward(x_ND, index_R, back_Nk):
    return take_rows(x_ND, index_R, back_Nk), back_Nk


def _take_rows_backward(back_Nk, dy_RD):
    return (
        jnp.sum(dy_RD.at[back_Nk].get(mode="fill", fill_value=0), 1, dtype=jnp.float32).astype(dy_RD.dtype),
        None,
        None,
    )


take_rows.defvjp(_take_rows_forward, _take_rows_backward)
