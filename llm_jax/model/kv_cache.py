"""The cache of keys and values, and attention to it, so that decoding computes each position once.

A row of the cache is a slot, with a sequence of its own at a position of its own. A layer with a window keeps
no more than the window, in a ring: position p is stored at index p modulo the ring's length.

A row's result is bit-identical whatever the other rows are, and however much of the cache is read, as long as
that includes the row's positions: keys that a query doesn't see get a probability of exactly 0, and sums over
keys are made in blocks of fixed size, added in order.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.core.arithmetic import round_up
from llm_jax.model.attention import Attention, needed_heads
from llm_jax.model.attention_latent import LatentAttention
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Dims, Placement
from llm_jax.model.norm_and_rope import Rope, softcap

LEAST_BLOCK = 128
"""The least number of positions in a block."""
MOST_BLOCKS = 16
"""The most blocks of a cache; their sum is unrolled."""
RING_MULTIPLE = 16
"""The length of a cache is a multiple of this many positions."""
DIMS: Dims = ("batch", "kv_heads", None, "head_dim")
Q_DIMS: Dims = ("batch", None, "heads", "head_dim")
PROMPT_DIMS: Dims = (None, None, "kv_heads", "head_dim")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cache:
    """Keys and values of one layer, in the compute dtype; heads before positions, as products want them."""

    k_BGSK: jax.Array
    """Keys, rotated. With latent attention one head: each position's latent, and the rotated part of its
    key."""
    v_BGSK: jax.Array | None
    """Values. None with latent attention, whose values are the latents."""


def block_size(length: int) -> int:
    """The positions in a block of a cache that has `length` positions.

    >>> [block_size(n) for n in (16, 128, 129, 4096)]
    [16, 128, 128, 256]
    """
    return length if length <= LEAST_BLOCK else LEAST_BLOCK * -(-length // (LEAST_BLOCK * MOST_BLOCKS))


def cache_length(length: int) -> int:
    """The length of a cache with room for `length` positions: the next multiple of its block."""
    length = round_up(length, RING_MULTIPLE)
    return round_up(length, block_size(length))


def positions_kept(window: int | None, capacity: int) -> int:
    """The positions that a layer with this window keeps, for sequences of at most `capacity` positions."""
    return cache_length(capacity if window is None else min(window, capacity))


def empty_cache(config: ModelConfig, place: Placement, rows: int, capacity: int) -> Cache:
    """A cache of zeros for one layer (`config`: its `ModelConfig.of_layer`), with `rows` slots of at most
    `capacity` positions. To be jitted."""
    latent = config.latent
    heads, width = (
        (1, latent.kv_rank + latent.rope_dim)
        if latent.kv_rank
        else (config.kv_heads or config.heads, config.head_dim or 0)
    )
    shape = (rows, heads, positions_kept(config.window, capacity), width)

    def zeros() -> jax.Array:
        return place.move(jnp.zeros(shape, config.compute_dtype), DIMS)

    return Cache(zeros(), None if latent.kv_rank else zeros())


def attend_prompt(
    attention: Attention,
    cache: Cache,
    x_PTD: jax.Array,
    rope: Rope | None,
    lengths_P: jax.Array,
    slots_P: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Attention of whole prompts: (its output y_PTD in the residual placement, the cache with the prompts in
    their slots).

    lengths_P: the tokens of each prompt; padding after them is not stored. slots_P: each prompt's row of the
    cache; -1: none.
    """
    place = attention.place
    if isinstance(attention, LatentAttention):
        latents = attention.latents(x_PTD, rope)
        k_PTGK, v_PTGK = attention.keys_and_values(*latents)
        q_PTHK = attention.queries(x_PTD, rope)
        cache = Cache(
            write_prompt(cache.k_BGSK, jnp.concatenate(latents, -1)[:, :, None], lengths_P, slots_P, place),
            None,
        )
    else:
        q_PTHK, k_PTGK, v_PTGK = attention.heads(x_PTD, rope)
        assert cache.v_BGSK is not None
        cache = Cache(
            write_prompt(cache.k_BGSK, k_PTGK, lengths_P, slots_P, place),
            write_prompt(cache.v_BGSK, v_PTGK, lengths_P, slots_P, place),
        )
    return attention.project_out(attention.attend(q_PTHK, k_PTGK, v_PTGK, None)), cache


