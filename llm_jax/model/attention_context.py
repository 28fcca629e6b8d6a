"""Context parallelism: attention of queries whose sequence is split over devices.

The layout chooses the kind (each name is a preset):

- `context_gather`: `sequence` is split in `compute`. Each device has its queries, and gathers all keys and
  values (Llama 3, 2024).
- `context_ring`: `keys` is split too, in `attention`. Keys and values are passed on in a ring (Ring
  Attention, Liu et al. 2023).
- `context_ulysses`: in `attention`, `sequence` is whole and `heads` are split by its axes. An all-to-all
  gives each device whole rows of some heads (DeepSpeed-Ulysses, Jacobs et al. 2023). It does not use this
  module.

**The order of positions.** With causal attention the last queries see the most keys. So the sequence is
divided into 2 P chunks for P devices, and device i has chunks i and 2 P - 1 - i (the zigzag order): equal
work for all devices, in every step of the ring. The order costs an exchange of integers only, once a step:
the batch's tokens, targets, weights and positions (`arrange`). Every part of the model but attention works on
single positions, and attention knows the order. It applies wherever queries are split while they attend.

**The products.** A chunk attends to itself, causally, and to all chunks before it, masked only by documents
and windows. Each product returns its output and the statistics of its softmax, by which `merge` combines it
with others. The backward pass computes the scores again from the statistics over all keys, and fetches the
keys again: its residuals are the device's own queries, keys, values and output. Sums of several products,
also over devices, are in float32.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.model.attention_mask import Mask, causal
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.kernels import ChunkKernel, find_kernel

SUM_DTYPE = jnp.float32
Product = tuple[jax.Array, jax.Array]
"""(out_BTHK, lse_BHT) of some queries and some keys, float32: output, and log of the sum of exp(scores)."""


# --- the order of positions ---


def parts(place: Placement) -> int:
    """The number of devices that the queries of a row are split over while they attend."""
    return place.size(place.split(("batch", "sequence"), "attention")[1])


def length_multiple(place: Placement) -> int:
    """The number that a sequence's length must be a multiple of: two chunks for each device, and equal parts
    between blocks."""
    others = (place.size(place.split(("batch", "sequence"), table)[1]) for table in ("compute", "residual"))
    return math.lcm(2 * parts(place) if parts(place) > 1 else 1, *others)


def arrange(x: jax.Array, place: Placement) -> jax.Array:
    """An array [B, T, ...] from the natural order of positions to the layout's order, split as in
    `compute`."""
    P = parts(place)
    return _split(zigzag(_whole(x, place), P), place) if P > 1 else _split(x, place)


def restore(x: jax.Array, place: Placement) -> jax.Array:
    """The inverse of `arrange`: an array [B, T, ...] in natural order; if the layout's order differs, whole
    rows on every device."""
    P = parts(place)
    return unzigzag(_whole(x, place), P) if P > 1 else x


def zigzag(x: jax.Array, P: int) -> jax.Array:
    """[B, T, ...] from natural order to zigzag order: for each of P parts in turn its chunks i and 2
    P - 1 - i."""
    chunks = x.reshape(x.shape[0], 2 * P, -1, *x.shape[2:])
    return jnp.stack([chunks[:, :P], chunks[:, : P - 1 : -1]], 2).reshape(x.shape)


def unzigzag(x: jax.Array, P: int) -> jax.Array:
    """[B, T, ...] from zigzag order to natural order: the inverse of `zigzag`."""
    pairs = x.reshape(x.shape[0], P, 2, -1, *x.shape[2:])
    return jnp.concatenate([pairs[:, :, 0], pairs[:, ::-1, 1]], 1).reshape(x.shape)


def _split(x: jax.Array, place: Placement) -> jax.Array:
    return place.move(x, ("batch", "sequence", *(None,) * (x.ndim - 2)))


def _whole(x: jax.Array, place: Placement) -> jax.Array:
    return place.move(x, ("batch", None, *(None,) * (x.ndim - 2)))


# --- products of some queries with some keys ---


def merge(one: Product, two: Product) -> Product:
    """Attention to the union of two sets of keys, from attention to each."""
    (out1, lse1), (out2, lse2) = one, two
    lse = jnp.logaddexp(lse1, lse2)
    share1, share2 = (jnp.einsum("BHT->BTH", jnp.exp(x - lse))[..., None] for x in (lse1, lse2))
    return out1 * share1 + out2 * share2, lse


# --- attention on one device, inside `Placement.local` ---


class Split(NamedTuple):
    """How the sequence is split over devices."""

    axes: tuple[str, ...]
    """The mesh axes that split the sequence."""
    parts: int
    """The number of parts that the sequence is split into."""
    ring: bool
    """True: keys are passed on in a ring. False: every device gathers all keys."""
    config: ModelConfig
    """The layer's configuration."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention_split(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, segments_BS: jax.Array | None, split: Split
) -> jax.Array:
    """Causal attention of one device's chunks to the keys of all devices: out_BTHK in q's dtype.

    q, k, v: this device's two chunks of the sequence. segments_BS: the documents of whole rows, in natural
    order.
    """
    return _forward(q_BTHK, k_BTGK, v_BTGK, segments_BS, split)[0]


