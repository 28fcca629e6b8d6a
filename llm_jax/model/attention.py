"""Causal self-attention with grouped-query heads, packed documents and a choice of kernels
(`model/kernels/`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.errors import UserError
from llm_jax.model import attention_context as context
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.kernels import WHOLE_SEQUENCE, find_kernel
from llm_jax.model.norm_and_rope import Norm, Rope, rope_tables, rotate
from llm_jax.model.parametrization import attention_multiplier, residual_std, times
from llm_jax.model.weights import add_bias, project, weight

Q_DIMS = ("batch", "sequence", "heads", "head_dim")
KV_DIMS = ("batch", "keys", "kv_heads", "head_dim")


class Attention(nnx.Module):
    """Projections to queries, keys and values, attention, and the projection back into the stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layers: int | None, place: Placement):
        self.config, self.place = config, place
        D, H, G, K = config.embed, config.heads, config.kv_heads, config.head_dim
        assert G is not None
        assert K is not None
        std = config.init_std
        self.query = weight(rngs, config, (D, H, K), ("embed", "heads", "head_dim"), std, layers)
        self.key = weight(rngs, config, (D, G, K), ("embed", "kv_heads", "head_dim"), std, layers)
        self.value = weight(rngs, config, (D, G, K), ("embed", "kv_heads", "head_dim"), std, layers)
        self.out = weight(
            rngs, config, (H, K, D), ("heads", "head_dim", "embed"), residual_std(config), layers
        )
        if config.bias_qkv:
            self.query_bias = weight(rngs, config, (H, K), ("heads", "head_dim"), 0, layers)
            self.key_bias = weight(rngs, config, (G, K), ("kv_heads", "head_dim"), 0, layers)
            self.value_bias = weight(rngs, config, (G, K), ("kv_heads", "head_dim"), 0, layers)
        if config.bias_out:
            self.out_bias = weight(rngs, config, (D,), ("embed",), 0, layers)
        if config.qk_norm != "none":
            by_head = config.qk_norm == "head"
            shapes = (
                [((K,), ("head_dim",))] * 2
                if by_head
                else [((H, K), ("heads", "head_dim")), ((G, K), ("kv_heads", "head_dim"))]
            )
            self.query_norm, self.key_norm = (
                Norm(config, rngs, layers, place, shape=shape, dims=dims, kind="rms")
                for shape, dims in shapes
            )

    def __call__(self, x_BTD: jax.Array, rope: Rope | None, segments_BT: jax.Array | None) -> jax.Array:
        """x_BTD in the compute placement → y_BTD in the residual placement. rope: from `rope`. segments_BT:
        see `attend`."""
        return self.project_out(self.attend(*self.heads(x_BTD, rope), segments_BT))

    @property
    def window(self) -> int | None:
        """The positions that a query of this layer sees, itself included; None: all before it."""
        return self.config.window

    def rope(self, positions_BT: jax.Array) -> Rope | None:
        """This layer's rotations at these positions, for `heads`; None if positions are learned."""
        return rope_tables(self.config, positions_BT) if self.config.position == "rope" else None

    def heads(self, x_BTD: jax.Array, rope: Rope | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(q_BTHK, k_BSGK, v_BSGK) in the compute dtype, queries and keys rotated; scores are q k
        head_dim^-0.5."""
        config, place = self.config, self.place
        q_BTHK = project("BTD,DHK->BTHK", x_BTD, self.query, config, place)
        k_BSGK = project("BTD,DGK->BTGK", x_BTD, self.key, config, place)
        v_BSGK = project("BTD,DGK->BTGK", x_BTD, self.value, config, place)
        if config.bias_qkv:
            q_BTHK = add_bias(q_BTHK, self.query_bias, config, place)
            k_BSGK = add_bias(k_BSGK, self.key_bias, config, place)
            v_BSGK = add_bias(v_BSGK, self.value_bias, config, place)
        if config.qk_norm != "none":
            q_BTHK, k_BSGK = self.query_norm(q_BTHK), self.key_norm(k_BSGK)
        if rope is not None:
            q_BTHK, k_BSGK = rotate(q_BTHK, rope), rotate(k_BSGK, rope)
        return times(q_BTHK, attention_multiplier(config)), k_BSGK, v_BSGK  # here, for all kernels

    def project_out(self, out_BTHK: jax.Array) -> jax.Array:
        """The output of all heads, projected into the stream: y_BTD in the residual placement."""
        config, place = self.config, self.place
        y_BTD = project(
            "BTHK,HKD->BTD",
            out_BTHK,
            self.out,
            config,
            place,
            place.spec(("batch", "sequence", "embed"), "residual"),
        )
        if config.bias_out:
            y_BTD = add_bias(y_BTD, self.out_bias, config, place)
        return checkpoint_name(y_BTD, "attention_out")

    def attend(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array | None
    ) -> jax.Array:
        """out_BTHK of the chosen kernel, run on each device's own heads and rows (over a split sequence:
        `attention_context`).

        Values may be narrower than keys; the result then has their width. segments_BS: the document of each
        token of whole rows, in natural order, whatever the order of q, k and v; None: each row is one
        document.
        """
        config, place = self.config, self.place
        check(config, place, q_BTHK.shape[1])
        parts = context.parts(place)
        # split: `attention_context` gathers keys
        kv_dims = KV_DIMS if parts == 1 else ("batch", "sequence", "kv_heads", "head_dim")
        q_BTHK = place.move(q_BTHK, Q_DIMS, "attention")
        k_BSGK, v_BSGK = (place.move(x, kv_dims, "attention") for x in (k_BSGK, v_BSGK))
        _, sequence, heads, _ = place.split(Q_DIMS, "attention")
        kv_heads = place.split(kv_dims, "attention", k_BSGK.shape)[2]
        group = q_BTHK.shape[2] // k_BSGK.shape[2]
        split = context.Split(sequence, parts, ring=bool(place.axes("keys", "attention")), config=config)

        def run(q_BTHK, k_BSGK, v_BSGK, segments_BS=None):
            k_BSGK, v_BSGK = (
                needed_heads(x, q_BTHK.shape[2], group, heads, kv_heads) for x in (k_BSGK, v_BSGK)
            )
            q_BTHK, k_BSGK, v_BSGK = (
                checkpoint_name(x, name)
                for x, name in ((q_BTHK, "query"), (k_BSGK, "key"), (v_BSGK, "value"))
            )
            # in latent attention; kernels need values as wide as keys
            narrower = k_BSGK.shape[-1] - v_BSGK.shape[-1]
            if narrower:
                v_BSGK = jnp.pad(v_BSGK, [(0, 0)] * 3 + [(0, narrower)])
            if parts > 1:
                out_BTHK = context.attention_split(q_BTHK, k_BSGK, v_BSGK, segments_BS, split)
            else:
                out_BTHK = find_kernel(config.attention).attend(q_BTHK, k_BSGK, v_BSGK, segments_BS, config)
            return out_BTHK[..., :-narrower] if narrower else out_BTHK

        segments = () if segments_BS is None else (place.move(segments_BS, ("batch", None), "attention"),)
        dims = (Q_DIMS, kv_dims, kv_dims, ("batch", None))[: 3 + len(segments)]
        return place.move(
            place.local(run, dims, Q_DIMS, "attention")(q_BTHK, k_BSGK, v_BSGK, *segments), Q_DIMS
        )


def needed_heads(
    x_BSGK: jax.Array, heads: int, group: int, axes: tuple[str, ...], kv_axes: tuple[str, ...], dim: int = 2
) -> jax.Array:
    """The key/value heads (dim `dim` of x) that this device's `heads` query heads use, of those that the
    device has.

    group: query heads for each key/value head. axes, kv_axes: the mesh axes that split query heads and
    key/value heads.
    """
    count = max(1, heads // group)
    if count == x_BSGK.shape[dim]:
        return x_BSGK
    first_head = jax.lax.axis_index(axes) * heads
    first_here = jax.lax.axis_index(kv_axes) * x_BSGK.shape[dim] if kv_axes else 0
    return jax.lax.dynamic_slice_in_dim(x_BSGK, first_head // group - first_here, count, dim)


def check(config: ModelConfig, place: Placement, sequence_length: int) -> None:
    """Raises UserError if the chosen kernel can't run this model under this layout, as far as is known before
    compiling."""
    find_kernel(config.attention).check(config, context.parts(place), place.platform(), place.capability())
    check_softcap(config, place)
    check_heads(config, place)
    check_context(config, place, sequence_length)


def check_softcap(config: ModelConfig, place: Placement) -> None:
    """Raises UserError for a soft cap over a sequence that the layout splits: its products of chunks have
    none."""
    if config.attention_softcap and context.parts(place) > 1:
        cap = f"model.attention_softcap={config.attention_softcap:g}"
        raise UserError(f"{cap}: there is none over a sequence that the layout splits; {WHOLE_SEQUENCE}")


def check_heads(config: ModelConfig, place: Placement) -> None:
    """Raises UserError unless query heads and the key/value heads that they use can be on one device."""
    H, G = config.heads, config.kv_heads or config.heads
    heads = place.split(Q_DIMS, "attention")[2]
    asked = place.split(KV_DIMS, "attention")[2]
    parts = place.size(heads)
    splits = f"the layout (attention) splits dim 'heads' over {axes_with_sizes(heads, place)}"
    if H % parts:
        raise UserError(f"model.heads={H}: {splits}, and {H} is not a multiple of {parts}")
    if asked != heads[: len(asked)]:
        problem = (
            f"layout.attention.kv_heads={','.join(asked)}: the query heads are split over "
            f"{axes_with_sizes(heads, place) or 'nothing'}"
        )
        raise UserError(
            f"{problem}, and key/value heads must be split by the same axes, or by the first of them"
        )
    if G % parts and parts % G:
        fit = ", ".join(str(n) for n in range(1, H + 1) if H % n == 0 and (n % parts == 0 or parts % n == 0))
        raise UserError(
            f"model.kv_heads={G}: {splits}; {parts} must divide {G} or be a multiple of it, as with {fit}"
        )


def check_context(config: ModelConfig, place: Placement, sequence_length: int) -> None:
    """Raises UserError for a sequence that can't be split while it attends as the layout splits it."""
    sequence, keys = place.split(Q_DIMS, "attention")[1], place.axes("keys", "attention")
    if keys and keys != sequence:
        split = axes_with_sizes(sequence, place) or "nothing"
        problem = (
            f"layout.attention.keys={','.join(keys)}: the sequence is split over {split} while it attends"
        )
        raise UserError(
            f"{problem}; the ring of keys must be over the same axes, or keys must be gathered (keys: '')"
        )
    parts = place.size(sequence)
    if parts == 1:
        return
    compute = place.split(Q_DIMS)[1]
    if compute[: len(sequence)] != sequence:
        problem = (
            f"layout.attention.sequence={','.join(sequence)}: layout.compute.sequence is "
            f"{','.join(compute) or 'empty'}"
        )
        raise UserError(f"{problem}, and must begin with the same axes")
    if sequence_length % (2 * parts):
        problem = (
            f"train.sequence_length={sequence_length}: the layout (attention) splits dim 'sequence' over "
            f"{axes_with_sizes(sequence, place)}"
        )
        raise UserError(
            f"{problem}, each device has two chunks of it, and {sequence_length} is not a multiple of "
            f"{2 * parts}"
        )


def axes_with_sizes(axes: tuple[str, ...], place: Placement) -> str:
    """Mesh axes and their sizes, for an error: "data=4 x tensor=2"."""
    return " x ".join(f"{axis}={place.size((axis,))}" for axis in axes)
