"""NVIDIA's fused attention (cuDNN through XLA), for packed documents, without any array of size sequence².

cuDNN's "ragged" layout takes a list of documents, starts and lengths in one flat array of tokens, so packed
rows need no mask. This module makes that list from segment ids and binds JAX's primitives for the kernel
(private, hence `CHECKED_JAX`). It does not call `fused_attention_stablehlo.dot_product_attention` above them,
because that function

- in JAX 0.10 scales key offsets by the *query* heads: with grouped heads, documents silently read other
  documents' keys (fixed by jax-ml/jax#39521, in 0.11.2);
- refuses the ragged layout where this process has no Hopper GPU, so nothing compiles for absent GPUs;
- keeps softmax statistics for every document slot of every layer, `max_segments` times the size that is
  needed.

Limits (cuDNN frontend, `CompositeSDPABackwardNode`): bfloat16 or float16; head_dim a multiple of 8 and at
most 128 (256 on Hopper only); Hopper or newer for packed documents; cuDNN 9.6, and not 9.10.0 or 9.10.1. The
backward kernel adds to dQ in any order: it is not bit-reproducible, unless XLA's deterministic option makes
it so with a sequence² workspace. Workspaces (`backward_workspace_bytes`) are not in the `memory_analysis()`
of a step compiled without a device.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.errors import UserError
from llm_jax.model.attention_mask import Mask
from llm_jax.model.config import ModelConfig
from llm_jax.model.kernels import WHOLE_SEQUENCE, ChunkKernel

CHECKED_JAX = ((0, 10), (0, 11))
"""The JAX versions whose private primitives this module has been checked with."""
SAVED = "attention"
"""The `checkpoint_name` of the output *and* of its softmax statistics: with both kept, the kernel does not
run again."""


class Documents(NamedTuple):
    """The documents of the local rows in cuDNN's form: B rows of M slots each, filled in order across
    rows."""

    starts_BM1: jax.Array
    """int32: flat index of each document's first token; B T where a slot is empty, and once more at the end
    of all."""
    lengths_BM: jax.Array
    """int32: tokens of each document, 0 where a slot is empty."""
    slot_BT: jax.Array
    """int32: the slot (flat) that each token is in."""
    overflow: jax.Array
    """bool: there are more documents than slots; then the slots hold whole rows, and the keys become NaN."""

    def ragged(self) -> Ragged:
        """Queries and keys for documents that attend to themselves."""
        return Ragged(self.starts_BM1, self.lengths_BM, self.starts_BM1, self.lengths_BM)


class Ragged(NamedTuple):
    """Runs of queries and of keys in flat arrays of tokens, pair by pair; B rows of M slots, M at least 2
    (JAX passes no starts for 1)."""

    starts_q_BM1: jax.Array
    lengths_q_BM: jax.Array
    starts_k_BM1: jax.Array
    lengths_k_BM: jax.Array


class Options(NamedTuple):
    """The kernel's settings, fixed at compile time."""

    scale: float
    window: int | None
    causal: bool


def attend(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BT: jax.Array | None,
    config: ModelConfig,
) -> jax.Array:
    """cuDNN's attention of one device's rows and heads: out_BTHK (`AttentionKernel.attend`)."""
    scale, window, slots = q_BTHK.shape[-1] ** -0.5, config.window, config.max_segments
    return fused_attention(
        q_BTHK, k_BSGK, v_BSGK, segments_BT=segments_BT, scale=scale, window=window, max_segments=slots
    )


def check(config: ModelConfig, parts: int, platform: str, capability: float) -> None:
    """Raises UserError for devices, soft caps and windows that cuDNN can't run (`AttentionKernel.check`)."""
    check_platform(platform, capability)
    if config.attention_softcap:
        raise UserError(
            f"model.attention_softcap={config.attention_softcap:g}: attention=cudnn has none; use "
            "model.attention=blocked or model.attention=xla"
        )
    if parts > 1 and config.window is not None:
        raise UserError(
            f"model.window={config.window}: attention=cudnn has no window over a sequence that the layout "
            f"splits; {WHOLE_SEQUENCE}"
        )


