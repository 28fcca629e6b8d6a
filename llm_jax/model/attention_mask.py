"""Who may attend to whom, without the T x S array that says so."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Mask:
    """Which keys each query of a row may see: none of the future, none of another document, none `window` or more positions back.

    Queries and keys are runs of positions, each without a gap. Either they are the same positions, or the keys that count are
    those before the first query: the others may lie anywhere in the same array.
    """

    queries_BT: jax.Array | None
    """int: the document of each query; None: each row is one document."""
    keys_BS: jax.Array | None
    """int: the document of each key."""
    ahead_B: jax.Array | None
    """int: the first query's position less the first key's: so many keys are before all queries, and only they count.
    None: queries and keys are the same positions."""
    window: int | None
    """How many positions a query sees, itself included."""

    def __call__(self, queries: slice, keys: slice) -> jax.Array:
        """bool [B or 1, queries, keys] for a part of the rows."""
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
    """Self-attention: queries and keys of the same positions."""
    return Mask(segments_BT, segments_BT, None, window)
