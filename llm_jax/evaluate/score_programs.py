"""The compiled programs of the scorer: they read runs of tokens into a cache, layer by layer, and score the
tokens after them.

Every call has the same number of positions, whatever their arrangement in rows, so that products have the
same shapes, and a position's result the same bits, for every batch size and length (`model.kv_runs` has the
rest of that promise).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from llm_jax.generate.unstacked import UnstackedModel
from llm_jax.model import kv_runs
from llm_jax.model.config import ModelConfig
from llm_jax.model.kv_cache import Cache
from llm_jax.train.state import TrainModel

HEAD_ROWS = 64
"""Positions whose logits are made at once: a multiple of what layouts split a batch into."""


class TokenScores(NamedTuple):
    """Scores of `HEAD_ROWS` tokens, on every device."""

    logprobs_N: jax.Array
    """float32, nats."""
    greedy_N: jax.Array
    """bool: whether no token is likelier (of equal ones, none with a lower id)."""
    top_ids_NK: jax.Array
    """int32."""
    top_logprobs_NK: jax.Array
    """float32, nats."""


class ScorePrograms(UnstackedModel):
    """Programs for one model, each compiled when it is first called with arguments of a shape.

    A layer is a program of its own, which all layers of one configuration share: it compiles in a fraction of
    the time of the whole model.
    """

    def __init__(self, model: TrainModel, top: int):
        """top: how many most likely tokens are reported."""
        super().__init__(model)
        self.top = top
        jit = self.model.jit
        self.layers = {
            (graph, config): jit(functools.partial(self.layer_program, graph, config), donate_argnums=(1, 2))
            for graph, config in zip(self.graphs.layers, self.graphs.configs, strict=True)
        }
        self.embed, self.head = jit(self.embed_program), jit(self.head_program)
        self.copy = jit(self.copy_program, donate_argnums=0)

    def empty_caches(self, rows: int, length: int) -> list[Cache]:
        """A cache of so many rows and positions for each layer."""
        empty = {
            config: self.model.jit(functools.partial(kv_runs.empty_cache, config, self.place, rows, length))
            for config in set(self.graphs.configs)
        }
        with jax.set_mesh(self.place.mesh):
            return [empty[config]() for config in self.graphs.configs]

    def cache_bytes(self, rows: int, length: int) -> int:
        """The bytes of these caches on all devices together."""
        with jax.set_mesh(self.place.mesh):
            caches = jax.eval_shape(
                lambda: [
                    kv_runs.empty_cache(config, self.place, rows, length) for config in self.graphs.configs
                ]
            )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(caches))

    def read(
        self,
        weights: Any,
        caches: list[Cache],
        rows_B: np.ndarray,
        starts_B: np.ndarray,
        tokens_BT: np.ndarray,
    ) -> jax.Array:
        """The stream x_BTD after the last block, of runs that are read into the caches (the list changes).

        rows_B: see `kv_runs.attend_runs`.
        """
        outer, layers = weights
        with jax.set_mesh(self.place.mesh):
            rows, starts = (self.split(a, ("batch",)) for a in (rows_B, starts_B))
            x_BTD = self.embed(outer, self.split(tokens_BT, ("batch", None)), starts)
            for number, (graph, config, layer) in enumerate(
                zip(self.graphs.layers, self.graphs.configs, layers, strict=True)
            ):
                run = self.layers[graph, config]
                x_BTD, caches[number] = run(layer, x_BTD, caches[number], rows, starts)
        return x_BTD

    def scores(self, weights: Any, x_BTD: jax.Array, at_N: np.ndarray, tokens_N: np.ndarray) -> TokenScores:
        """The scores of `HEAD_ROWS` tokens. at_N: the position before each, as row x T + index in the row."""
        with jax.set_mesh(self.place.mesh):
            return self.head(weights[0], x_BTD, *(self.split(a, (None,)) for a in (at_N, tokens_N)))

    def copy_rows(self, caches: list[Cache], *pairs: np.ndarray) -> list[Cache]:
        """The caches with rows copied. pairs: the last three arguments of `kv_runs.copy_rows`."""
        with jax.set_mesh(self.place.mesh):
            return self.copy(caches, *(self.split(a, ("batch",)) for a in pairs))

    def split(self, array: np.ndarray, dims: tuple[str | None, ...]) -> jax.Array:
        """An array that all processes have, on the devices."""
        return jax.make_array_from_callback(
            array.shape, self.place.sharding(dims, "compute"), array.__getitem__
        )

    # Programs, to be traced

    def embed_program(self, outer: Any, tokens_BT: jax.Array, starts_B: jax.Array) -> jax.Array:
        """The stream before the first block."""
        model = nnx.merge(self.graphs.outer, outer)
        positions_BT = positions(starts_B, tokens_BT.shape[1])
        if model.config.position == "learned":  # padding may be beyond the last
            positions_BT = jnp.minimum(positions_BT, model.config.positions - 1)
        return model.embed(tokens_BT, positions_BT)

    def layer_program(
        self,
        graph: Any,
        config: ModelConfig,
        weights: Any,
        x_BTD: jax.Array,
        cache: Cache,
        rows_B: jax.Array,
        starts_B: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """(the stream after the block, its cache with the runs)."""
        block = nnx.merge(graph, weights)
        rope = block.attention.rope(positions(starts_B, x_BTD.shape[1]))
        caches = []

        def attend(y_BTD: jax.Array) -> jax.Array:
            out_BTD, new = kv_runs.attend_runs(block.attention, cache, y_BTD, rope, rows_B, starts_B)
            caches.append(new)
            return out_BTD

        x_BTD, _ = block(x_BTD, attend)
        return x_BTD, caches[0]

    def head_program(self, outer: Any, x_BTD: jax.Array, at_N: jax.Array, tokens_N: jax.Array) -> TokenScores:
        """The scores of the tokens after some positions."""
        model = nnx.merge(self.graphs.outer, outer)
        x_BTD = jax.sharding.reshard(x_BTD, PartitionSpec(None, None, None))
        x_N1D = x_BTD.reshape(-1, x_BTD.shape[-1])[at_N][:, None]
        x_N1D = self.place.move(x_N1D, ("batch", "sequence", "embed"), "residual")
        logits_N1V = model.logits(model.finish(x_N1D)).astype(jnp.float32)
        logits_NV = jax.sharding.reshard(logits_N1V, PartitionSpec(None, None, None))[:, 0]
        logprobs_NV = jax.nn.log_softmax(logits_NV)
        own_N = jnp.take_along_axis(logprobs_NV, tokens_N[:, None], 1)[:, 0]
        top_NK, ids_NK = jax.lax.top_k(logprobs_NV, self.top)
        return TokenScores(own_N, jnp.argmax(logits_NV, -1) == tokens_N, ids_NK, top_NK)

    def copy_program(
        self, caches: list[Cache], from_P: jax.Array, to_P: jax.Array, count_D: jax.Array
    ) -> list[Cache]:
        """The caches with rows copied."""
        return jax.tree.map(lambda x: kv_runs.copy_rows(x, from_P, to_P, count_D, self.place), caches)


def positions(starts_B: jax.Array, length: int) -> jax.Array:
    """positions_BT of runs that begin at `starts_B`."""
    return starts_B[:, None] + jnp.arange(length, dtype=jnp.int32)
