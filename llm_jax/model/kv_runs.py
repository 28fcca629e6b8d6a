"""Runs of several new positions, one run a row, read into the cache of keys and values.

Each position attends to the cache's keys in blocks of `BLOCK` positions that begin at multiples of it, and
sums over blocks are added in order. So what a position gives depends, bit for bit, only on the tokens before
it: not on the other rows, nor on how its text is cut into runs, nor on how much of the cache is read.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from llm_jax.model.attention import Attention, needed_heads
from llm_jax.model.attention_latent import LatentAttention
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.kv_cache import DIMS, Cache, cache_spec
from llm_jax.model.norm_and_rope import Rope, softcap

BLOCK = 128
"""The keys of a block; the length of a cache is a multiple of it."""
SCORE_BYTES = {"cpu": 2**22}
"""Platform → the most bytes of attention scores at once: what its caches hold. (Larger arrays are new memory
of the system in every call, page by page.)"""
MOST_SCORE_BYTES = 2**29
"""The same for other platforms."""
RUN_DIMS = ("batch", None, "kv_heads", "head_dim")
Q_DIMS = ("batch", None, "heads", "head_dim")


def empty_cache(config: ModelConfig, place: Placement, rows: int, length: int) -> Cache:
    """A cache of zeros for one layer (`config`: its `ModelConfig.of_layer`) that keeps all positions, with a
    window too: a run may go back to an earlier position. length: a multiple of `BLOCK`. To be jitted."""
    latent = config.latent
    heads, width = (
        (1, latent.kv_rank + latent.rope_dim)
        if latent.kv_rank
        else (config.kv_heads or config.heads, config.head_dim or 0)
    )

    def zeros() -> jax.Array:
        return place.move(jnp.zeros((rows, heads, length, width), config.compute_dtype), DIMS)

    return Cache(zeros(), None if latent.kv_rank else zeros())


def attend_runs(
    attention: Attention,
    cache: Cache,
    x_BTD: jax.Array,
    rope: Rope | None,
    rows_B: jax.Array,
    starts_B: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Attention of T new positions in each row: (its output y_BTD in the residual placement, the cache with
    the positions).

    rows_B: the row of the cache that each run is in, counted among the rows of its device; None: run i is in
    row i. starts_B: the position of each run's first token, at most the cache's length - T.
    """
    config, place = attention.config, attention.place
    if isinstance(attention, LatentAttention):
        q_BTHC = attention.absorb_into_queries(attention.queries(x_BTD, rope))
        k_BT1C = jnp.concatenate(attention.latents(x_BTD, rope), -1)[:, :, None]
        cache_BGSK, k_BGSK = write_runs(cache.k_BGSK, k_BT1C, rows_B, starts_B, place)
        found_BTHC = attend_rows(q_BTHC, k_BGSK, k_BGSK, starts_B, config, place)
        out_BTD = attention.project_out(attention.values(found_BTHC[..., : config.latent.kv_rank]))
        return out_BTD, Cache(cache_BGSK, None)
    q_BTHK, k_BTGK, v_BTGK = attention.heads(x_BTD, rope)
    assert cache.v_BGSK is not None
    (all_k_BGSK, k_BGSK), (all_v_BGSK, v_BGSK) = (
        write_runs(old, new, rows_B, starts_B, place)
        for old, new in ((cache.k_BGSK, k_BTGK), (cache.v_BGSK, v_BTGK))
    )
    out_BTHK = attend_rows(q_BTHK, k_BGSK, v_BGSK, starts_B, config, place)
    return attention.project_out(out_BTHK), Cache(all_k_BGSK, all_v_BGSK)


def write_runs(
    cache_BGSK: jax.Array, new_BTGK: jax.Array, rows_B: jax.Array, starts_B: jax.Array, place: Placement
) -> tuple[jax.Array, jax.Array]:
    """(the cache with the positions of each run written, the rows of the runs)."""

    def run(cache_BGSK, new_BTGK, rows_B, starts_B):
        new_BGTK = jnp.swapaxes(new_BTGK, 1, 2).astype(cache_BGSK.dtype)

        def write(i, cache_BGSK):
            return jax.lax.dynamic_update_slice(cache_BGSK, new_BGTK[i][None], (rows_B[i], 0, starts_B[i], 0))

        def write_row(i, both):
            cache_BGSK, found_BGSK = both
            row = jax.lax.dynamic_slice_in_dim(cache_BGSK, rows_B[i], 1)
            row = jax.lax.dynamic_update_slice(row, new_BGTK[i][None], (0, 0, starts_B[i], 0))
            put = jax.lax.dynamic_update_slice_in_dim
            return put(cache_BGSK, row, rows_B[i], 0), put(found_BGSK, row, i, 0)

        if len(rows_B) == len(cache_BGSK):
            cache_BGSK = jax.lax.fori_loop(0, len(rows_B), write, cache_BGSK)
            return cache_BGSK, cache_BGSK
        # The row that is read is the one that is written: of two readers XLA gives one a copy of the cache.
        found_BGSK = jnp.zeros((len(rows_B), *cache_BGSK.shape[1:]), cache_BGSK.dtype)
        return jax.lax.fori_loop(0, len(rows_B), write_row, (cache_BGSK, found_BGSK))

    dims, spec = (DIMS, RUN_DIMS, ("batch",), ("batch",)), cache_spec(cache_BGSK, place)
    return place.local(run, dims, (spec, spec))(cache_BGSK, place.move(new_BTGK, RUN_DIMS), rows_B, starts_B)


