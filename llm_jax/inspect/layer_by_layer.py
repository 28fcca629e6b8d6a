"""A forward pass one layer at a time, which looks at what passes by: the stream after each layer, what heads attend to, where experts' tokens go.

It calls the model's own blocks with the model's own weights, so what it sees is what the model does (tests compare the logits). At any time one
layer's weights are where they are multiplied, and one layer's attention is whole.
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
from llm_jax.train.compile import program_options
from llm_jax.train.state import TrainModel

Look = Callable[[jax.Array], Any]
"""weights_BHTS -> arrays to be kept of a layer's attention. It runs where the model does, in the program of the layer."""


class Layer(NamedTuple):
    """What was seen of a layer; layer -1 is what enters the first."""

    number: int
    stream: np.ndarray
    """[B, T, D], the residual stream after it, in the compute dtype."""
    seen: Any = None
    """What `look` kept of its attention."""
    experts: np.ndarray | None = None
    """int32 [B, T, k]: the experts that each token was sent to, where the layer has some."""
    shares: np.ndarray | None = None
    """float32 [B, T, k]: their weights."""


class Walk:
    """Passes through one opened model, compiled once for each kind of layer and shape."""

    def __init__(self, opened: PretrainedModel, look: Look | None = None):
        self.parameters, self.look = opened.parameters, look
        place = without_stages(opened.place)
        self.program = opened.program if place == opened.place else TrainModel(opened.config, opened.experiment.optimizer, place)
        self.model = self.program.model(self.program.abstract)
        """Without weights: its parts get them one layer at a time."""

    def __call__(self, tokens_BT: np.ndarray) -> Iterator[Layer]:
        """What enters the first layer, then each layer in turn. Rows are filled up at the end as the layout asks for; that is cut again."""
        parameters, config, place = self.parameters, self.program.config, self.program.place
        B, T = tokens_BT.shape
        rows, length = round_up(B, place.size(place.axes("batch"))), round_up(T, length_multiple(place))
        tokens = np.pad(tokens_BT, ((0, rows - B), (0, length - T))).astype(np.int32)
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
        if config.position == "learned":
            positions = np.minimum(positions, config.positions - 1)
        cut = lambda x: np.asarray(x)[:B, :T]  # noqa: E731
        with jax.set_mesh(place.mesh):  # around each call by itself: what is yielded is used outside
            tokens, positions = (jax.device_put(a, place.sharding(("batch", "sequence"), "compute")) for a in (tokens, positions))
            x_BTD, seen = self.embed(parameters, tokens, positions)
        yield Layer(-1, cut(seen))
        number = 0
        for name, first, end in stacks(self.model):
            for i in range(first, end):
                with jax.set_mesh(place.mesh):
                    x_BTD, (stream, kept, routed) = self.layer(name, config.of_layer(number), parameters[name], jnp.int32(i), x_BTD, positions)
                kept = None if kept is None else jax.tree.map(np.asarray, kept)
                yield Layer(number, cut(stream), kept, *(map(cut, routed) if routed else ()))
                number += 1

    @functools.cached_property
    def embed(self) -> Any:
        """(parameters, tokens_BT, positions_BT) -> the stream that enters the first layer, as the layout has it and in natural order."""
        program, place = self.program, self.program.place

        def embed(parameters, tokens_BT, positions_BT):
            x_BTD = program.model(parameters).embed(arrange(tokens_BT, place), arrange(positions_BT, place))
            return x_BTD, whole(restore(x_BTD, place), place)

        return jax.jit(embed, compiler_options=program_options(program) or None)

    @functools.cached_property
    def layer(self) -> Any:
        """(its stack's name, its configuration, the stack's weights, its row, stream, positions) -> (stream, what is seen)."""
        program, place, look = self.program, self.program.place, self.look

        def layer(name, config, stacked, row, x_BTD, positions_BT):
            block = self.block(name, config, stacked, row)
            passing = watch(block)
            rope = block.attention.rope(arrange(positions_BT, place))
            x_BTD, _ = block(x_BTD, functools.partial(block.attention, rope=rope, segments_BT=None))
            routed, kept = None, None
            if isinstance(block.mlp, MoE):
                scores_BTE = whole(restore(passing["scores"], place), place)
                bias = whole(block.mlp.bias.get_value(), place) if config.moe.bias else None
                shares, experts, _ = choose(scores_BTE, bias, config.moe)
                routed = experts, shares
            if look is not None:
                q_BTHK, k_BSGK = (whole(restore(passing[name], place), place) for name in ("queries", "keys"))
                kept = look(attention_weights(q_BTHK, k_BSGK, config, block.attention.window))
            return x_BTD, (whole(restore(x_BTD, place), place), kept, routed)

        return jax.jit(layer, static_argnums=(0, 1), compiler_options=program_options(program) or None)

    def block(self, name: str, config: Any, stacked: Any, row: jax.Array) -> Block:
        """The block of one row of a stack."""
        weights = jax.tree.map(lambda w: row_of(w, row), stacked)
        graph, structure = nnx.split(getattr(self.model, name))
        return block_of(graph, jax.tree.unflatten(jax.tree.structure(structure), jax.tree.leaves(weights)), config)


def row_of(w: jax.Array, row: jax.Array) -> jax.Array:
    """w[row]. From among the stages of a pipeline it comes as a sum in which the others are zero."""
    split = jax.typeof(w).sharding.spec[0]
    if split is None:
        return jax.lax.dynamic_index_in_dim(w, row, keepdims=False)
    is_row = jax.sharding.reshard(jnp.arange(len(w)) == row, jax.sharding.PartitionSpec(split))
    return jnp.sum(jnp.where(is_row.reshape(-1, *(1,) * (w.ndim - 1)), w, 0), 0, dtype=w.dtype)


def without_stages(place: MeshPlacement) -> MeshPlacement:
    """The same without a pipeline: one layer at a time keeps no stages busy, all devices work on each."""
    if not place.axes("layers"):
        return place
    tables: dict[str, Any] = {table: {dim: axes for dim, axes in getattr(place.layout, table).items() if dim != "layers"} for table in TABLES}
    return MeshPlacement(replace(place.layout, pipeline=PipelineConfig(), **tables), place.mesh)


def watch(block: Block) -> dict[str, jax.Array]:
    """Queries and keys on their way into the block's kernel, and its router's scores before they choose, once the block has run."""
    passing: dict[str, jax.Array] = {}
    kernel = block.attention.attend

    def attend(q_BTHK, k_BSGK, v_BSGK, segments_BS):
        passing.update(queries=q_BTHK, keys=k_BSGK)
        return kernel(q_BTHK, k_BSGK, v_BSGK, segments_BS)

    block.attention.attend = attend  # type: ignore[method-assign]
    if isinstance(block.mlp, MoE):
        router_logits = block.mlp.router_logits

        def scores(x_BTD):
            passing["scores"] = router_logits(x_BTD)
            return passing["scores"]

        block.mlp.router_logits = scores  # type: ignore[method-assign]
    return passing


def whole(x: jax.Array, place: Any) -> jax.Array:
    """An array as every device has it all."""
    return place.move(x, (None,) * x.ndim)


def stacks(model: Any) -> list[tuple[str, int, int]]:
    """Which layers follow each other: (the stack's name, its first row, the row after the last)."""
    return [("blocks" if stack is model.blocks else "dense_blocks", first, end) for stack, first, end in model.runs()]