def _forward(q_BTHK, k_BTGK, v_BTGK, segments_BS, split: Split):
    schedule = _ring_forward if split.ring else _gather_forward
    out_BTHK, lse_BHT = schedule(
        q_BTHK,
        k_BTGK,
        v_BTGK,
        Chunks(segments_BS, q_BTHK.shape[1] // 2, split),
        find_kernel(split.config.attention).chunk_kernel(split.config),
    )
    out_BTHK, lse_BHT = (checkpoint_name(x, "attention") for x in (out_BTHK.astype(q_BTHK.dtype), lse_BHT))
    return out_BTHK, (q_BTHK, k_BTGK, v_BTGK, segments_BS, out_BTHK, lse_BHT)


def _chunk_kernel(split: Split) -> ChunkKernel:
    return find_kernel(split.config.attention).chunk_kernel(split.config)


def _backward(split: Split, saved, dout_BTHK):
    q_BTHK, k_BTGK, v_BTGK, segments_BS, out_BTHK, lse_BHT = saved
    schedule = _ring_backward if split.ring else _gather_backward
    chunks = Chunks(segments_BS, q_BTHK.shape[1] // 2, split)
    gradients = schedule(q_BTHK, k_BTGK, v_BTGK, out_BTHK, lse_BHT, dout_BTHK, chunks, _chunk_kernel(split))
    return (*(g.astype(q_BTHK.dtype) for g in gradients), None)


attention_split.defvjp(_forward, _backward)


class Chunks(NamedTuple):
    """The 2 P chunks of the sequence, and their masks."""

    segments_BS: jax.Array | None
    """The documents of whole rows in natural order; None: each row is one document."""
    length: int
    """The positions of a chunk."""
    split: Split

    def own(self) -> tuple[jax.Array, jax.Array]:
        """The numbers of this device's two chunks, the early and the late one."""
        me = jax.lax.axis_index(self.split.axes)
        return me, 2 * self.split.parts - 1 - me

    def segments(self, *chunks: jax.Array) -> jax.Array | None:
        """The documents of some chunks: [B, C] of one, otherwise [B N, C], in the order of `to_rows`."""
        if self.segments_BS is None:
            return None
        found = [
            jax.lax.dynamic_slice_in_dim(self.segments_BS, chunk * self.length, self.length, 1)
            for chunk in chunks
        ]
        return jnp.stack(found, 1).reshape(-1, self.length)

    def causal(self) -> Mask:
        """The mask of each of the device's chunks with itself, for [2 B, C] rows."""
        return causal(self.segments(*self.own()), self.split.config.window)

    def mask_between(self, batch: int, queries: tuple[jax.Array, ...], keys: tuple[jax.Array, ...]) -> Mask:
        """The mask of N chunks of queries, each with an earlier chunk of keys, for [N B, C] rows."""
        ahead = [(q - k) * self.length for q, k in zip(queries, keys, strict=True)]
        ahead_B = jnp.broadcast_to(jnp.stack(ahead), (batch, len(ahead))).reshape(-1)
        return Mask(self.segments(*queries), self.segments(*keys), ahead_B, self.split.config.window)

    def mask_before(self, batch: int, queries: jax.Array, count: int) -> Mask:
        """The mask of a chunk of queries with the chunks before it, of keys that are the first `count`
        chunks."""
        keys_BS = None if self.segments_BS is None else self.segments_BS[:, : count * self.length]
        return Mask(
            self.segments(queries),
            keys_BS,
            jnp.broadcast_to(queries * self.length, (batch,)),
            self.split.config.window,
        )


def to_rows(x_BT: jax.Array, n: int = 2) -> jax.Array:
    """[B, n C, ...] → [B n, C, ...]: each chunk becomes a row."""
    return x_BT.reshape(x_BT.shape[0] * n, x_BT.shape[1] // n, *x_BT.shape[2:])


def from_rows(x_BC: jax.Array, n: int = 2) -> jax.Array:
    """[B n, C, ...] → [B, n C, ...]: the inverse of `to_rows`."""
    return x_BC.reshape(x_BC.shape[0] // n, x_BC.shape[1] * n, *x_BC.shape[2:])


def halves(x: jax.Array, axis: int = 1) -> list[jax.Array]:
    """The early chunk and the late one of a device's positions."""
    return jnp.split(x, 2, axis)


def stats_to_rows(lse_BHT: jax.Array) -> jax.Array:
    """Statistics [B, H, 2 C] → [2 B, H, C], in the order of `to_rows`."""
    return jnp.stack(halves(lse_BHT, 2), 1).reshape(-1, lse_BHT.shape[1], lse_BHT.shape[2] // 2)


def stats_from_rows(lse_BHC: jax.Array) -> jax.Array:
    """Statistics [2 B, H, C] → [B, H, 2 C]: the inverse of `stats_to_rows`."""
    pairs = lse_BHC.reshape(-1, 2, *lse_BHC.shape[1:])
    return jnp.concatenate([pairs[:, 0], pairs[:, 1]], 2)


# --- all keys gathered ---


def _all_gather(x: jax.Array, split: Split) -> jax.Array:
    """Whole rows of keys or values in natural order, gathered from all devices."""
    return unzigzag(jax.lax.all_gather(x, split.axes, axis=1, tiled=True), split.parts)


def _earlier_counts(split: Split) -> tuple[int, int]:
    """The most chunks that can be before the early chunk of any device, and before the late one."""
    return split.parts - 1, 2 * split.parts - 1


def _gather_forward(q, k, v, chunks: Chunks, kernel: ChunkKernel) -> Product:
    """The device's chunks with themselves first: that product needs no other device and runs while the keys
    arrive."""
    B, split, C = q.shape[0], chunks.split, chunks.length
    keys, values = _all_gather(k, split), _all_gather(v, split)
    out, lse = kernel.forward(to_rows(q), to_rows(k), to_rows(v), chunks.causal())
    found = []
    out, lse = from_rows(out), stats_from_rows(lse)
    parts_of_rows = zip(
        halves(q), halves(out), halves(lse, 2), chunks.own(), _earlier_counts(split), strict=True
    )
    for q_c, out_c, lse_c, chunk, n in parts_of_rows:
        earlier = kernel.forward(q_c, keys[:, : n * C], values[:, : n * C], chunks.mask_before(B, chunk, n))
        found.append(merge((out_c, lse_c), earlier))
    (out1, lse1), (out2, lse2) = found
    return jnp.concatenate([out1, out2], 1), jnp.concatenate([lse1, lse2], 2)


def _gather_backward(q, k, v, out, lse, dout, chunks: Chunks, kernel: ChunkKernel):
    """Gradients of q, k, v. Those of all keys are summed over devices by the reduce-scatter that returns them
    to their devices."""
    B, split, C = q.shape[0], chunks.split, chunks.length
    keys, values = _all_gather(k, split), _all_gather(v, split)
    own = kernel.backward(
        to_rows(q), to_rows(k), to_rows(v), chunks.causal(), to_rows(out), stats_to_rows(lse), to_rows(dout)
    )
    dq, dk, dv = (from_rows(g.astype(SUM_DTYPE)) for g in own)
    more, dkeys, dvalues = [], jnp.zeros(keys.shape, SUM_DTYPE), jnp.zeros(values.shape, SUM_DTYPE)
    parts_of_rows = zip(
        halves(q),
        halves(out),
        halves(lse, 2),
        halves(dout),
        chunks.own(),
        _earlier_counts(split),
        strict=True,
    )
    for q_c, out_c, lse_c, dout_c, chunk, n in parts_of_rows:
        mask = chunks.mask_before(B, chunk, n)
        dq_c, dk_c, dv_c = kernel.backward(
            q_c, keys[:, : n * C], values[:, : n * C], mask, out_c, lse_c, dout_c
        )
        more.append(dq_c.astype(SUM_DTYPE))
        rest = [(0, 0), (0, keys.shape[1] - n * C), (0, 0), (0, 0)]
        dkeys, dvalues = (
            total + jnp.pad(d.astype(SUM_DTYPE), rest) for total, d in ((dkeys, dk_c), (dvalues, dv_c))
        )

    def scattered(d: jax.Array) -> jax.Array:
        return jax.lax.psum_scatter(zigzag(d, split.parts), split.axes, scatter_dimension=1, tiled=True)

    return dq + jnp.concatenate(more, 1), dk + scattered(dkeys), dv + scattered(dvalues)


# --- keys in a ring --- Steps are unrolled: JAX 0.11's compiler for GPUs crashes on cuDNN's kernel in a loop
# within the loop over layers. The barriers delay each send until its keys are needed: without them keys
# accumulate (with 8 parts, a seventh more memory for activations).


def _shift(x, split: Split):
    """Sends x to the next device of the ring; returns what the previous one sent."""
    return jax.lax.ppermute(x, split.axes, [(i, (i + 1) % split.parts) for i in range(split.parts)])


class Step(NamedTuple):
    """One step of the ring: two products of a chunk of queries with an earlier chunk of keys.

    This device has chunks i and 2 P - 1 - i of the queries and, in this step, chunks j and 2 P - 1 - j of the
    keys. The late queries always see the early keys. If j < i the early queries see the early keys, else the
    late queries see the late keys.
    """

    early: jax.Array
    """bool []: True if j < i, so that the early queries see the early keys."""
    mask: Mask
    """The mask of both products, as rows: the product that depends on `early` first."""

    def of_queries(self, x: jax.Array, axis: int = 1) -> jax.Array:
        """The chunks of x that the queries of both products have, as rows."""
        first, last = halves(x, axis)
        return jnp.stack([jnp.where(self.early, first, last), last], 1).reshape(-1, *first.shape[1:])

    def of_keys(self, x: jax.Array) -> jax.Array:
        """The chunks of x that the keys of both products have, as rows."""
        first, last = halves(x)
        return jnp.stack([first, jnp.where(self.early, first, last)], 1).reshape(-1, *first.shape[1:])

    def to_queries(self, d: jax.Array) -> jax.Array:
        """The terms of the queries' two chunks, from the rows d of both products."""
        one, two = (d.reshape(-1, 2, *d.shape[1:])[:, i] for i in range(2))
        return jnp.concatenate([jnp.where(self.early, one, 0), jnp.where(self.early, two, one + two)], 1)

    def to_keys(self, d: jax.Array) -> jax.Array:
        """The terms of the keys' two chunks, from the rows d of both products."""
        one, two = (d.reshape(-1, 2, *d.shape[1:])[:, i] for i in range(2))
        return jnp.concatenate([jnp.where(self.early, one + two, one), jnp.where(self.early, 0, two)], 1)


def _step(r: int, batch: int, chunks: Chunks) -> Step:
    """Step r, from 1 to P - 1: the keys come from the device r places before this one."""
    i, last_i = chunks.own()
    j = (i - r) % chunks.split.parts
    last_j = 2 * chunks.split.parts - 1 - j
    early = j < i
    mask = chunks.mask_between(batch, (jnp.where(early, i, last_i), last_i), (j, jnp.where(early, j, last_j)))
    return Step(early, mask)


def _ring_forward(q, k, v, chunks: Chunks, kernel: ChunkKernel) -> Product:
    """Out and statistics. Each step sends its keys on, and computes with them at the same time."""
    B, split = q.shape[0], chunks.split
    arriving = _shift((k, v), split)
    out, lse = kernel.forward(to_rows(q), to_rows(k), to_rows(v), chunks.causal())
    (out1, out2), (lse1, lse2) = halves(from_rows(out)), halves(stats_from_rows(lse), 2)
    q2, k1, v1 = halves(q)[1], halves(k)[0], halves(v)[0]
    own = chunks.own()
    out2, lse2 = merge((out2, lse2), kernel.forward(q2, k1, v1, chunks.mask_between(B, own[1:], own[:1])))

    def add(total, kv, r):
        (out1, lse1), (out2, lse2) = total
        step = _step(r, B, chunks)
        out, lse = kernel.forward(step.of_queries(q), step.of_keys(kv[0]), step.of_keys(kv[1]), step.mask)
        (out_a, out_b), (lse_a, lse_b) = (halves(from_rows(out)), halves(stats_from_rows(lse), 2))
        out2, lse2 = merge((out2, lse2), (out_b, lse_b))
        early = step.early
        out_a, lse_a = merge((jnp.where(early, out1, out2), jnp.where(early, lse1, lse2)), (out_a, lse_a))
        first = (jnp.where(early, out_a, out1), jnp.where(early, lse_a, lse1))
        last = (jnp.where(early, out2, out_a), jnp.where(early, lse2, lse_a))
        return first, last

    total, kv = ((out1, lse1), (out2, lse2)), arriving
    for r in range(1, split.parts):
        kv, total = jax.lax.optimization_barrier((kv, total))
        following = _shift(kv, split) if r < split.parts - 1 else kv
        total, kv = add(total, kv, r), following
    (out1, lse1), (out2, lse2) = total
    return jnp.concatenate([out1, out2], 1), jnp.concatenate([lse1, lse2], 2)


def _ring_backward(q, k, v, out, lse, dout, chunks: Chunks, kernel: ChunkKernel):
    """Gradients of q, k, v. Those of the keys are passed on in the ring too, one step late, so that each
    device's term is ready in time."""
    B, split = q.shape[0], chunks.split
    arriving = _shift((k, v), split)
    own = kernel.backward(
        to_rows(q), to_rows(k), to_rows(v), chunks.causal(), to_rows(out), stats_to_rows(lse), to_rows(dout)
    )
    dq, dk, dv = (from_rows(g.astype(SUM_DTYPE)) for g in own)
    last, first = [halves(x)[1] for x in (q, out, dout)], [halves(x)[0] for x in (k, v)]
    numbers = chunks.own()
    across = kernel.backward(
        last[0], *first, chunks.mask_between(B, numbers[1:], numbers[:1]), last[1], halves(lse, 2)[1], last[2]
    )
    dq_more, dk_more, dv_more = (g.astype(SUM_DTYPE) for g in across)
    dq += jnp.concatenate([jnp.zeros_like(dq_more), dq_more], 1)
    dk, dv = (
        total + jnp.concatenate([more, jnp.zeros_like(more)], 1)
        for total, more in ((dk, dk_more), (dv, dv_more))
    )

    def share(kv, r):
        """The terms of dq, dk and dv from the keys of step r."""
        step = _step(r, B, chunks)
        rest = (step.of_queries(out), step.of_queries(lse, 2), step.of_queries(dout))
        dq, dk, dv = kernel.backward(
            step.of_queries(q), step.of_keys(kv[0]), step.of_keys(kv[1]), step.mask, *rest
        )
        dq, dk, dv = (g.astype(SUM_DTYPE) for g in (dq, dk, dv))
        return step.to_queries(dq), (step.to_keys(dk), step.to_keys(dv))

    dkv, kv = (dk, dv), arriving
    for r in range(1, split.parts):
        kv, dkv, dq = jax.lax.optimization_barrier((kv, dkv, dq))
        following, arrived = _shift(kv, split) if r < split.parts - 1 else kv, _shift(dkv, split)
        dq_more, dkv_more = share(kv, r)
        dq, dkv, kv = dq + dq_more, jax.tree.map(jnp.add, arrived, dkv_more), following
    # the last send returns them to their own device
    return dq, *_shift(tuple(d.astype(k.dtype) for d in dkv), split)
