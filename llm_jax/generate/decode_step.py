"""The jitted programs of decoding: a prompt into its slot, and one step of all slots. Compiled once for each bucket of lengths."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.generate.decode_layout import decoding_place
from llm_jax.generate.fused_mlp import join
from llm_jax.generate.request import MOST_LOGPROBS
from llm_jax.generate.sampling import Settings, draw
from llm_jax.model import kv_cache as caches
from llm_jax.model.transformer import Transformer
from llm_jax.train.compile import program_options
from llm_jax.train.state import TrainModel

LEAST_BUCKET = 16
"""Tokens of the smallest bucket of prompts."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeState:
    """What changes from step to step, on the devices: the caches are split as the layout says, the rest is everywhere."""

    caches: list[caches.Cache]
    """Of each layer."""
    token_B: jax.Array
    """The newest token of each slot, which the next step reads, int32."""
    position_B: jax.Array
    """Its position, int32."""
    seen_BV: jax.Array
    """Whether a token is in the slot's text."""


class DecodePrograms:
    """A model's weights as decoding reads them, and what is compiled for so many slots of so many positions.

    Weights of layers are arrays of their own here: a product with a part of a stack would copy that part first, at every step.
    """

    def __init__(self, program: TrainModel, slots: int, capacity: int, prompts: int, vocab: int, log: Callable[[str], None]):
        """prompts: rows of a prefill. vocab: of the tokenizer; rows of the embedding beyond it are never drawn."""
        config = program.config
        config = dataclasses.replace(config, remat="none", offload="", moe=dataclasses.replace(config.moe, dispatch="dropless"))
        self.place = decoding_place(program.place, config)
        self.program = TrainModel(config, program.optimizer, self.place)
        assert config.vocab
        self.slots, self.prompts, self.vocab, self.log = slots, prompts, vocab, log
        self.rows = config.vocab
        self.capacity = caches.cache_length(capacity)
        self.options = program_options(self.program)
        # A CPU's options for training are for large products. A product of a few rows with a [V, D] table takes 20 times as long by Eigen as by
        # XLA's own choice.
        self.tuned = ("prefill",) if self.place.platform() == "cpu" else ("prefill", "decode")
        self.everywhere = NamedSharding(self.place.mesh, PartitionSpec())
        self.compiled: dict[tuple[str, str], Any] = {}
        self.compile_seconds = 0.0
        with jax.set_mesh(self.place.mesh):
            jax.eval_shape(self.apart, self.program.abstract)

    # Weights

    def apart(self, parameters: Any) -> Any:
        """(weights outside of the blocks, [weights of each layer]); keeps their graphs."""
        model = self.program.model(parameters)
        blocks = [block for _, block, _ in model.layers_in_order()]
        for block in blocks:
            join(block)
        layers = [nnx.split(block) for block in blocks]
        for stack in ("blocks", "dense_blocks"):
            if hasattr(model, stack):
                delattr(model, stack)
        self.graph, outer = nnx.split(model)
        self.layer_graphs = [graph for graph, _ in layers]
        self.layer_configs = [self.program.config.of_layer(i) for i in range(len(layers))]
        return outer, [weights for _, weights in layers]

    def weights(self, parameters: Any) -> Any:
        """The weights as the programs take them, from parameters as they are trained and stored."""
        with jax.set_mesh(self.place.mesh):
            moved = jax.device_put(parameters, self.program.shardings("stored"))
            return jax.jit(self.apart)(moved)

    def empty(self) -> DecodeState:
        """The state before any request."""
        with jax.set_mesh(self.place.mesh):
            return jax.jit(self.blank)()

    def blank(self) -> DecodeState:
        """The same, to be traced."""
        kept = [caches.empty_cache(config, self.place, self.slots, self.capacity) for config in self.layer_configs]
        zeros = functools.partial(jnp.zeros, dtype=jnp.int32, out_sharding=PartitionSpec())
        seen_BV = jnp.zeros((self.slots, self.rows), bool, out_sharding=PartitionSpec())
        return DecodeState(kept, zeros(self.slots), zeros(self.slots), seen_BV)

    # What runs

    def prefill(self, weights: Any, state: DecodeState, tokens: list[list[int]], slots: list[int], settings: Settings) -> tuple[DecodeState, Any]:
        """The state with prompts in slots, each with its first token; and (token_P, logprob_P, logits_PV)."""
        bucket = self.bucket(max(map(len, tokens)))
        tokens_PT = np.zeros((self.prompts, bucket), np.int32)
        lengths_P, slots_P = np.ones(self.prompts, np.int32), np.full(self.prompts, -1, np.int32)
        for row, (ids, slot) in enumerate(zip(tokens, slots, strict=True)):
            tokens_PT[row, : len(ids)], lengths_P[row], slots_P[row] = ids, len(ids), slot
        arrays = self.put((tokens_PT, lengths_P, slots_P, settings))
        return self.run("prefill", f"{self.prompts} x {bucket} positions", self.prompt_program, (1,), weights, state, *arrays)

    def step(self, weights: Any, state: DecodeState, settings: Settings, length: int) -> tuple[DecodeState, Any]:
        """The state after one more token in every slot; and (token_B, logprob_B, logits_BV).

        settings: on the devices (`put`). length: of the longest text that matters.
        """
        size = caches.block_size(self.capacity)
        bucket = size
        while bucket < length:
            bucket *= 2
        bucket = min(bucket, self.capacity)
        program = functools.partial(self.step_program, bucket)
        return self.run("decode", f"{self.slots} x {bucket} positions", program, (1,), weights, state, settings)

    def put(self, arrays: Any) -> Any:
        """Arrays of numpy's on all devices."""
        return jax.device_put(arrays, self.everywhere)

    def bucket(self, tokens: int) -> int:
        """The length that prompts of so many tokens are padded to: a power of two, or all that a slot has room for."""
        bucket = LEAST_BUCKET
        while bucket < tokens:
            bucket *= 2
        return min(bucket, self.capacity)

    def most_likely(self, logits_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(logprobs, tokens) of the most likely tokens, [B, n] each: only run where somebody asks."""
        return self.run("log-probabilities", f"{len(logits_BV)} rows", most_likely, (), logits_BV)

    def run(self, name: str, size: str, program: Callable, donated: tuple[int, ...], *arguments: Any) -> Any:
        """Runs a program, compiled at its first use with this size; donated: which of its arguments."""
        with jax.set_mesh(self.place.mesh):
            if (name, size) not in self.compiled:
                begun = time.perf_counter()
                jitted = jax.jit(program, donate_argnums=donated, compiler_options=(self.options if name in self.tuned else None) or None)
                self.compiled[name, size] = jitted.lower(*arguments).compile()
                seconds = time.perf_counter() - begun
                self.compile_seconds += seconds
                self.log(f"compiled {name}: {size}, {seconds:.1f} s")
            return self.compiled[name, size](*arguments)

    # The programs

    def prompt_program(
        self, weights: Any, state: DecodeState, tokens_PT: jax.Array, lengths_P: jax.Array, slots_P: jax.Array, settings: Settings
    ) -> tuple[DecodeState, Any]:
        """Prompts from their first position on: their keys and values into their slots, and the token after each."""
        positions_PT = jnp.broadcast_to(jnp.arange(tokens_PT.shape[1]), tokens_PT.shape)
        model, x_PTD, kept = self.through_layers(
            weights,
            state,
            tokens_PT,
            positions_PT,
            lambda attention, cache, x, rope: caches.attend_prompt(attention, cache, x, rope, lengths_P, slots_P),
        )
        at_last = jnp.arange(tokens_PT.shape[1]) == (lengths_P - 1)[:, None]
        at_last = self.place.move(at_last, ("batch", None))
        x_P1D = jnp.sum(jnp.where(at_last[..., None], x_PTD, 0), 1, keepdims=True)
        logits_PV = self.logits(model, x_P1D)
        real_PT = jnp.arange(tokens_PT.shape[1]) < lengths_P[:, None]
        row_P = jnp.arange(self.prompts)
        seen_PV = jnp.zeros((self.prompts, self.rows), bool).at[row_P[:, None], jnp.where(real_PT, tokens_PT, self.rows)].set(True, mode="drop")
        token_P, logprob_P = draw(logits_PV, seen_PV, lengths_P, settings, self.vocab)
        seen_PV = seen_PV.at[row_P, token_P].set(True)
        slots_P = jnp.where(slots_P < 0, self.slots, slots_P)
        state = DecodeState(
            kept,
            state.token_B.at[slots_P].set(token_P, mode="drop"),
            state.position_B.at[slots_P].set(lengths_P, mode="drop"),
            state.seen_BV.at[slots_P].set(seen_PV, mode="drop"),
        )
        return state, (token_P, logprob_P, logits_PV)

    def step_program(self, length: int, weights: Any, state: DecodeState, settings: Settings) -> tuple[DecodeState, Any]:
        """One token of every slot, whether somebody waits for it or not."""
        position_B = jnp.minimum(state.position_B, self.capacity - 1)  # of slots that nobody uses any more
        split_B = self.place.move(position_B, ("batch",))
        tokens_B1, positions_B1 = (self.place.move(a[:, None], ("batch", None)) for a in (state.token_B, position_B))
        model, x_B1D, kept = self.through_layers(
            weights, state, tokens_B1, positions_B1, lambda attention, cache, x, rope: caches.attend_step(attention, cache, x, rope, split_B, length)
        )
        logits_BV = self.logits(model, x_B1D)
        token_B, logprob_B = draw(logits_BV, state.seen_BV, position_B + 1, settings, self.vocab)
        seen_BV = state.seen_BV.at[jnp.arange(self.slots), token_B].set(True)
        return DecodeState(kept, token_B, position_B + 1, seen_BV), (token_B, logprob_B, logits_BV)

    def through_layers(
        self, weights: Any, state: DecodeState, tokens_BT: jax.Array, positions_BT: jax.Array, attend: Callable
    ) -> tuple[Transformer, jax.Array, list[caches.Cache]]:
        """(the model without its blocks, the stream after all of them, the new caches)."""
        outer, layers = weights
        model = nnx.merge(self.graph, outer)
        tokens_BT, positions_BT = (self.place.move(a, ("batch", None)) for a in (tokens_BT, positions_BT))
        x_BTD = model.embed(tokens_BT, positions_BT)
        kept, ropes = [], {}
        for graph, layer, config, before in zip(self.layer_graphs, layers, self.layer_configs, state.caches, strict=True):
            block = nnx.merge(graph, layer)
            if config not in ropes:
                ropes[config] = block.attention.rope(positions_BT)

            def attend_cache(y_BTD, attention=block.attention, cache=before, rope=ropes[config]):
                out_BTD, after = attend(attention, cache, y_BTD, rope)
                kept.append(after)
                return out_BTD

            x_BTD, _ = block(x_BTD, attend_cache)
        return model, x_BTD, kept

    def logits(self, model: Transformer, x_B1D: jax.Array) -> jax.Array:
        """Float32 logits [B, V], on every device."""
        logits_B1V = model.logits(model.finish(x_B1D)).astype(jnp.float32)
        return jax.sharding.reshard(logits_B1V, PartitionSpec(None, None, None))[:, 0]


def most_likely(logits_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The program of `Programs.most_likely`."""
    logprobs, tokens = jax.lax.top_k(jax.nn.log_softmax(logits_BV), min(MOST_LOGPROBS, logits_BV.shape[-1]))
    return logprobs, tokens