def attend_step(
    attention: Attention,
    cache: Cache,
    x_B1D: jax.Array,
    rope: Rope | None,
    positions_B: jax.Array,
    length: int,
) -> tuple[jax.Array, Cache]:
    """Attention of one new position in each row: (its output y_B1D in the residual placement, the cache with
    the position).

    length: how many positions of a cache without a window are read; at least 1 + the largest position that
    matters.

    Latent attention attends to the latents themselves (the absorbed form): to make the keys and values of all
    heads from them would take kv_rank * heads * (nope_dim + value_dim) products for every stored position, at
    every step.
    """
    config, place = attention.config, attention.place
    if isinstance(attention, LatentAttention):
        q_B1HC = attention.absorb_into_queries(attention.queries(x_B1D, rope))
        k_B11C = jnp.concatenate(attention.latents(x_B1D, rope), -1)[:, :, None]
        cache = Cache(write_step(cache.k_BGSK, k_B11C, positions_B, place), None)
        found_B1HC = decode_attention(q_B1HC, cache.k_BGSK, cache.k_BGSK, positions_B, length, config, place)
        return attention.project_out(attention.values(found_B1HC[..., : config.latent.kv_rank])), cache
    q_B1HK, k_B1GK, v_B1GK = attention.heads(x_B1D, rope)
    assert cache.v_BGSK is not None
    k_BGSK, v_BGSK = (
        write_step(cache.k_BGSK, k_B1GK, positions_B, place),
        write_step(cache.v_BGSK, v_B1GK, positions_B, place),
    )
    return attention.project_out(
        decode_attention(q_B1HK, k_BGSK, v_BGSK, positions_B, length, config, place)
    ), Cache(k_BGSK, v_BGSK)


def cache_spec(x_BGSK: jax.Array, place: Placement) -> Any:
    """The partition spec of a cache, for `local`'s `out_dims`: key/value heads that don't divide stay
    whole."""
    return PartitionSpec(*(axes or None for axes in place.split(DIMS, shape=x_BGSK.shape)))


def write_prompt(
    cache_BGSK: jax.Array, new_PTGK: jax.Array, lengths_P: jax.Array, slots_P: jax.Array, place: Placement
) -> jax.Array:
    """The cache with the rows of prompts rewritten: each prompt's newest positions that fit, and zeros
    elsewhere in the row."""
    axes = place.axes("batch")

    def run(cache_BGSK, new_PTGK, lengths_P, slots_P):
        rows, _, S, _ = cache_BGSK.shape
        position_PS = ring_positions(lengths_P - 1, S)
        row_PTGK = jnp.take_along_axis(new_PTGK, jnp.maximum(position_PS, 0)[:, :, None, None], 1)
        row_PGSK = jnp.swapaxes(jnp.where((position_PS >= 0)[:, :, None, None], row_PTGK, 0), 1, 2)
        own_P = slots_P - (jax.lax.axis_index(axes) * rows if axes else 0)
        own_P = jnp.where((own_P >= 0) & (own_P < rows), own_P, rows)
        return cache_BGSK.at[own_P].set(row_PGSK.astype(cache_BGSK.dtype), mode="drop")

    new_PTGK = place.move(new_PTGK, PROMPT_DIMS)  # every device that has slots needs all prompts
    return place.local(run, (DIMS, PROMPT_DIMS, (None,), (None,)), cache_spec(cache_BGSK, place))(
        cache_BGSK, new_PTGK, lengths_P, slots_P
    )