def check_platform(platform: str, capability: float) -> None:
    """Raises UserError where devices of this platform and CUDA compute capability can't run the kernel."""
    if platform != "gpu":
        raise UserError(
            f"model.attention=cudnn: needs an NVIDIA GPU, the devices here are {platform}; use "
            "model.attention=blocked or model.attention=xla"
        )
    if capability < 9:
        raise UserError(
            "model.attention=cudnn: keeps packed documents apart on Hopper (compute capability 9.0) or "
            f"newer, the devices here have {capability}; "
            "use model.attention=xla or model.attention=blocked"
        )


def chunk_kernel(config: ModelConfig) -> ChunkKernel:
    """cuDNN's products of chunks (`AttentionKernel.chunk_kernel`)."""
    assert config.head_dim
    own = Options(config.head_dim**-0.5, config.window, causal=True)
    earlier = Options(config.head_dim**-0.5, None, causal=False)

    def documents(mask: Mask) -> Documents | None:
        return None if mask.queries_BT is None else find_documents(mask.queries_BT, config.max_segments)

    def forward_chunk(q, k, v, mask: Mask) -> tuple[jax.Array, jax.Array]:
        if mask.ahead_B is not None:
            out, lse = forward_before(q, k, v, mask, earlier)
        else:
            found = documents(mask)
            out, lse = forward(q, k if found is None else poison_keys(k, found), v, found, own)
        return out.astype(jnp.float32), lse

    def backward_chunk(q, k, v, mask: Mask, out, lse, dout):
        if mask.ahead_B is not None:
            return backward_before(q, k, v, mask, out, lse, dout, earlier)
        return backward(q, k, v, documents(mask), lse, out, dout, own)

    return ChunkKernel(forward_chunk, backward_chunk)


def fused_attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    *,
    segments_BT: jax.Array | None,
    scale: float,
    window: int | None,
    causal: bool = True,
    max_segments: int | None = None,
) -> jax.Array:
    """Self-attention of one device's rows and heads (H a multiple of G): out_BTHK. Call it inside
    `jax.shard_map`.

    segments_BT: int; equal neighbours attend to each other, padding included; None: each row is one document.
    window: a query sees itself and the `window - 1` positions before it (JAX's `sliding_window_length`).
    max_segments: documents in a row, padding counted as one; required with segments. It is a mean over the
    device's rows, which share their slots. With more documents than slots *everything* returned is NaN, so
    that no wrong attention goes unnoticed.

    Raises UserError for arrays or settings that the kernel can't run; lowering for anything but a GPU raises.
    """
    check_arrays(q_BTHK, k_BSGK, v_BSGK, window, causal)
    q_BTHK, k_BSGK, v_BSGK = _equally_varying(q_BTHK, k_BSGK, v_BSGK)
    documents = None
    if segments_BT is not None:
        documents = find_documents(segments_BT, max_segments)
        k_BSGK = poison_keys(k_BSGK, documents)
    return _attend(q_BTHK, k_BSGK, v_BSGK, documents, Options(float(scale), window, causal))


def poison_keys(k_BSGK: jax.Array, documents: Documents) -> jax.Array:
    """The keys, or NaN if there are more documents than slots. Keys are the smallest array; NaN scores reach
    every output and gradient."""
    return jnp.where(documents.overflow, jnp.nan, k_BSGK)


