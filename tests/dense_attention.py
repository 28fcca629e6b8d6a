"""Attention straight from its definition, to compare with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def dense(q, k, v, segments, window):
    """All T² scores, in the inputs' dtype: q [B, T, H, K], k and v [B, T, G, K], segments [B, T] or None ->
    [B, T, H, K].
    """
    T, H, G = q.shape[1], q.shape[2], k.shape[2]
    k, v = jnp.repeat(k, H // G, 2), jnp.repeat(v, H // G, 2)
    i, j = jnp.arange(T)[:, None], jnp.arange(T)[None]
    allowed = (j <= i) & (i - j < (window or T))
    allowed = allowed[None] if segments is None else allowed & (segments[:, :, None] == segments[:, None])
    scores = jnp.where(allowed[:, None], jnp.einsum("BTHK,BSHK->BHTS", q, k) / q.shape[-1] ** 0.5, -jnp.inf)
    return jnp.einsum("BHTS,BSHK->BTHK", jax.nn.softmax(scores), v)


def dense_float64(q, k, v, dout, segments, window) -> list[np.ndarray]:
    """The output and the gradients of q, k and v, computed in float64."""
    with jax.enable_x64(True):
        out, pull = jax.vjp(lambda q, k, v: dense(q, k, v, segments, window), *map(jnp.asarray, (q, k, v)))
        return [np.asarray(x) for x in (out, *pull(jnp.asarray(dout)))]
