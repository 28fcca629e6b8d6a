"""A forward pass one layer at a time that records the residual stream, attention and expert routing of each
layer.

It calls the model's own blocks with the model's own weights, so it records what the model computes (tests
compare the logits). At any time the weights of one layer are gathered, and the attention weights of one layer
exist.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llm_jax.core.arithmetic import round_up
from llm_jax.inspect.attention import attention_weights
from llm_jax.layout.layout import TABLES, MeshPlacement
from llm_jax.model.attention_context import arrange, length_multiple, restore
from llm_jax.model.dims import PipelineConfig
from llm_jax.model.moe import MoE
from llm_jax.model.router import choose
from llm_jax.model.transformer import Block, block_of
from llm_jax.pretrained.model import PretrainedModel

AttentionReduction = Callable[[jax.Array], Any]
"""weights_BHTS → the arrays to keep of a layer's attention. Runs on the devices, inside the layer's jitted
function."""


class Layer(NamedTuple):
    """The recorded values of a layer, as numpy arrays."""

    number: int
    """From 0; -1: the stream that enters the first layer."""
    stream: np.ndarray
    """[B, T, D], the residual stream after the layer, in the compute dtype."""
    attention: Any = None
    """The result of `reduce_attention`."""
    experts: np.ndarray | None = None
    """int32 [B, T, k]: the experts that each token was routed to; None for a layer without experts."""
    shares: np.ndarray | None = None
    """float32 [B, T, k]: the weights of these experts."""


class LayerByLayer:
    """Forward passes through one pretrained model, compiled once for each kind of layer and shape."""

    def __init__(self, opened: PretrainedModel, reduce_attention: AttentionReduction | None = None):
        self.parameters, self.reduce_attention = opened.parameters, reduce_attention
        place = without_pipeline(opened.place)
        self.program = opened.program if place == opened.place else opened.program.placed(place)
        self.model = self.program.model(self.program.abstract)
        """The model without weights, for its structure."""

    def __call__(self, tokens_BT: np.ndarray) -> Iterator[Layer]:
        """Yields the input of the first layer, then each layer. Rows and positions are padded as the layout
        requires; results are without padding."""
        parameters, config, place = self.parameters, self.program.config, self.program.place
        B, T = tokens_BT.shape
        rows, length = round_up(B, place.size(place.axes("batch"))), round_up(T, length_multiple(place))
        tokens = np.pad(tokens_BT, ((0, rows - B), (0, length - T))).astype(np.int32)
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
        if config.position == "learned":
            positions = np.minimum(positions, config.positions - 1)
        cut = lambda x: np.asarray(x)[:B, :T]  # noqa: E731
        with jax.set_mesh(place.mesh):  # around each call alone: the caller runs its own code between yields
            tokens, positions = (
                jax.device_put(a, place.sharding(("batch", "sequence"), "compute"))
                for a in (tokens, positions)
            )
            x_BTD, stream = self.embed(parameters, tokens, positions)
        yield Layer(-1, cut(stream))
        number, model = 0, self.program.model(parameters)
        for name, first, end in stack_runs(self.model):
            _, stacked = nnx.split(getattr(model, name))
            for i in range(first, end):
                with jax.set_mesh(place.mesh):
                    x_BTD, (stream, kept, routed) = self.layer(
                        name, config.of_layer(number), stacked, jnp.int32(i), x_BTD, positions
                    )
                kept = None if kept is None else jax.tree.map(np.asarray, kept)
                yield Layer(number, cut(stream), kept, *(map(cut, routed) if routed else ()))
                number += 1

    @functools.cached_property
    def embed(self) -> Any:
        """(parameters, tokens_BT, positions_BT) → (the input x_BTD of the first layer as the layout arranges
        it, x_BTD replicated in natural order)."""
        program, place = self.program, self.program.place

        def embed(parameters, tokens_BT, positions_BT):
            x_BTD = program.model(parameters).embed(arrange(tokens_BT, place), arrange(positions_BT, place))
            return x_BTD, replicated(restore(x_BTD, place), place)

        return program.jit(embed)

    @functools.cached_property
    def layer(self) -> Any:
        """(name of the stack, configuration, weights of the stack, row, x_BTD, positions_BT) → (x_BTD,
        (stream, kept attention, routing))."""
        program, place, reduce_attention = self.program, self.program.place, self.reduce_attention

        def layer(name, config, stacked, row, x_BTD, positions_BT):
            block = self.block(name, config, stacked, row)
            captured = capture(block)
            rope = block.attention.rope(arrange(positions_BT, place))
            x_BTD, _ = block(x_BTD, functools.partial(block.attention, rope=rope, segments_BT=None))
            routed, kept = None, None
            if isinstance(block.mlp, MoE):
                scores_BTE = replicated(restore(captured["scores"], place), place)
                bias = replicated(block.mlp.bias.get_value(), place) if config.moe.bias else None
                shares, experts, _ = choose(scores_BTE, bias, config.moe)
                routed = experts, shares
            if reduce_attention is not None:
                q_BTHK, k_BSGK = (
                    replicated(restore(captured[name], place), place) for name in ("queries", "keys")
                )
                kept = reduce_attention(attention_weights(q_BTHK, k_BSGK, config, block.attention.window))
            return x_BTD, (replicated(restore(x_BTD, place), place), kept, routed)

        return program.jit(layer, static_argnums=(0, 1))

    def block(self, name: str, config: Any, stacked: Any, row: jax.Array) -> Block:
        """The block with the weights of one row of a stack."""
        graph, _ = nnx.split(getattr(self.model, name))
        return block_of(graph, jax.tree.map(lambda w: select_row(w, row), stacked), config)


def select_row(w: jax.Array, row: jax.Array) -> jax.Array:
    """w[row]. If the rows are split over devices (the stages of a pipeline), as a sum in which all other rows
    are zero."""
    split = jax.typeof(w).sharding.spec[0]
    if split is None:
        return jax.lax.dynamic_index_in_dim(w, row, keepdims=False)
    is_row = jax.sharding.reshard(jnp.arange(len(w)) == row, jax.sharding.PartitionSpec(split))
    return jnp.sum(jnp.where(is_row.reshape(-1, *(1,) * (w.ndim - 1)), w, 0), 0, dtype=w.dtype)


def without_pipeline(place: MeshPlacement) -> MeshPlacement:
    """The placement without pipeline stages: layers run one after the other, so all devices work on each."""
    if not place.axes("layers"):
        return place
    tables: dict[str, Any] = {
        table: {dim: axes for dim, axes in getattr(place.layout, table).items() if dim != "layers"}
        for table in TABLES
    }
    return MeshPlacement(replace(place.layout, pipeline=PipelineConfig(), **tables), place.mesh)


def capture(block: Block) -> dict[str, jax.Array]:
    """Makes a block record the queries and keys that its attention kernel gets, and its router's scores. The
    dict is filled when the block runs."""
    captured: dict[str, jax.Array] = {}
    kernel = block.attention.attend

    def attend(q_BTHK, k_BSGK, v_BSGK, segments_BS):
        captured.update(queries=q_BTHK, keys=k_BSGK)
        return kernel(q_BTHK, k_BSGK, v_BSGK, segments_BS)

    block.attention.attend = attend  # type: ignore[method-assign]
    if isinstance(block.mlp, MoE):
        router_logits = block.mlp.router_logits

        def scores(x_BTD):
            captured["scores"] = router_logits(x_BTD)
            return captured["scores"]

        block.mlp.router_logits = scores  # type: ignore[method-assign]
    return captured


def replicated(x: jax.Array, place: Any) -> jax.Array:
    """The array with a copy on every device."""
    return place.move(x, (None,) * x.ndim)


def stack_runs(model: Any) -> list[tuple[str, int, int]]:
    """Runs of consecutive layers of one stack, in order: (name of the stack, first row, row after the
    last)."""
    return [
        ("blocks" if stack is model.blocks else "dense_blocks", first, end)
        for stack, first, end in model.runs()
    ]