def find_documents(segments_BT: jax.Array, slots: int | None) -> Documents:
    """The documents of the rows: runs of equal ids, in order over all rows, `slots` a row on average
    (`model.max_segments`)."""
    if slots is None or slots < 1:
        most = "the most documents a row, padding counted as one, on average over the rows of a device"
        raise UserError(f"model.max_segments={slots}: attention=cudnn with packed rows needs {most}")
    B, T = segments_BT.shape
    first_BT = jnp.concatenate([jnp.ones((B, 1), bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1)
    slot_BT = jnp.cumsum(first_BT.reshape(-1), dtype=jnp.int32).reshape(B, T) - 1
    overflow = slot_BT[-1, -1] >= B * slots
    slot_BT = jnp.where(overflow, jnp.arange(B, dtype=jnp.int32)[:, None], slot_BT)
    # the start of document n is the number of tokens in documents before it: a sum that fuses, where a
    # scatter would not
    starts = jnp.sum(slot_BT.reshape(-1) < jnp.arange(B * slots + 1)[:, None], axis=1, dtype=jnp.int32)
    unread = jnp.full(B - 1, B * T, jnp.int32)  # JAX's shape is [B, M + 1]; cuDNN reads B M + 1 of it
    return Documents(
        jnp.concatenate([starts, unread]).reshape(B, slots + 1),
        jnp.diff(starts).reshape(B, slots),
        slot_BT,
        overflow,
    )


def forward(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, documents: Documents | None, options: Options
) -> tuple[jax.Array, jax.Array]:
    """The kernel's results: out_BTHK, and lse_BHT (float32), the logarithm of each query's sum of
    exp(scores)."""
    rows = documents.ragged() if documents is not None else None
    out_BTHK, lse = _bind("fwd", (q_BTHK, k_BSGK, v_BSGK), (), rows, options, is_training=True)
    return out_BTHK, lse if documents is None else _by_token(lse, documents)


def backward(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    documents: Documents | None,
    lse_BHT: jax.Array,
    out_BTHK: jax.Array,
    dout_BTHK: jax.Array,
    options: Options,
) -> list[jax.Array]:
    """Gradients of q, k and v. If `out` and `lse` are over more keys than these (a ring), the terms that come
    from these keys."""
    rows = documents.ragged() if documents is not None else None
    lse = lse_BHT if documents is None else _by_document(lse_BHT, documents)
    return _bind("bwd", (q_BTHK, k_BSGK, v_BSGK), (lse, out_BTHK, dout_BTHK), rows, options)


class SharedDocuments(NamedTuple):
    """The document that each row's queries share with earlier keys. Documents have no gaps, so there is at
    most one.

    Its queries are the row's first, and its keys the last before the queries. Each of these queries sees each
    of these keys.
    """

    queries_B: jax.Array
    """int32: the number of its queries; 0 if there is no shared document."""
    keys_B: jax.Array
    """int32: the number of its keys."""
    first_key_B: jax.Array
    """int32: the position of its first key in the row of keys."""

    def ragged(self, T: int, S: int) -> Ragged:
        """The document in the first of two slots of each row, the second empty: with one slot JAX passes no
        starts."""

        def listed(first_B: jax.Array, length_B: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
            B = length_B.shape[0]
            start_B = jnp.arange(B, dtype=jnp.int32) * size + first_B
            starts = jnp.concatenate(
                [jnp.stack([start_B, start_B + length_B], 1).reshape(-1), jnp.full(B, B * size, jnp.int32)]
            )
            return starts.reshape(B, 3), jnp.stack([length_B, jnp.zeros_like(length_B)], 1)

        queries = listed(jnp.zeros_like(self.queries_B), self.queries_B, T)
        return Ragged(*queries, *listed(self.first_key_B, self.keys_B, S))


def find_shared_documents(mask: Mask, T: int, S: int) -> SharedDocuments:
    """The document that the T queries of each row share with those of its S keys that are before all of
    them."""
    assert mask.ahead_B is not None
    B = mask.ahead_B.shape[0]
    key_BS = jnp.arange(S) < mask.ahead_B[:, None]
    query_BT = jnp.ones((B, T), bool)
    if mask.queries_BT is not None and mask.keys_BS is not None:
        key_BS &= mask.keys_BS == mask.queries_BT[:, :1]
        query_BT = mask.queries_BT == mask.queries_BT[:, :1]
    keys_B = jnp.sum(key_BS, 1, dtype=jnp.int32)
    queries_B = jnp.where(keys_B > 0, jnp.sum(query_BT, 1, dtype=jnp.int32), 0)
    return SharedDocuments(queries_B, keys_B, jnp.argmax(key_BS, 1).astype(jnp.int32))


def forward_before(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask, options: Options
) -> tuple[jax.Array, jax.Array]:
    """Attention to the keys before the queries of each row: out_BTHK, and lse_BHT (float32), -inf where a
    query sees none."""
    (B, T, H, _), S = q_BTHK.shape, k_BSGK.shape[1]
    shared = find_shared_documents(mask, T, S)
    out_BTHK, lse = _bind("fwd", (q_BTHK, k_BSGK, v_BSGK), (), shared.ragged(T, S), options, is_training=True)
    seen_BT = jnp.arange(T) < shared.queries_B[:, None]  # the kernel writes nothing elsewhere
    lse_BHT = lse.reshape(B, 2, H, T)[:, 0]
    return jnp.where(seen_BT[..., None, None], out_BTHK, 0), jnp.where(seen_BT[:, None], lse_BHT, -jnp.inf)


def backward_before(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    out_BTHK: jax.Array,
    lse_BHT: jax.Array,
    dout_BTHK: jax.Array,
    options: Options,
) -> list[jax.Array]:
    """Gradients of q, k and v through `forward_before`, given `out` and `lse` over all keys."""
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    shared = find_shared_documents(mask, T, S)
    lse = jnp.stack([lse_BHT, jnp.zeros_like(lse_BHT)], 1).reshape(-1, *lse_BHT.shape[1:])
    gradients = _bind(
        "bwd", (q_BTHK, k_BSGK, v_BSGK), (lse, out_BTHK, dout_BTHK), shared.ragged(T, S), options
    )
    after_BS = jnp.arange(S) - shared.first_key_B[:, None]
    key_BS = (after_BS >= 0) & (after_BS < shared.keys_B[:, None])
    written = (jnp.arange(T) < shared.queries_B[:, None], key_BS, key_BS)
    return [jnp.where(rows[..., None, None], g, 0) for rows, g in zip(written, gradients, strict=True)]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BTHK, k_BSGK, v_BSGK, documents, options):
    rows = documents.ragged() if documents is not None else None
    return _bind("fwd", (q_BTHK, k_BSGK, v_BSGK), (), rows, options, is_training=False)[0]


def _attend_fwd(q_BTHK, k_BSGK, v_BSGK, documents, options):
    out_BTHK, lse_BHT = (
        checkpoint_name(x, SAVED) for x in forward(q_BTHK, k_BSGK, v_BSGK, documents, options)
    )
    return out_BTHK, (q_BTHK, k_BSGK, v_BSGK, documents, lse_BHT, out_BTHK)


def _attend_bwd(options, residuals, dout_BTHK):
    q_BTHK, k_BSGK, v_BSGK, documents, lse_BHT, out_BTHK = residuals
    return (*backward(q_BTHK, k_BSGK, v_BSGK, documents, lse_BHT, out_BTHK, dout_BTHK, options), None)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _bind(direction: str, qkv, residuals, rows: Ragged | None, options: Options, **static):
    from jax._src.cudnn import fused_attention_stablehlo as fused  # private: see CHECKED_JAX

    q_BTHK, k_BSGK, _ = qkv
    none = jnp.zeros(0, q_BTHK.dtype)
    lengths_q = lengths_k = starts_q = starts_k = none
    mask = fused.MaskType.CAUSAL if options.causal else fused.MaskType.NO_MASK
    if rows is not None:
        mask = fused.MaskType.PADDING_CAUSAL if options.causal else fused.MaskType.PADDING
        lengths_q, lengths_k = rows.lengths_q_BM, rows.lengths_k_BM
        starts = ((rows.starts_q_BM1, q_BTHK), (rows.starts_k_BM1, k_BSGK))
        starts_q, starts_k = (start * (x.shape[2] * x.shape[3]) for start, x in starts)  # in elements
    primitive = (
        fused._dot_product_attention_fwd_p if direction == "fwd" else fused._dot_product_attention_bwd_p
    )
    return primitive.bind(
        *qkv,
        none,
        lengths_q,
        lengths_k,
        starts_q,
        starts_k,
        none,
        none,
        *residuals,
        scale=options.scale,
        seed=42,
        dropout_rate=0.0,
        variadic_args=(False, False),
        mask_type=mask,
        layout=fused.AttentionLayout.BTNH.value,
        sliding_window_length=options.window,
        **static,
    )


def _by_token(stats_NHT: jax.Array, documents: Documents) -> jax.Array:
    """Statistics [slot, head, position in the document] → [row, head, position in the row]."""
    (B, T), H = documents.slot_BT.shape, stats_NHT.shape[1]
    slot_B1T = documents.slot_BT[:, None, :]
    position_B1T = jnp.arange(B * T).reshape(B, 1, T) - documents.starts_BM1.reshape(-1)[slot_B1T]
    return stats_NHT.at[slot_B1T, jnp.arange(H)[:, None], position_B1T].get(mode="clip")


def _by_document(stats_BHT: jax.Array, documents: Documents) -> jax.Array:
    """The inverse of `_by_token`. Entries past a document's end are finite and not used."""
    _, H, T = stats_BHT.shape
    token_N1T = documents.starts_BM1.reshape(-1)[: documents.lengths_BM.size, None, None] + jnp.arange(T)
    row_N11 = token_N1T[:, :, :1] // T  # a document is within its row
    return stats_BHT.at[row_N11, jnp.arange(H)[:, None], token_N1T - row_N11 * T].get(mode="clip")


def backward_workspace_bytes(
    batch: int, sequence: int, heads: int, head_dim: int, max_segments: int | None
) -> int:
    """An upper bound on the memory that cuDNN's backward kernel allocates: a float32 dQ and row sums for each
    slot."""
    return batch * (max_segments or 1) * sequence * heads * (head_dim + 1) * 4


def _equally_varying(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, made to vary over the same mesh axes inside `shard_map`: keys that devices share must get
    the sum of their gradients."""
    varying = [jax.typeof(x).mat.varying for x in arrays]
    axes = frozenset().union(*varying)
    return [
        jax.lax.pcast(x, tuple(axes - has), to="varying") if axes - has else x
        for x, has in zip(arrays, varying, strict=True)
    ]


def check_arrays(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, window: int | None, causal: bool
) -> None:
    """Raises UserError, naming the key, for arrays that the kernel or this module can't take; ValueError for
    a wrong call."""
    B, T, H, K = q_BTHK.shape
    if jax.__version_info__[:2] not in CHECKED_JAX:
        valid = " or ".join(".".join(map(str, v)) for v in CHECKED_JAX)
        raise UserError(
            f"model.attention=cudnn: not checked with JAX {jax.__version__}; install JAX {valid}, or use "
            "model.attention=xla"
        )
    if q_BTHK.dtype not in (jnp.bfloat16, jnp.float16):
        raise UserError(
            f"model.compute_dtype={q_BTHK.dtype}: attention=cudnn computes in bfloat16; use that, or "
            "model.attention=xla"
        )
    if K % 8 or K > 128:
        raise UserError(
            f"model.head_dim={K}: attention=cudnn needs a multiple of 8, at most 128; or use "
            "model.attention=xla"
        )
    if window is not None and (window < 1 or not causal):
        raise UserError(f"model.window={window}: attention=cudnn has causal windows of at least 1 only")
    if T < 2 or B * T * H * K >= 2**31:
        asked = f"train.batch_size: {B} rows of {T} tokens, {H} heads of {K} on one device"
        raise UserError(
            f"{asked}: attention=cudnn needs at least 2 tokens, and fewer than 2**31 elements; use "
            "smaller microbatches"
        )
    if (
        k_BSGK.shape != v_BSGK.shape
        or k_BSGK.shape[:2] != (B, T)
        or k_BSGK.shape[3] != K
        or H % k_BSGK.shape[2]
    ):
        raise ValueError(f"shapes don't fit: q {q_BTHK.shape}, k {k_BSGK.shape}, v {v_BSGK.shape}")
    if not q_BTHK.dtype == k_BSGK.dtype == v_BSGK.dtype:
        raise ValueError(f"dtypes differ: q {q_BTHK.dtype}, k {k_BSGK.dtype}, v {v_BSGK.dtype}")
    if any(axis is not None for x in (q_BTHK, k_BSGK, v_BSGK) for axis in jax.typeof(x).sharding.spec):
        raise ValueError("the kernel takes one device's arrays: call it inside jax.shard_map")