def copy_rows(
    cache_BGSK: jax.Array, from_P: jax.Array, to_P: jax.Array, count_B: jax.Array, place: Placement
) -> jax.Array:
    """The cache with rows copied to others in turn, each device among its own.

    from_P, to_P: equally many for each device, counted among its rows. count_B: how many of them each device
    copies.
    """

    def run(cache_BGSK, from_P, to_P, count_B):
        def copy(i, cache_BGSK):
            row = jax.lax.dynamic_slice_in_dim(cache_BGSK, from_P[i], 1)
            return jax.lax.dynamic_update_slice_in_dim(cache_BGSK, row, to_P[i], 0)

        return jax.lax.fori_loop(0, count_B[0], copy, cache_BGSK)

    dims = (DIMS, ("batch",), ("batch",), ("batch",))
    return place.local(run, dims, cache_spec(cache_BGSK, place))(cache_BGSK, from_P, to_P, count_B)


def attend_rows(
    q_BTHK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    starts_B: jax.Array,
    config: ModelConfig,
    place: Placement,
) -> jax.Array:
    """out_BTHK: attention of the queries of each run to its row of the cache up to themselves, with softmax
    and sums in float32 as in `model/kernels/`."""
    heads, kv_heads = place.split(Q_DIMS)[2], place.split(DIMS, shape=k_BGSK.shape)[1]
    group = q_BTHK.shape[2] // k_BGSK.shape[1]
    scale = (config.head_dim or 1) ** -0.5

    def run(q_BTHK, k_BGSK, v_BGSK, starts_B):
        B, T, H, _ = q_BTHK.shape
        k_BGSK, v_BGSK = (needed_heads(x, H, group, heads, kv_heads, dim=1) for x in (k_BGSK, v_BGSK))
        rows, length = chunk_of(B, T, H * k_BGSK.shape[2], place.platform())

        def chunk(i):
            """Some rows and positions of the runs."""
            row, first = i // (T // length) * rows, i % (T // length) * length
            q_btHK = jax.lax.dynamic_slice(q_BTHK, (row, first, 0, 0), (rows, length, *q_BTHK.shape[2:]))
            k_bGSK, v_bGSK = (jax.lax.dynamic_slice_in_dim(x, row, rows) for x in (k_BGSK, v_BGSK))
            starts_b = jax.lax.dynamic_slice_in_dim(starts_B, row, rows) + first
            return attend(q_btHK, k_bGSK, v_bGSK, starts_b, scale, config)

        if rows * length == B * T:
            return chunk(0)
        out_CbtHK = jax.lax.map(chunk, jnp.arange(B // rows * (T // length)))
        out_RCbtHK = out_CbtHK.reshape(B // rows, T // length, rows, length, H, -1)
        return jnp.swapaxes(out_RCbtHK, 1, 2).reshape(B, T, H, -1)

    return place.local(run, (Q_DIMS, DIMS, DIMS, ("batch",)), Q_DIMS)(
        place.move(q_BTHK, Q_DIMS), k_BGSK, v_BGSK, starts_B
    )


def chunk_of(rows: int, positions: int, scores: int, platform: str) -> tuple[int, int]:
    """(rows, positions) of the runs whose scores are computed at once, so that these take at most
    `SCORE_BYTES`: divisors of what there is. scores: numbers for each position.

    >>> chunk_of(32, 8, 9 * 1024, "cpu"), chunk_of(1, 256, 9 * 1024, "cpu")
    ((8, 8), (1, 64))
    """
    most = max(1, SCORE_BYTES.get(platform, MOST_SCORE_BYTES) // (4 * scores))
    length = largest_divisor(positions, most)
    return largest_divisor(rows, max(1, most // length)), length


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`.

    >>> largest_divisor(24, 10)
    8
    """
    return next(n for n in range(min(number, most), 0, -1) if number % n == 0)


def attend(
    q_BTHK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    starts_B: jax.Array,
    scale: float,
    config: ModelConfig,
) -> jax.Array:
    """out_BTHK of `attend_rows`, for runs whose rows these are, on one device."""
    B, T, H, K = q_BTHK.shape
    G, S = k_BGSK.shape[1:3]
    back_BTS = starts_B[:, None, None] + jnp.arange(T)[:, None] - jnp.arange(S)
    mask_BTS = back_BTS >= 0
    if config.window is not None:
        mask_BTS &= back_BTS < config.window
    q_BGTRK = jnp.swapaxes(q_BTHK.reshape(B, T, G, H // G, K), 1, 2)
    s_BGTRS = jnp.einsum("BGTRK,BGSK->BGTRS", q_BGTRK, k_BGSK, preferred_element_type=jnp.float32) * scale
    s_BGTRS = jnp.where(mask_BTS[:, None, :, None], softcap(s_BGTRS, config.attention_softcap), -jnp.inf)
    p_BGTRS = jnp.exp(s_BGTRS - jnp.max(s_BGTRS, -1, keepdims=True))
    outs, sums = [], []
    for n in range(0, S, BLOCK):
        block = slice(n, n + BLOCK)
        p_BGTRs = p_BGTRS[..., block]
        outs.append(
            jnp.einsum(
                "BGTRs,BGsK->BGTRK",
                p_BGTRs.astype(v_BGSK.dtype),
                v_BGSK[:, :, block],
                preferred_element_type=jnp.float32,
            )
        )
        sums.append(jnp.sum(p_BGTRs, -1))
    out_BGTRK = functools.reduce(jnp.add, outs) / functools.reduce(jnp.add, sums)[..., None]
    return jnp.swapaxes(out_BGTRK, 1, 2).reshape(B, T, H, -1).astype(q_BTHK.dtype)
