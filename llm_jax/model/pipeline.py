"""The pipeline: stages of devices hold different layers, and the batch flows through them in microbatches.

All stages run one program, a scan over ticks. In a tick each stage takes one microbatch through its layers
and sends it to the next stage, so that microbatch m is with stage s in tick m + s (GPipe, Huang et al. 2019).
Autodiff reverses the scan: the backward pass is a pipeline from the last stage to the first. With several
rounds the layers are divided into rounds x stages groups, and S microbatches at a time pass through all
stages `rounds` times (interleaved schedule, Narayanan et al. 2021). Of M * rounds + S - 1 ticks a stage is
idle in S - 1: it then computes on whatever array is there, and the result is not used.

Outside of the blocks the stages split the batch, so that embedding and head are computed once. Each
microbatch is kept by the stage that has its rows. A ring of sends brings it to stage 0 in time, and takes it
back when it is finished: no stage has more of the stream than its own rows and the inputs of its ticks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.model.dims import StagePlacement
from llm_jax.model.weights import Weight, sum_uses_first

STREAM = ("batch", "sequence", "embed")
Layers = Callable[..., tuple[jax.Array, Any]]
"""layers(weights, x_BTD, *beside_BT) → (x_BTD, sums): runs a stack of layers. The sums are a tree of arrays
[layers, ...]."""


def run_pipeline(
    layers: Layers, place: StagePlacement, weights: Any, x_BTD: jax.Array, *beside_BT: jax.Array | None
) -> tuple[jax.Array, Any]:
    """Runs `layers` over all weights, a part of them on each stage: (x_BTD, sums).

    weights: a tree of `Weight`, each [layers, ...]. x_BTD: in the residual placement, like the result.
    beside_BT: integers that belong to the rows (positions, documents), or None. The sums [layers, ...] are
    over all rows of the batch.
    """
    axes, inside, config = place.axes("layers"), place.in_stage(), place.pipeline
    rounds = config.rounds
    # axes whose devices have their own rows
    alone = tuple(axis for axis in place.axes("batch") if axis not in (*axes, *inside.axes("batch")))

    def run(weights, x_BTD, *beside_BT):
        S, s = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
        forward, back = ([(i, (i + step) % S) for i in range(S)] for step in (1, -1))
        weights = jax.tree.map(
            lambda w: sum_uses_first(w, inside), weights, is_leaf=lambda w: isinstance(w, Weight)
        )
        n = config.per_stage(x_BTD.shape[0] // inside.size(inside.axes("batch")), S)
        items = n * S * rounds
        beside_MBT = [
            None if b is None else jax.lax.all_gather(to_microbatches(b, n), axes, tiled=True)
            for b in beside_BT
            # small, so every stage has all of them
        ]

        def compute(weights, x_BTD, i):
            m, r = i // (S * rounds) * S + i % S, i // S % rounds
            if rounds > 1:
                weights = jax.tree.map(
                    lambda w: jax.lax.dynamic_index_in_dim(w, r, 0, keepdims=False), weights
                )
            return layers(
                weights,
                x_BTD,
                *(
                    None if b is None else jax.lax.dynamic_index_in_dim(b, m, 0, keepdims=False)
                    for b in beside_MBT
                ),
            )

        if rounds == 1:  # outside the scan, which would keep the slices for the backward pass
            weights = jax.tree.map(lambda w: w[0], weights)
        if config.remat:
            compute = jax.checkpoint(compute, prevent_cse=False)

        def exchange(y_BTD, io_NBTD, t):
            """Stage 0 takes the next microbatch from the ring and puts the finished one, which it has just
            received, in its place."""
            slot = (t // (S * rounds) * S + t % S) % n
            rests_BTD = jax.lax.dynamic_index_in_dim(io_NBTD, slot, 0, keepdims=False)
            moved_BTD = jax.lax.ppermute(jnp.where(s == 0, y_BTD, rests_BTD), axes, back)
            return jnp.where(s == 0, rests_BTD, y_BTD), jax.lax.dynamic_update_index_in_dim(
                io_NBTD, moved_BTD, slot, 0
            )

        def tick(carry, t):
            y_BTD, io_NBTD = carry
            if rounds == 1:
                x_BTD, io_NBTD = exchange(y_BTD, io_NBTD, t)
            else:  # in later rounds stage 0 receives its microbatch from the last stage
                x_BTD, io_NBTD = jax.lax.cond(
                    t // S % rounds == 0, exchange, lambda y, io, t: (y, io), y_BTD, io_NBTD, t
                )
            i = t - s
            x_BTD, sums = compute(weights, x_BTD, jnp.clip(i, 0, items - 1))
            counts = (jnp.arange(rounds) == i // S % rounds) & (i >= 0) & (i < items)
            sums = jax.tree.map(lambda a: jnp.where(counts.reshape(rounds, *[1] * a.ndim), a, 0), sums)
            return (jax.lax.ppermute(x_BTD, axes, forward), io_NBTD), sums

        io_NBTD, ticks = to_microbatches(x_BTD, n), items + S - 1
        # idle stages compute on real rows: on zeros a norm without epsilon is NaN, and NaN times a zero
        # cotangent stays NaN
        (y_BTD, io_NBTD), sums = jax.lax.scan(tick, (io_NBTD[0], io_NBTD), jnp.arange(ticks))
        _, io_NBTD = exchange(y_BTD, io_NBTD, ticks)
        return rejoin(jnp.roll(io_NBTD, -S, 0)), jax.tree.map(
            lambda a: jax.lax.psum(jnp.sum(a, 0), alone), sums
        )

    stage_weights = jax.tree.map(lambda w: place.reshard_to_stages(to_rounds(w, rounds)), weights)
    x_BTD, sums = place.by_stage(run, (STREAM, (None, "layers")))(stage_weights, x_BTD, *beside_BT)
    return x_BTD, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), sums)


def to_rounds(w: jax.Array, rounds: int) -> jax.Array:
    """[layers, ...] → [rounds, layers / rounds, ...]."""
    if rounds == 1:
        return w[None]
    return w.reshape(rounds, -1, *w.shape[1:], out_sharding=PartitionSpec(None, *jax.typeof(w).sharding.spec))


def to_microbatches(x_BT: jax.Array, n: int) -> jax.Array:
    """[B, T, ...] → n microbatches [n, B / n, T, ...]: every n-th row, so that each microbatch has rows of
    every device that splits them."""
    first, *others = jax.typeof(x_BT).sharding.spec
    parts = x_BT.reshape(-1, n, *x_BT.shape[1:], out_sharding=PartitionSpec(first, None, *others))
    return jnp.moveaxis(parts, 1, 0)


def rejoin(x_NBT: jax.Array) -> jax.Array:
    """The inverse of `to_microbatches`: [n, B / n, T, ...] → [B, T, ...]."""
    _, first, *others = jax.typeof(x_NBT).sharding.spec
    return jnp.moveaxis(x_NBT, 0, 1).reshape(-1, *x_NBT.shape[2:], out_sharding=PartitionSpec(first, *others))
