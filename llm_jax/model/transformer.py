"""The decoder-only transformer: embedding, a stack of blocks, a final norm and a head."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from llm_jax.core.errors import UserError
from llm_jax.model import attention, moe
from llm_jax.model.attention_context import arrange, restore
from llm_jax.model.attention_latent import LatentAttention
from llm_jax.model.config import ModelConfig, saved_names, tensor_names
from llm_jax.model.dims import Placement, StagePlacement, pipeline_of
from llm_jax.model.mlp import FeedForward
from llm_jax.model.norm_and_rope import Norm, rope_tables, softcap
from llm_jax.model.parametrization import readout_multiplier, residual_multiplier, times
from llm_jax.model.pipeline import STREAM, run_pipeline
from llm_jax.model.router import Routing
from llm_jax.model.weights import Weight, gathered, lookup, project, sharding_spec, weight

RunBlock = dict[ModelConfig, Callable[[jax.Array, Any], tuple[jax.Array, Routing | None]]]
"""A layer's configuration → the function (x_BTD, weights of one layer) → (x_BTD, routing)."""


class Block(nnx.Module):
    """Attention and feed-forward, each added to the residual stream.

    layers: the number of layers whose weights it has, stacked along a first dim; `Transformer` slices them.
    sparse: experts in place of one feed-forward.
    """

    def __init__(
        self, config: ModelConfig, rngs: nnx.Rngs, layers: int | None, place: Placement, sparse: bool = False
    ):
        self.config, self.place = config, place
        self.attention_norm = Norm(config, rngs, layers, place)
        self.attention = (LatentAttention if config.latent.kv_rank else attention.Attention)(
            config, rngs, layers, place
        )
        self.mlp_norm = Norm(config, rngs, layers, place)
        both = config.norm_placement == "both"
        self.attention_out_norm, self.mlp_out_norm = (
            Norm(config, rngs, layers, place) if both else None for _ in range(2)
        )
        self.mlp = (moe.MoE if sparse else FeedForward)(config, rngs, layers, place)

    def __call__(
        self,
        x_BTD: jax.Array,
        attend: Callable[[jax.Array], jax.Array],
        real_BT: jax.Array | None = None,
        weights_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, Routing | None]:
        """The stream after the block, in the residual placement and the compute dtype like x_BTD, and the
        routing of a sparse block.

            x + a + f    where a = attention(x) and f = mlp(x + a), or mlp(x) with `parallel_blocks`

        attend: this block's attention [B, T, D] → [B, T, D]: `self.attention` with its rotations and
        documents, or with a cache. real_BT: bool, False for padding. weights_BT: the tokens' weights in the
        loss. Both are for the router's statistics.
        """
        attended_BTD = x_BTD + self.attention_branch(x_BTD, attend)
        f_BTD, routing = self.mlp_branch(
            x_BTD if self.config.parallel_blocks else attended_BTD, real_BT, weights_BT
        )
        return attended_BTD + f_BTD, routing

    def attention_branch(self, x_BTD: jax.Array, attend: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """The attention's term of the stream: norm, `attend`, norm (each where `norm_placement` has one),
        scaled."""
        y_BTD = self.place.move(
            x_BTD if self.config.norm_placement == "after" else self.attention_norm(x_BTD), STREAM
        )
        return self.scaled(attend(y_BTD), self.attention_norm, self.attention_out_norm)

    def mlp_branch(
        self, x_BTD: jax.Array, real_BT: jax.Array | None = None, weights_BT: jax.Array | None = None
    ) -> tuple[jax.Array, Routing | None]:
        """The feed-forward's term of the stream, dense or sparse: norm, mlp, norm, scaled; and the routing of
        a sparse block."""
        y_BTD = x_BTD if self.config.norm_placement == "after" else self.mlp_norm(x_BTD)
        # named before the move: kept as the stream is split
        y_BTD = self.place.move(checkpoint_name(y_BTD, "mlp_in"), STREAM)
        y_BTD, routing = (
            self.mlp(y_BTD, real_BT, weights_BT) if isinstance(self.mlp, moe.MoE) else (self.mlp(y_BTD), None)
        )
        return self.scaled(y_BTD, self.mlp_norm, self.mlp_out_norm), routing

    def scaled(self, y_BTD: jax.Array, norm: Norm, out_norm: Norm | None) -> jax.Array:
        """A branch's output, normalised where `norm_placement` says so, times the parametrization's residual
        multiplier."""
        last = {"before": None, "after": norm, "both": out_norm}[self.config.norm_placement]
        return times(y_BTD if last is None else last(y_BTD), residual_multiplier(self.config))


class Transformer(nnx.Module):
    """tokens [B, T] → logits [B, T, V].

    `config` must be `resolved`, with its vocabulary. `place` places its arrays on devices; None: one device.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, place: Placement | None = None):
        place = place or Placement()
        assert config.vocab is not None, "resolve the configuration first"
        self.config, self.place = config, place
        self.embedding = weight(
            rngs, config, (config.vocab, config.embed), ("vocab", "embed"), config.init_std, None
        )
        if config.position == "learned":
            self.positions = weight(
                rngs, config, (config.positions, config.embed), (None, "embed"), config.init_std, None
            )
        sparse = len(config.sparse_layers)
        pipeline = pipeline_of(place)
        in_stage = pipeline.in_stage() if pipeline else place
        self.blocks = Block(config, rngs, sparse or config.layers, in_stage, sparse=bool(sparse))
        if 0 < sparse < config.layers:
            self.dense_blocks = Block(config, rngs, config.layers - sparse, place)
        self.final_norm = Norm(config, rngs, None, place)
        if config.outputs == "reward":  # it starts at 0: all texts are equally good
            self.head = weight(rngs, config, (1, config.embed), (None, "embed"), 0, None)
        elif not config.tied_embeddings:
            self.head = weight(
                rngs, config, (config.vocab, config.embed), ("vocab", "embed"), config.init_std, None
            )

    def __call__(
        self, tokens_BT: jax.Array, positions: jax.Array | None = None, segments: jax.Array | None = None
    ) -> jax.Array:
        """Logits of the next token at every position, [B, T, V] in the logits dtype.

        positions: int [B, T], restarting with each packed document; None: 0, 1, 2, ...
        segments: int [B, T], which packed document a token is of; None: one document a row.
        """
        return self.logits(self.hidden(tokens_BT, positions, segments))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """The head's logits from `hidden`'s stream: [B, T, V] in the logits dtype, without the padding of a
        split vocabulary."""
        config = self.config
        assert config.vocab is not None
        w_VD = gathered(self.output, config, self.place)
        logits_BTV = jnp.einsum(
            "BTD,VD->BTV", x_BTD, w_VD, preferred_element_type=jnp.dtype(config.logits_dtype)
        )
        return softcap(
            self.place.unpad(logits_BTV, ("batch", "sequence", "vocab"), (*x_BTD.shape[:2], config.vocab)),
            config.logit_softcap,
        )

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
    ) -> jax.Array:
        """The residual stream after the final norm, [B, T, D] in the compute dtype. All arrays are in the
        natural order of positions."""
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return restore(
            self.stream(arrange(tokens_BT, self.place), arrange(positions_BT, self.place), segments_BT)[0],
            self.place,
        )

    def stream(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BS: jax.Array | None,
        weights_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, Routing | None]:
        """(the stream after the final norm, the routing stacked over layers with experts), in the layout's
        order of positions.

        tokens, positions and weights are in that order too (`attention_context.arrange`), but segments_BS is
        in natural order. weights_BT: the tokens' weights in the loss, for the routers' losses.
        """
        config, place = self.config, self.place
        if config.position == "learned" and tokens_BT.shape[1] > config.positions:
            raise UserError(
                f"model.positions={config.positions}: fewer learned positions than the sequence's "
                f"{tokens_BT.shape[1]} tokens"
            )
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
        if config.embedding_scale != 1:
            x_BTD *= jnp.asarray(config.embedding_scale, x_BTD.dtype)
        if config.position == "learned":
            x_BTD += lookup(self.positions, positions_BT, config, place, spec)
        return x_BTD

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """The stream after the last block, normalised and scaled for the head."""
        return times(self.place.move(self.final_norm(x_BTD), STREAM), readout_multiplier(self.config))

    @property
    def output(self) -> Weight:
        """The output projection [V, D]: the head, or the embedding if that is the head too."""
        if self.config.outputs == "reward":
            raise TypeError("a reward model has no logits: see `reward`")
        return self.embedding if self.config.tied_embeddings else self.head

    def reward(self, x_BTD: jax.Array) -> jax.Array:
        """The reward of the tokens up to each position, from `stream`'s: float32 [B, T], in its order of
        positions. For `outputs="reward"`."""
        spec = self.place.spec(("batch", "sequence", None))
        return project("BTD,VD->BTV", x_BTD, self.head, self.config, self.place, spec)[..., 0].astype(
            jnp.float32
        )

    def run_blocks(self, x_BTD: jax.Array, *beside: jax.Array | None) -> tuple[jax.Array, Routing | None]:
        """Runs all blocks: (x_BTD, the routing stacked over sparse blocks). beside: positions_BT,
        segments_BS, real_BT, weights_BT.

        If the layout splits `layers`, each group of devices runs its own blocks, as a stage of a pipeline.
        """
        routings = []
        pipeline, kinds = pipeline_of(self.place), layer_kinds(self.config)
        for blocks, first, end in self.runs():
            graph, stacked = nnx.split(blocks)
            own, kinds = kinds[: end - first], kinds[end - first :]
            layers = functools.partial(
                self.run_layers, graph, kinds_of_each_stage(own, pipeline) if pipeline else own
            )
            if pipeline:
                x_BTD, routing = run_pipeline(layers, pipeline, stacked, x_BTD, *beside)
            else:
                stacked = jax.tree.map(
                    lambda w, a=first, b=end: w if (a, b) == (0, len(w)) else w[a:b], stacked
                )
                x_BTD, routing = layers(stacked, x_BTD, *beside)
            if routing is not None:
                routings.append(routing)
        return x_BTD, jax.tree.map(lambda *parts: jnp.concatenate(parts), *routings) if len(
            routings
        ) > 1 else next(iter(routings), None)

    def layers_in_order(self) -> Iterator[tuple[int, Block, int | None]]:
        """(number, block with that layer's weights, its window) of each layer in order, for code that runs
        one after the other."""
        number = 0
        for stack, first, end in self.runs():
            graph, stacked = nnx.split(stack)
            for weights in unstack(stacked)[first:end]:
                block = block_of(graph, weights, self.config.of_layer(number))
                yield number, block, block.attention.window
                number += 1

    def runs(self) -> list[tuple[Block, int, int]]:
        """The layers in order, as runs of neighbours that are all sparse or all dense: (stack of blocks,
        first row, row after the last)."""
        sparse = self.config.sparse_layers
        if len(sparse) in (0, self.config.layers):
            return [(self.blocks, 0, self.config.layers)]
        runs, done = [], {True: 0, False: 0}
        for is_sparse, layers in itertools.groupby(range(self.config.layers), key=sparse.__contains__):
            first = done[is_sparse]
            done[is_sparse] += len(list(layers))
            runs.append((self.blocks if is_sparse else self.dense_blocks, first, done[is_sparse]))
        return runs

    def run_layers(
        self, graph: Any, kinds: tuple[ModelConfig, ...], stacked: Any, x_BTD: jax.Array, *beside: Any
    ) -> tuple[jax.Array, Routing | None]:
        """Runs a stack of blocks, scanned or unrolled; the backward pass recomputes what `remat` doesn't
        keep.

        kinds: each layer's configuration (`of_layer`). Layers with different windows are different programs,
        so the body of a scan is a period of layers that repeats.
        """
        run_block = {kind: self.block(graph, kind, *beside) for kind in dict.fromkeys(kinds)}
        if not self.config.scan_layers:
            return run_in_turn(kinds, run_block, x_BTD, unstack(stacked))
        routings, first = [], 0
        for count, period in as_scans(kinds):
            end = first + count * len(period)
            part = (
                stacked
                if end - first == len(kinds)
                else jax.tree.map(lambda w, a=first, b=end: w[a:b], stacked)
            )
            if len(period) == 1:
                x_BTD, routing = jax.lax.scan(run_block[period[0]], x_BTD, part)
            else:
                x_BTD, routing = scan_periods(period, run_block, x_BTD, part)
            routings.append(routing)
            first = end
        return x_BTD, jax.tree.map(lambda *parts: jnp.concatenate(parts), *routings) if len(
            routings
        ) > 1 else routings[0]

    def block(
        self,
        graph: Any,
        kind: ModelConfig,
        positions_BT: jax.Array,
        segments_BS: jax.Array | None,
        real_BT: jax.Array | None,
        weights_BT: jax.Array | None,
    ) -> Callable:
        """(x_BTD, weights of one layer) → (x_BTD, routing), for the layers with configuration `kind`."""
        config = self.config
        rope = rope_tables(kind, positions_BT) if config.position == "rope" else None

        def run(x_BTD, weights):
            block = block_of(graph, weights, kind)
            return block(
                x_BTD,
                functools.partial(block.attention, rope=rope, segments_BT=segments_BS),
                real_BT,
                weights_BT,
            )

        saved = saved_names(config.remat)
        if saved is None:
            return run
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=saved,
            names_which_can_be_offloaded=tensor_names("offload", config.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )
        # inside a scan nothing can be merged with the forward pass, so no barrier is needed to prevent it
        return jax.checkpoint(run, policy=policy, prevent_cse=not config.scan_layers)


def scan_periods(
    kinds: Sequence[ModelConfig], run_block: RunBlock, x_BTD: jax.Array, stacked: Any
) -> tuple[jax.Array, Routing | None]:
    """Runs a stack of layers whose configurations repeat `kinds`, by a scan over periods."""

    def period(x_BTD: jax.Array, weights: Any) -> tuple[jax.Array, Routing | None]:
        return run_in_turn(kinds, run_block, x_BTD, unstack(weights))

    x_BTD, routing = jax.lax.scan(period, x_BTD, jax.tree.map(lambda w: fold_periods(w, len(kinds)), stacked))
    return x_BTD, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), routing)


def run_in_turn(
    kinds: Sequence[ModelConfig], run_block: RunBlock, x_BTD: jax.Array, weights: list
) -> tuple[jax.Array, Routing | None]:
    """Runs layers one after the other: (x_BTD, their routing, stacked)."""
    routings = []
    for kind, own in zip(kinds, weights, strict=True):
        x_BTD, routing = run_block[kind](x_BTD, own)
        routings.append(routing)
    return x_BTD, jax.tree.map(lambda *layers: jnp.stack(layers), *routings)


def layer_kinds(config: ModelConfig) -> tuple[ModelConfig, ...]:
    """Each layer's configuration; layers with one program have equal ones."""
    return tuple(config.of_layer(layer) for layer in range(config.layers))


def as_scans(kinds: Sequence) -> list[tuple[int, Sequence]]:
    """A sequence as scans, (repetitions, repeated part), of the shortest period; without a period, as runs of
    equal neighbours.

    >>> as_scans("abababa"), as_scans("aaaabb"), as_scans("aaa")
    ([(3, 'ab'), (1, 'a')], [(4, 'a'), (2, 'b')], [(3, 'a')])
    """
    n = len(kinds)
    for p in range(1, n // 2 + 1):
        if kinds[p:] == kinds[: n - p]:
            whole = n - n % p
            return [(n // p, kinds[:p]), *(as_scans(kinds[whole:]) if n % p else [])]
    runs = [len(list(run)) for _, run in itertools.groupby(kinds)]
    starts = itertools.accumulate(runs, initial=0)
    return [(count, kinds[start : start + 1]) for start, count in zip(starts, runs, strict=False)]


def fold_periods(w: jax.Array, period: int) -> jax.Array:
    """[layers, ...] → [layers / period, period, ...]."""
    spec = sharding_spec(w)
    return w.reshape(
        -1, period, *w.shape[1:], out_sharding=None if spec is None else PartitionSpec(None, *spec)
    )


def kinds_of_each_stage(kinds: tuple[ModelConfig, ...], place: StagePlacement) -> tuple[ModelConfig, ...]:
    """The configurations of the layers that a stage of a pipeline runs in a tick. All stages run one program:
    UserError if they differ."""
    groups = place.size(place.axes("layers")) * place.pipeline.rounds
    n = len(kinds) // groups
    if len(kinds) % groups == 0 and kinds != kinds[:n] * groups:
        windows = tuple(i for i, kind in enumerate(kinds) if kind.window is not None)
        raise UserError(
            f"model.window_layers={windows}: the layout's pipeline divides the layers into {groups} "
            f"groups of {n}, all one program, so layers with "
            "a window must be at the same places in each; use a layout without a pipeline, or fewer "
            "stages or rounds"
        )
    return kinds[:n]


def block_of(graph: Any, weights: Any, config: ModelConfig) -> Block:
    """The block of one layer, from the graph of a stack and that layer's weights. config: the layer's
    (`of_layer`)."""
    block = nnx.merge(graph, weights)
    block.attention.config = config
    return block


def check(config: ModelConfig, place: Placement, sequence_length: int) -> None:
    """Raises UserError if the model can't run on these devices under this layout, as far as is known before
    compiling."""
    attention.check(config, place, sequence_length)
    if pipeline := pipeline_of(place):
        kinds_of_each_stage(layer_kinds(config), pipeline)
    if config.sparse_layers:
        moe.check(config, place)
    if config.offload and place.platform() == "cpu":
        raise UserError(
            f"model.offload={config.offload}: the devices here are cpu, whose memory is the host's; leave "
            "it empty"
        )


def unstack(tree) -> list:
    """A tree of arrays [n, ...] as n trees of arrays [...]. It uses `lax.split`, whose gradient is one
    concatenation."""
    leaves, structure = jax.tree.flatten(tree)
    count = leaves[0].shape[0]
    parts = [[jnp.squeeze(part, 0) for part in jax.lax.split(leaf, [1] * count, 0)] for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*parts, strict=True)]
