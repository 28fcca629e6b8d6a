"""Masks of causal attention, computed for a block at a time instead of as a T x S array."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Mask:
    """The keys that each query of a row sees: not later ones, not those of another document, not those
    `window` or more positions back.

    Queries and keys are runs of positions, each without a gap. Either both are the same positions, or only
    the keys before the first query count, and the rest of the array of keys is ignored.
    """

    queries_BT: jax.Array | None
    """int: the document of each query; None: each row is one document."""
    keys_BS: jax.Array | None
    """int: the document of each key."""
    ahead_B: jax.Array | None
    """int: the first query's position minus the first key's. Only this many keys, those before all queries,
    count. None: queries and keys are the same positions."""
    window: int | None
    """The positions that a query sees, itself included; None: all before it."""

    def __call__(self, queries: slice, keys: slice) -> jax.Array:
        """bool [B or 1, queries, keys] for a block: these queries with these keys; True where a query sees a
        key."""
        i_T1, j_S = jnp.arange(queries.start, queries.stop)[:, None], jnp.arange(keys.start, keys.stop)
        if self.ahead_B is None:
            back_BTS = (i_T1 - j_S)[None]
            mask_BTS = back_BTS >= 0
        else:
            ahead_B11 = self.ahead_B[:, None, None]
            back_BTS = i_T1 - j_S + ahead_B11
            mask_BTS = jnp.broadcast_to(j_S < ahead_B11, back_BTS.shape)
        if self.window is not None:
            mask_BTS &= back_BTS < self.window
        if self.queries_BT is not None and self.keys_BS is not None:
            mask_BTS = mask_BTS & (self.queries_BT[:, queries, None] == self.keys_BS[:, None, keys])
        return mask_BTS


def causal(segments_BT: jax.Array | None, window: int | None) -> Mask:
    """The mask of self-attention, whose queries and keys are the same positions."""
    return Mask(segments_BT, segments_BT, None, window)
