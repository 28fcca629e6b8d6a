"""The decoder-only transformer: embedding, a stack of blocks, a final norm and a head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from llm_jax.errors import UserError
from llm_jax.model import attention
from llm_jax.model.attention_context import arrange, restore
from llm_jax.model.config import ModelConfig, saved_names, tensor_names
from llm_jax.model.dims import Placement
from llm_jax.model.mlp import FeedForward
from llm_jax.model.parts import Norm, rope_tables
from llm_jax.model.pipeline import STREAM, run_pipeline
from llm_jax.model.weights import Weight, compute, lookup, weight


class Block(nnx.Module):
    """Attention and feed-forward, each added into the residual stream.

    Built with `layers`, it holds the weights of all layers, stacked along a first dim; `Transformer` slices them.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layers: int | None, place: Placement):
        self.config, self.place = config, place
        self.attention_norm = Norm(config, rngs, layers, place)
        self.attention = attention.Attention(config, rngs, layers, place)
        self.mlp_norm = Norm(config, rngs, layers, place)
        self.mlp = FeedForward(config, rngs, layers, place)

    def __call__(self, x_BTD: jax.Array, rope, segments_BT: jax.Array | None) -> jax.Array:
        """x_BTD in the residual placement and the compute dtype, and so the result."""
        place = self.place
        if self.config.norm_placement == "before":
            y_BTD = place.move(self.attention_norm(x_BTD), STREAM)
            x_BTD = x_BTD + self.attention(y_BTD, rope, segments_BT)
            y_BTD = checkpoint_name(self.mlp_norm(x_BTD), "mlp_in")  # kept as the stream is split
            return x_BTD + self.mlp(place.move(y_BTD, STREAM))
        y_BTD = self.attention(place.move(x_BTD, STREAM), rope, segments_BT)
        x_BTD = x_BTD + self.attention_norm(y_BTD)
        y_BTD = self.mlp(place.move(checkpoint_name(x_BTD, "mlp_in"), STREAM))
        return x_BTD + self.mlp_norm(y_BTD)


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
        self.blocks = Block(config, rngs, config.layers, place.in_stage())
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
        """The residual stream after the final norm, [B, T, D] in the compute dtype; all in the natural order of positions."""
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return restore(self.stream(arrange(tokens_BT, self.place), arrange(positions_BT, self.place), segments_BT), self.place)

    def stream(self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BS: jax.Array | None) -> jax.Array:
        """`hidden` in the layout's order of positions (`attention_context.arrange`), but `segments_BS` are in the natural one."""
        config, place = self.config, self.place
        if config.position == "learned" and tokens_BT.shape[1] > config.positions:
            raise UserError(f"model.positions={config.positions}: fewer learned positions than the sequence's {tokens_BT.shape[1]} tokens")
        if segments_BS is not None:
            segments_BS = place.move(segments_BS, ("batch", None), "attention")  # once for all layers
        residual = place.spec(STREAM, "residual")
        x_BTD = lookup(self.embedding, tokens_BT, config, place, residual)
        if config.position == "learned":
            x_BTD += lookup(self.positions, positions_BT, config, place, residual)
        x_BTD = self.run_blocks(x_BTD, positions_BT, segments_BS)
        return place.move(self.final_norm(x_BTD), STREAM)

    @property
    def output(self) -> Weight:
        """The output projection [V, D]: the head, or the embedding where that is both."""
        return self.embedding if self.config.tied_embeddings else self.head

    def run_blocks(self, x_BTD: jax.Array, positions_BT: jax.Array, segments_BS: jax.Array | None) -> jax.Array:
        """All blocks in turn, scanned or unrolled, recomputing in the backward pass what the remat policy says.

        Where the layout splits `layers`, each group of devices runs its own, as a stage of a pipeline.
        """
        config = self.config
        graph, stacked = nnx.split(self.blocks)
        saved = saved_names(config.remat)

        def layers(stacked, x_BTD, positions_BT, segments_BS):
            rope = rope_tables(config, positions_BT) if config.position == "rope" else None

            def block(x_BTD, weights):
                return nnx.merge(graph, weights)(x_BTD, rope, segments_BS), None

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
            for weights in unstack(stacked):
                x_BTD, _ = block(x_BTD, weights)
            return x_BTD, None

        if self.place.axes("layers"):
            return run_pipeline(layers, self.place, stacked, x_BTD, positions_BT, segments_BS)[0]
        return layers(stacked, x_BTD, positions_BT, segments_BS)[0]


def check(config: ModelConfig, place: Placement, sequence_length: int) -> None:
    """Raises UserError where the model can't run on these devices as the layout wants it: all that can be said before compiling."""
    attention.check(config, place, sequence_length)
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
