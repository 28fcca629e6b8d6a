"""The decoder-only transformer: embedding, a stack of blocks, a final norm and a head."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from llm_jax.errors import UserError
from llm_jax.model import attention, moe
from llm_jax.model.attention_context import arrange, restore
from llm_jax.model.config import ModelConfig, saved_names, tensor_names
from llm_jax.model.dims import Placement
from llm_jax.model.mlp import FeedForward
from llm_jax.model.parametrization import readout, residual, times
from llm_jax.model.parts import Norm, rope_tables
from llm_jax.model.pipeline import STREAM, run_pipeline
from llm_jax.model.router import Routing
from llm_jax.model.weights import Weight, compute, lookup, weight


class Block(nnx.Module):
    """Attention and feed-forward, each added into the residual stream.

    Built with `layers`, it holds the weights of so many layers, stacked along a first dim; `Transformer` slices them.
    `sparse`: with experts in place of the feed-forward block.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layers: int | None, place: Placement, sparse: bool = False):
        self.config, self.place = config, place
        self.attention_norm = Norm(config, rngs, layers, place)
        self.attention = attention.Attention(config, rngs, layers, place)
        self.mlp_norm = Norm(config, rngs, layers, place)
        self.mlp = (moe.MoE if sparse else FeedForward)(config, rngs, layers, place)

    def __call__(
        self, x_BTD: jax.Array, rope, segments_BS: jax.Array | None, real_BT: jax.Array | None = None, weights_BT: jax.Array | None = None
    ) -> tuple[jax.Array, Routing | None]:
        """x_BTD in the residual placement and the compute dtype, and so the result; and what the router of a sparse block did.

        For that, real_BT: whether a token is none of padding; weights_BT: the tokens' weights in the loss.
        """
        return self.join(x_BTD, self.attend(x_BTD, rope, segments_BS), real_BT, weights_BT)

    def join(
        self, x_BTD: jax.Array, attended_BTD: jax.Array, real_BT: jax.Array | None = None, weights_BT: jax.Array | None = None
    ) -> tuple[jax.Array, Routing | None]:
        """The same from what attention adds to the stream x_BTD that entered the block, whoever attended (decoding: to a cache)."""
        x_BTD = x_BTD + attended_BTD
        y_BTD, routing = self.feed_forward(x_BTD, real_BT, weights_BT)
        return x_BTD + y_BTD, routing

    def attend(self, x_BTD: jax.Array, rope, segments_BS: jax.Array | None) -> jax.Array:
        """The block's first half: what attention adds to the stream x_BTD."""
        return self.after_attention(self.attention(self.before_attention(x_BTD), rope, segments_BS))

    def before_attention(self, x_BTD: jax.Array) -> jax.Array:
        """What attention gets of the stream."""
        return self.place.move(self.attention_norm(x_BTD) if self.config.norm_placement == "before" else x_BTD, STREAM)

    def after_attention(self, y_BTD: jax.Array) -> jax.Array:
        """What the stream gets of attention's result."""
        return times(y_BTD if self.config.norm_placement == "before" else self.attention_norm(y_BTD), residual(self.config))

    def feed_forward(
        self, x_BTD: jax.Array, real_BT: jax.Array | None = None, weights_BT: jax.Array | None = None
    ) -> tuple[jax.Array, Routing | None]:
        """The second half, dense or sparse: what it adds to the stream, and what the router did."""
        before = self.config.norm_placement == "before"
        y_BTD = checkpoint_name(self.mlp_norm(x_BTD) if before else x_BTD, "mlp_in")  # kept as the stream is split
        y_BTD = self.place.move(y_BTD, STREAM)
        y_BTD, routing = self.mlp(y_BTD, real_BT, weights_BT) if isinstance(self.mlp, moe.MoE) else (self.mlp(y_BTD), None)
        return times(y_BTD if before else self.mlp_norm(y_BTD), residual(self.config)), routing


