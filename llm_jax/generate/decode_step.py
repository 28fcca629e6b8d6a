"""The compiled programs of decoding: one reads prompts into slots, one draws the next token of every slot.

Each program is compiled once for each bucket of lengths.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.core.arithmetic import round_up
from llm_jax.generate.request import MAX_LOGPROBS
from llm_jax.generate.sampling import Settings, draw
from llm_jax.generate.unstacked import UnstackedModel
from llm_jax.model import kv_cache as caches
from llm_jax.model.transformer import Transformer
from llm_jax.train.state import TrainModel

SMALLEST_BUCKET = 16
"""Tokens that the shortest prompts are padded to."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeState:
    """The arrays that change from step to step. The caches are split over devices by the layout; the other
    arrays are on every device."""

    caches: list[caches.Cache]
    """One for each layer, bottom to top."""
    token_B: jax.Array
    """int32: the newest token of each slot, which the next step reads."""
    position_B: jax.Array
    """int32: the position of that token."""
    seen_BV: jax.Array
    """bool: whether a token is in the slot's prompt or continuation."""


class DecodePrograms(UnstackedModel):
    """Prefill and decode of one model, compiled for a fixed number of slots with a fixed number of positions.

    The programs take each layer's weights as separate arrays: a product with a slice of stacked weights would
    copy the slice at every step.
    """

    def __init__(
        self,
        model: TrainModel,
        slots: int,
        capacity: int,
        prefill_rows: int,
        tokenizer_vocab: int,
        log: Callable[[str], None],
    ):
        """Traces the model; nothing is compiled yet.

        slots: texts that are decoded at once. prefill_rows: prompts that are read at once. Both are rounded
        up to a multiple of what the layout splits the batch into. capacity: positions of a slot.
        tokenizer_vocab: ids from this one on, which only pad the embedding, are never drawn. log: called with
        a line for each compilation.
        """
        super().__init__(model)
        vocab = self.model.config.vocab
        assert vocab
        batch_split = self.place.size(self.place.axes("batch"))
        self.slots, self.prefill_rows = (round_up(n, batch_split) for n in (slots, prefill_rows))
        self.tokenizer_vocab, self.log = tokenizer_vocab, log
        self.vocab_rows = vocab
        self.capacity = caches.cache_length(capacity)
        # The compiler options for training on a CPU are for large products. Eigen, which they choose, takes
        # 20 times as long as XLA's own code for a product of a few rows with a [V, D] table. That code
        # computes the lengths of W + A B wrongly, which DoRA takes.
        own_choice = self.place.platform() == "cpu" and not self.model.adapted.config.dora
        self.with_options = ("prefill",) if own_choice else ("prefill", "decode")
        self.replicated = NamedSharding(self.place.mesh, PartitionSpec())
        self.compiled: dict[tuple[str, str], Any] = {}
        self.compile_seconds = 0.0

    def initial_state(self) -> DecodeState:
        """The state before any request: zeros, allocated on the devices."""
        with jax.set_mesh(self.place.mesh):
            return self.model.jit(self.initial_state_program)()

    def initial_state_program(self) -> DecodeState:
        """The body of `initial_state`, to be traced."""
        empty = [
            caches.empty_cache(config, self.place, self.slots, self.capacity)
            for config in self.graphs.configs
        ]
        zeros = functools.partial(jnp.zeros, dtype=jnp.int32, out_sharding=PartitionSpec())
        seen_BV = jnp.zeros((self.slots, self.vocab_rows), bool, out_sharding=PartitionSpec())
        return DecodeState(empty, zeros(self.slots), zeros(self.slots), seen_BV)

    # Calls

    def prefill(
        self, weights: Any, state: DecodeState, tokens: list[list[int]], slots: list[int], settings: Settings
    ) -> tuple[DecodeState, Any]:
        """(the state with each prompt in its slot and its first token drawn, (token_P, logprob_P,
        logits_PV)).

        tokens: the ids of each prompt, at most `prefill_rows` prompts. slots: the slot of each. settings:
        numpy arrays [prefill_rows].
        """
        bucket = self.bucket(max(map(len, tokens)))
        tokens_PT = np.zeros((self.prefill_rows, bucket), np.int32)
        lengths_P, slots_P = np.ones(self.prefill_rows, np.int32), np.full(self.prefill_rows, -1, np.int32)
        for row, (ids, slot) in enumerate(zip(tokens, slots, strict=True)):
            tokens_PT[row, : len(ids)], lengths_P[row], slots_P[row] = ids, len(ids), slot
        arrays = self.replicate((tokens_PT, lengths_P, slots_P, settings))
        return self.run(
            "prefill",
            f"{self.prefill_rows} x {bucket} positions",
            self.prefill_program,
            (1,),
            weights,
            state,
            *arrays,
        )

    def step(
        self, weights: Any, state: DecodeState, settings: Settings, length: int
    ) -> tuple[DecodeState, Any]:
        """(the state after one more token in every slot, (token_B, logprob_B, logits_BV)).

        settings: on the devices (`replicate`). length: tokens of the longest text whose next token is wanted.
        """
        bucket = next((n for n in self.step_buckets() if n >= length), self.capacity)
        program = functools.partial(self.step_program, bucket)
        return self.run(
            "decode", f"{self.slots} x {bucket} positions", program, (1,), weights, state, settings
        )

    def replicate(self, arrays: Any) -> Any:
        """A tree of numpy arrays, copied to every device."""
        return jax.device_put(arrays, self.replicated)

    def bucket(self, tokens: int) -> int:
        """The length that prompts of this many tokens are padded to: a power of two, at most a slot's
        capacity."""
        bucket = SMALLEST_BUCKET
        while bucket < tokens:
            bucket *= 2
        return min(bucket, self.capacity)

    def prefill_buckets(self) -> list[int]:
        """All values of `bucket`, shortest first: there is a program for each."""
        return doubled(SMALLEST_BUCKET, self.capacity)

    def step_buckets(self) -> list[int]:
        """The positions of the caches that a step may read, shortest first: there is a program for each."""
        return doubled(caches.block_size(self.capacity), self.capacity)

    def top_logprobs(self, logits_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(logprobs, token ids) of the `MAX_LOGPROBS` most likely tokens, [B, n] each, best first. Its own
        program: most steps don't need it."""
        return self.run("log-probabilities", f"{len(logits_BV)} rows", top_logprobs_program, (), logits_BV)

    def run(self, name: str, size: str, program: Callable, donated: tuple[int, ...], *arguments: Any) -> Any:
        """Runs a program; the first call with a (name, size) compiles it and logs so. donated: numbers of the
        arguments that it overwrites."""
        with jax.set_mesh(self.place.mesh):
            if (name, size) not in self.compiled:
                begun = time.perf_counter()
                options = self.options if name in self.with_options else None
                jitted = jax.jit(program, donate_argnums=donated, compiler_options=options or None)
                self.compiled[name, size] = jitted.lower(*arguments).compile()
                seconds = time.perf_counter() - begun
                self.compile_seconds += seconds
                self.log(f"compiled {name}: {size}, {seconds:.1f} s")
            return self.compiled[name, size](*arguments)

    # Programs

    def prefill_program(
        self,
        weights: Any,
        state: DecodeState,
        tokens_PT: jax.Array,
        lengths_P: jax.Array,
        slots_P: jax.Array,
        settings: Settings,
    ) -> tuple[DecodeState, Any]:
        """The body of `prefill`, to be traced. Rows of padding have slot -1 and change nothing."""
        positions_PT = jnp.broadcast_to(jnp.arange(tokens_PT.shape[1]), tokens_PT.shape)
        model, x_PTD, new_caches = self.through_layers(
            weights,
            state,
            tokens_PT,
            positions_PT,
            lambda attention, cache, x, rope: caches.attend_prompt(
                attention, cache, x, rope, lengths_P, slots_P
            ),
        )
        is_last_PT = jnp.arange(tokens_PT.shape[1]) == (lengths_P - 1)[:, None]
        is_last_PT = self.place.move(is_last_PT, ("batch", None))
        x_P1D = jnp.sum(jnp.where(is_last_PT[..., None], x_PTD, 0), 1, keepdims=True)
        logits_PV = self.logits(model, x_P1D)
        real_PT = jnp.arange(tokens_PT.shape[1]) < lengths_P[:, None]
        row_P = jnp.arange(self.prefill_rows)
        seen_PV = jnp.zeros((self.prefill_rows, self.vocab_rows), bool)
        seen_PV = seen_PV.at[row_P[:, None], jnp.where(real_PT, tokens_PT, self.vocab_rows)].set(
            True, mode="drop"
        )
        token_P, logprob_P = draw(logits_PV, seen_PV, lengths_P, settings, self.tokenizer_vocab)
        seen_PV = seen_PV.at[row_P, token_P].set(True)
        slots_P = jnp.where(slots_P < 0, self.slots, slots_P)  # past the last slot: dropped
        state = DecodeState(
            new_caches,
            state.token_B.at[slots_P].set(token_P, mode="drop"),
            state.position_B.at[slots_P].set(lengths_P, mode="drop"),
            state.seen_BV.at[slots_P].set(seen_PV, mode="drop"),
        )
        return state, (token_P, logprob_P, logits_PV)

    def step_program(
        self, length: int, weights: Any, state: DecodeState, settings: Settings
    ) -> tuple[DecodeState, Any]:
        """The body of `step`, to be traced. Free slots are decoded too; their tokens are discarded. length:
        positions of the caches that are read."""
        position_B = jnp.minimum(
            state.position_B, self.capacity - 1
        )  # a free slot's position could pass the end
        split_B = self.place.move(position_B, ("batch",))
        tokens_B1, positions_B1 = (
            self.place.move(a[:, None], ("batch", None)) for a in (state.token_B, position_B)
        )
        model, x_B1D, new_caches = self.through_layers(
            weights,
            state,
            tokens_B1,
            positions_B1,
            lambda attention, cache, x, rope: caches.attend_step(attention, cache, x, rope, split_B, length),
        )
        logits_BV = self.logits(model, x_B1D)
        token_B, logprob_B = draw(logits_BV, state.seen_BV, position_B + 1, settings, self.tokenizer_vocab)
        seen_BV = state.seen_BV.at[jnp.arange(self.slots), token_B].set(True)
        return DecodeState(new_caches, token_B, position_B + 1, seen_BV), (token_B, logprob_B, logits_BV)

    def through_layers(
        self,
        weights: Any,
        state: DecodeState,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        attend: Callable,
    ) -> tuple[Transformer, jax.Array, list[caches.Cache]]:
        """(the model without its blocks, the residual stream x_BTD after the last block, the new caches).

        attend: (attention module, cache, x_BTD, rope) → (what attention adds to the stream, the new cache).
        """
        outer, layers = weights
        model = nnx.merge(self.graphs.outer, outer)
        tokens_BT, positions_BT = (self.place.move(a, ("batch", None)) for a in (tokens_BT, positions_BT))
        x_BTD = model.embed(tokens_BT, positions_BT)
        new_caches, ropes = [], {}
        for graph, layer, config, cache in zip(
            self.graphs.layers, layers, self.graphs.configs, state.caches, strict=True
        ):
            block = nnx.merge(graph, layer)
            if config not in ropes:
                ropes[config] = block.attention.rope(positions_BT)

            def attend_cache(y_BTD, attention=block.attention, cache=cache, rope=ropes[config]):
                out_BTD, new_cache = attend(attention, cache, y_BTD, rope)
                new_caches.append(new_cache)
                return out_BTD

            x_BTD, _ = block(x_BTD, attend_cache)
        return model, x_BTD, new_caches

    def logits(self, model: Transformer, x_B1D: jax.Array) -> jax.Array:
        """logits_BV, float32, on every device, from the residual stream after the last block."""
        logits_B1V = model.logits(model.finish(x_B1D)).astype(jnp.float32)
        return jax.sharding.reshard(logits_B1V, PartitionSpec(None, None, None))[:, 0]


def top_logprobs_program(logits_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The body of `DecodePrograms.top_logprobs`, to be traced."""
    logprobs, tokens = jax.lax.top_k(jax.nn.log_softmax(logits_BV), min(MAX_LOGPROBS, logits_BV.shape[-1]))
    return logprobs, tokens


def doubled(least: int, most: int) -> list[int]:
    """`least`, twice that and so on, and in the end `most`.

    >>> doubled(16, 80), doubled(16, 8)
    ([16, 32, 64, 80], [8])
    """
    return [*itertools.takewhile(lambda n: n < most, (least << i for i in itertools.count())), most]
