"""What cuDNN's attention promises, in NumPy, so that what it is given can be tested where there is no GPU."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused


class KernelByContract:
    """A run of queries attends to a run of keys: each is (start in elements, length) in flat memory.

    Statistics are [run, head, position].
    """

    def __init__(self, direction: str):
        self.direction = direction

    def bind(
        self,
        q,
        k,
        v,
        _,
        lengths_q,
        lengths_k,
        starts_q,
        starts_k,
        *rest,
        scale,
        sliding_window_length,
        mask_type,
        **static,
    ):
        (B, T, H, _), S = q.shape, k.shape[1]
        if lengths_q.size == 0:
            lengths_q, lengths_k = jnp.full((B, 1), T), jnp.full((B, 1), S)
            starts_q, starts_k = (jnp.arange(B) * (x.size // B) for x in (q, k))
        else:
            assert starts_q.shape[1] > 2, "with one slot a row JAX doesn't hand on the starts"
        stats = jax.ShapeDtypeStruct((lengths_q.size, H, T), jnp.float32)
        shapes = [q, stats] if self.direction == "fwd" else [q, k, v]
        causal = mask_type in (fused.MaskType.CAUSAL, fused.MaskType.PADDING_CAUSAL)
        assert causal or sliding_window_length is None
        run = partial(self.run, window=sliding_window_length or T + S, scale=scale, causal=causal)
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes]
        return jax.pure_callback(run, shapes, q, k, v, lengths_q, lengths_k, starts_q, starts_k, *rest[2:])

    def run(
        self,
        q,
        k,
        v,
        lengths_q,
        lengths_k,
        starts_q,
        starts_k,
        stats=None,
        out=None,
        dout=None,
        *,
        window,
        scale,
        causal,
    ):
        q, k, v, lengths_q, lengths_k, starts_q, starts_k = (
            np.asarray(x) for x in (q, k, v, lengths_q, lengths_k, starts_q, starts_k)
        )
        kind, (_, T, H, K), G = q.dtype, q.shape, k.shape[2]
        shapes = [q.shape, (lengths_q.size, H, T)] if self.direction == "fwd" else [q.shape, k.shape, v.shape]
        results = [
            np.full(int(np.prod(shape)), np.nan, np.float32) for shape in shapes
        ]  # unwritten memory is not zero
        runs = zip(lengths_q.ravel(), lengths_k.ravel(), starts_q.ravel(), starts_k.ravel(), strict=False)
        for n, (length_q, length_k, at_q, at_k) in enumerate(runs):
            rows_q = (
                at_q + np.arange(length_q)[:, None, None] * H * K + np.arange(H)[:, None] * K + np.arange(K)
            )
            rows_k = (
                at_k + np.arange(length_k)[:, None, None] * G * K + np.arange(G)[:, None] * K + np.arange(K)
            )
            qn, kn, vn = (
                np.ravel(x).astype(np.float32)[rows] for x, rows in ((q, rows_q), (k, rows_k), (v, rows_k))
            )
            kn, vn = (np.repeat(x, H // G, axis=1) for x in (kn, vn))
            i, j = np.arange(length_q)[:, None], np.arange(length_k)
            scores = np.einsum("thk,shk->hts", qn, kn) * scale
            if causal:
                scores = np.where((i >= j) & (i - j < window), scores, -np.inf)
            if self.direction == "fwd":
                lse = np.log(np.exp(scores).sum(-1))
                results[0][rows_q] = np.einsum("hts,shk->thk", np.exp(scores - lse[..., None]), vn)
                results[1].reshape(-1, H, T)[n, :, :length_q] = lse
            else:
                weights = np.exp(scores - np.asarray(stats)[n, :, :length_q, None])
                on, don = (np.ravel(x).astype(np.float32)[rows_q] for x in (out, dout))
                dscores = (
                    weights
                    * (np.einsum("thk,shk->hts", don, vn) - np.einsum("thk,thk->ht", don, on)[..., None])
                    * scale
                )
                results[0][rows_q] = np.einsum("hts,shk->thk", dscores, kn)
                for result, d in (
                    (1, np.einsum("hts,thk->shk", dscores, qn)),
                    (2, np.einsum("hts,thk->shk", weights, don)),
                ):
                    results[result][rows_k] = d.reshape(length_k, G, H // G, K).sum(2)
        dtypes = [kind, np.float32] if self.direction == "fwd" else [kind] * 3
        return [
            x.reshape(shape).astype(dtype) for x, shape, dtype in zip(results, shapes, dtypes, strict=True)
        ]


def kernel_by_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, cuDNN's attention runs in NumPy, on any device."""
    monkeypatch.setattr(fused, "_dot_product_attention_fwd_p", KernelByContract("fwd"))
    monkeypatch.setattr(fused, "_dot_product_attention_bwd_p", KernelByContract("bwd"))