class Transformer(nnx.Module):
    """tokens [B, T] → logits [B, T, V].

    `config` must be `resolved`, with its vocabulary. `place` says where arrays live; the default is one device.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, place: Placement | None = None):
        place = place or Placement()
        assert config.vocab is not None, "resolve the configuration first"
        self.config, self.place = config, place
        self.embedding = weight(rngs, config, (config.vocab, config.embed), ("vocab", "embed"), config.init_std, None)
        if config.position == "learned":
            self.positions = weight(rngs, config, (config.positions, config.embed), (None, "embed"), config.init_std, None)
        sparse = len(config.sparse_layers)
        self.blocks = Block(config, rngs, sparse or config.layers, place.in_stage(), sparse=bool(sparse))
        if 0 < sparse < config.layers:
            self.dense_blocks = Block(config, rngs, config.layers - sparse, place)
        self.final_norm = Norm(config, rngs, None, place)
        if not config.tied_embeddings:
            self.head = weight(rngs, config, (config.vocab, config.embed), ("vocab", "embed"), config.init_std, None)

    def __call__(self, tokens_BT: jax.Array, positions: jax.Array | None = None, segments: jax.Array | None = None) -> jax.Array:
        """Logits of the next token at every position, [B, T, V] in the logits dtype.

        positions: int [B, T], restarting with each packed document; None: 0, 1, 2, ...
        segments: int [B, T], which packed document a token is of; None: one document a row.
        """
        return self.logits(self.hidden(tokens_BT, positions, segments))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """What the head makes of the final stream: [B, T, V] in the logits dtype, without the padding of a split vocabulary."""
        config = self.config
        assert config.vocab is not None
        w_VD = compute(self.output, config, self.place)
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, w_VD, preferred_element_type=jnp.dtype(config.logits_dtype))
        return softcap(self.place.unpadded(logits_BTV, ("batch", "sequence", "vocab"), (*x_BTD.shape[:2], config.vocab)), config.logit_softcap)

    def hidden(self, tokens_BT: jax.Array, positions_BT: jax.Array | None = None, segments_BT: jax.Array | None = None) -> jax.Array:
        """What the head gets, the residual stream after the final norm, [B, T, D] in the compute dtype; all in the natural order of positions."""
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return restore(self.stream(arrange(tokens_BT, self.place), arrange(positions_BT, self.place), segments_BT)[0], self.place)

    def stream(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BS: jax.Array | None, weights_BT: jax.Array | None = None
    ) -> tuple[jax.Array, Routing | None]:
        """`hidden` in the layout's order of positions (`attention_context.arrange`), but `segments_BS` are in the natural one.

        With it what the routers did, stacked over the layers that have experts; their losses count by weights_BT, the tokens' in the loss.
        """
        config, place = self.config, self.place
        if config.position == "learned" and tokens_BT.shape[1] > config.positions:
            raise UserError(f"model.positions={config.positions}: fewer learned positions than the sequence's {tokens_BT.shape[1]} tokens")
        real_BT = None if segments_BS is None or not config.sparse_layers else arrange(segments_BS, place) > 0
        if segments_BS is not None:
            segments_BS = place.move(segments_BS, ("batch", None), "attention")  # once for all layers
        x_BTD = self.embed(tokens_BT, positions_BT)
        x_BTD, routing = self.run_blocks(x_BTD, positions_BT, segments_BS, real_BT, weights_BT)
        return self.finish(x_BTD), routing

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The stream that enters the first block, in the compute dtype."""
        config, place = self.config, self.place
        spec = place.spec(STREAM, "residual")
        x_BTD = lookup(self.embedding, tokens_BT, config, place, spec)
        if config.position == "learned":
            x_BTD += lookup(self.positions, positions_BT, config, place, spec)
        return x_BTD

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """The stream after the last block, made ready for the head."""
        return times(self.place.move(self.final_norm(x_BTD), STREAM), readout(self.config))

    @property
    def output(self) -> Weight:
        """The output projection [V, D]: the head, or the embedding where that is both."""
        return self.embedding if self.config.tied_embeddings else self.head

    def run_blocks(self, x_BTD: jax.Array, *beside: jax.Array | None) -> tuple[jax.Array, Routing | None]:
        """All blocks in turn. `Routing` is stacked over the sparse ones. beside: positions_BT, segments_BS, real_BT, weights_BT.

        Where the layout splits `layers`, each group of devices runs its own, as a stage of a pipeline.
        """
        routings = []
        for blocks, first, end in self.runs():
            graph, stacked = nnx.split(blocks)
            layers = functools.partial(self.run_layers, graph)
            if self.place.axes("layers"):
                x_BTD, routing = run_pipeline(layers, self.place, stacked, x_BTD, *beside)
            else:
                stacked = jax.tree.map(lambda w, a=first, b=end: w if (a, b) == (0, len(w)) else w[a:b], stacked)
                x_BTD, routing = layers(stacked, x_BTD, *beside)
            if routing is not None:
                routings.append(routing)
        return x_BTD, jax.tree.map(lambda *parts: jnp.concatenate(parts), *routings) if len(routings) > 1 else next(iter(routings), None)

    def layers_in_order(self) -> Iterator[tuple[int, Block, int | None]]:
        """(number, block with that layer's weights unstacked, its window) of each layer: for code that takes one after the other."""
        number = 0
        for stack, first, end in self.runs():
            graph, stacked = nnx.split(stack)
            for weights in unstack(stacked)[first:end]:
                block = block_of(graph, weights, self.config.of_layer(number))
                yield number, block, block.attention.window
                number += 1

    def runs(self) -> list[tuple[Block, int, int]]:
        """Which blocks follow each other: (stack, first, end) of neighbours that are all sparse or all dense, in order."""
        sparse = self.config.sparse_layers
        if len(sparse) in (0, self.config.layers):
            return [(self.blocks, 0, self.config.layers)]
        runs, done = [], {True: 0, False: 0}
        for is_sparse, layers in itertools.groupby(range(self.config.layers), key=sparse.__contains__):
            first = done[is_sparse]
            done[is_sparse] += len(list(layers))
            runs.append((self.blocks if is_sparse else self.dense_blocks, first, done[is_sparse]))
        return runs

    def run_layers(self, graph: Any, stacked: Any, x_BTD: jax.Array, *beside: Any) -> tuple[jax.Array, Routing | None]:
        """A stack of blocks in turn, scanned or unrolled, recomputing in the backward pass what the remat policy says."""
        config = self.config
        positions_BT, *beside_block = beside
        rope = rope_tables(config, positions_BT) if config.position == "rope" else None

        def block(x_BTD, weights):
            return nnx.merge(graph, weights)(x_BTD, rope, *beside_block)

        saved = saved_names(config.remat)
        if saved is not None:
            policy = jax.checkpoint_policies.save_and_offload_only_these_names(
                names_which_can_be_saved=saved,
                names_which_can_be_offloaded=tensor_names("offload", config.offload),
                offload_src="device",
                offload_dst="pinned_host",
            )
            # inside a scan nothing can be merged with the forward pass, so the barrier that prevents it is not needed
            block = jax.checkpoint(block, policy=policy, prevent_cse=not config.scan_layers)
        if config.scan_layers:
            return jax.lax.scan(block, x_BTD, stacked)
        routings = []
        for weights in unstack(stacked):
            x_BTD, routing = block(x_BTD, weights)
            routings.append(routing)
        return x_BTD, jax.tree.map(lambda *layers: jnp.stack(layers), *routings)


def block_of(graph: Any, weights: Any, config: ModelConfig) -> Block:
    """The block of one layer, from the graph of a stack and that layer's weights; `config` is the layer's (`of_layer`)."""
    block = nnx.merge(graph, weights)
    block.attention.config = config
    return block


def check(config: ModelConfig, place: Placement, sequence_length: int) -> None:
    """Raises UserError where the model can't run on these devices as the layout wants it: all that can be said before compiling."""
    attention.check(config, place, sequence_length)
    if config.sparse_layers:
        moe.check(config, place)
    if config.offload and place.platform() == "cpu":
        raise UserError(f"model.offload={config.offload}: the devices here are cpu, whose memory is the host's; leave it empty")


def unstack(tree) -> list:
    """The trees that one with a leading dim is made of. By `lax.split`, whose gradient is one concatenation."""
    leaves, structure = jax.tree.flatten(tree)
    count = leaves[0].shape[0]
    parts = [[jnp.squeeze(part, 0) for part in jax.lax.split(leaf, [1] * count, 0)] for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*parts, strict=True)]


def softcap(logits: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(logits / cap), or the logits where cap is 0 (Gemma 2)."""
    return cap * jnp.tanh(logits / cap) if cap else logits