def write_step(
    cache_BGSK: jax.Array, new_B1GK: jax.Array, positions_B: jax.Array, place: Placement
) -> jax.Array:
    """The cache with the newest position of each row, positions_B, written."""

    def run(cache_BGSK, new_B1GK, positions_B):
        # One write for each head, though a row's heads could be written at once; a lone head of a lone row is
        # written twice. XLA fuses a single write with each of the products that read the cache, and copies
        # the cache twice for that (on a CPU a sixth of a step).
        B, G, S, _ = cache_BGSK.shape
        head_G = jnp.arange(G) if B * G > 1 else jnp.array([0, 0])
        new_BGK = new_B1GK[:, 0, head_G].astype(cache_BGSK.dtype)
        return cache_BGSK.at[jnp.arange(B)[:, None], head_G[None], (positions_B % S)[:, None]].set(new_BGK)

    dims = ("batch", None, "kv_heads", "head_dim")
    return place.local(run, (DIMS, dims, ("batch",)), cache_spec(cache_BGSK, place))(
        cache_BGSK, place.move(new_B1GK, dims), positions_B
    )


def ring_positions(newest_B: jax.Array, length: int) -> jax.Array:
    """int [B, length]: the position stored at each index of a ring once `newest` has been written; negative:
    none yet.

    >>> ring_positions(jnp.array([2, 5]), 4).tolist()
    [[0, 1, 2, -1], [4, 5, 2, 3]]
    """
    return newest_B[:, None] - (newest_B[:, None] - jnp.arange(length)) % length


def decode_attention(
    q_B1HK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    positions_B: jax.Array,
    length: int,
    config: ModelConfig,
    place: Placement,
) -> jax.Array:
    """out_B1HK: attention of one query in each row to the cache, with softmax and sums in float32 as in
    `model/kernels/`."""
    heads, kv_heads = place.split(Q_DIMS)[2], place.split(DIMS, shape=k_BGSK.shape)[1]
    group = q_B1HK.shape[2] // k_BGSK.shape[1]
    scale = (config.head_dim or 1) ** -0.5

    def run(q_B1HK, k_BGSK, v_BGSK, positions_B):
        B, _, H, K = q_B1HK.shape
        k_BGSK, v_BGSK = (needed_heads(x, H, group, heads, kv_heads, dim=1) for x in (k_BGSK, v_BGSK))
        S, size = k_BGSK.shape[2], block_size(k_BGSK.shape[2])
        seen = min(S, round_up(length, size))
        position_BS = ring_positions(positions_B, S)[:, :seen]
        mask_BS = position_BS >= 0
        if config.window is not None:
            mask_BS &= positions_B[:, None] - position_BS < config.window
        k_BGSK, v_BGSK = k_BGSK[:, :, :seen], v_BGSK[:, :, :seen]
        q_BGRK = q_B1HK.reshape(B, k_BGSK.shape[1], -1, K)
        s_BGRS = jnp.einsum("BGRK,BGSK->BGRS", q_BGRK, k_BGSK, preferred_element_type=jnp.float32) * scale
        s_BGRS = jnp.where(mask_BS[:, None, None], softcap(s_BGRS, config.attention_softcap), -jnp.inf)
        p_BGRS = jnp.exp(s_BGRS - jnp.max(s_BGRS, -1, keepdims=True))

        p_BGRns = p_BGRS.reshape(*p_BGRS.shape[:3], -1, size)
        # a slice for each block would be a copy of each
        v_BGnsK = v_BGSK.reshape(*v_BGSK.shape[:2], -1, size, K)
        out_BGnRK = jnp.einsum(
            "BGRns,BGnsK->BGnRK", p_BGRns.astype(v_BGnsK.dtype), v_BGnsK, preferred_element_type=jnp.float32
        )
        sum_BGRn = jnp.sum(p_BGRns, -1)
        blocks = range(seen // size)
        out_BGRK = functools.reduce(jnp.add, [out_BGnRK[:, :, n] for n in blocks])
        sum_BGR = functools.reduce(jnp.add, [sum_BGRn[..., n] for n in blocks])
        return (out_BGRK / sum_BGR[..., None]).reshape(B, 1, H, -1).astype(q_B1HK.dtype)

    return place.local(run, (Q_DIMS, DIMS, DIMS, ("batch",)), Q_DIMS)(
        place.move(q_B1HK, Q_DIMS), k_BGSK, v_BGSK, positions_B
    )
