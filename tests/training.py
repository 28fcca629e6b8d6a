"""Small training runs for tests, without a run folder: the real step on synthetic packed documents."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from llm_jax.layout.layout import Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.train.optimizer import OptimizerConfig, make_schedule
from llm_jax.train.program_options import program_options
from llm_jax.train.state import TrainModel, TrainState
from llm_jax.train.step import make_step

# Grouped-query heads, tied embeddings; every dim divides by 8 devices.
SMALL = ModelConfig(layers=2, embed=32, heads=8, kv_heads=8, head_dim=8, mlp=64, vocab=128)
BATCH, LENGTH = 8, 32


def packed_batch(
    step: int, batch: int = BATCH, length: int = LENGTH, vocab: int = 128
) -> dict[str, np.ndarray]:
    """Rows of several documents, with some padding at the end of a row and targets inside documents only."""
    rng = np.random.default_rng(step)
    tokens = rng.zipf(1.5, (batch, length)).astype(np.int32) % vocab
    segments = 1 + np.cumsum(rng.random((batch, length)) < 0.1, 1).astype(np.int32)
    segments[0, -3:] = 0
    starts = np.maximum.accumulate(
        np.where(np.diff(segments, axis=1, prepend=-1) != 0, np.arange(length), 0), axis=1
    )
    same = np.concatenate([segments[:, 1:] == segments[:, :-1], np.zeros((batch, 1), bool)], 1) & (
        segments > 0
    )
    return {
        "tokens": tokens,
        "targets": np.where(same, np.roll(tokens, -1, 1), 0).astype(np.int32),
        "weights": same.astype(np.float32),
        "segments": segments,
        "positions": (np.arange(length) - starts).astype(np.int32),
    }


@functools.cache
def first_state(model: ModelConfig, optimizer: OptimizerConfig, ema_decay: float) -> TrainState:
    """The initial state of one device, as arrays of numpy: made once for all layouts."""
    layout = preset("single")
    state = TrainModel(model, optimizer, MeshPlacement(layout, make_mesh(layout, {})), ema_decay).new_state(0)
    return jax.tree.map(np.array, state)


def placed_state(program: TrainModel, optimizer: OptimizerConfig, ema_decay: float) -> TrainState:
    """`program.new_state(0)` without its compilation, a third of a small run's time: that both are equal is a test of tests/parity.

    One device, several processes: the program's own.
    """
    if program.place.mesh.size == 1 or jax.process_count() > 1:
        return program.new_state(0)
    state = first_state(program.config, optimizer, ema_decay)
    return jax.tree.map(
        lambda host, leaf: jax.device_put(host, leaf.sharding, may_alias=False),
        state,
        program.abstract_state(),
    )


def train(
    layout: Layout,
    mesh: dict[str, int],
    *,
    steps: int,
    model: ModelConfig = SMALL,
    optimizer: OptimizerConfig | None = None,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    z_loss: float = 1e-4,
    batches: Any = packed_batch,
    options: Any = None,
) -> tuple[list[dict[str, float]], TrainState, TrainModel]:
    """Metrics of every step, the last state, and the program; `options` are more of XLA's."""
    optimizer = optimizer or OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    place = MeshPlacement(layout, make_mesh(layout, mesh))
    program = TrainModel(model.resolved(), optimizer, place, ema_decay)
    objective = NextToken(z_loss=z_loss, chunk=64)
    options = program_options(program) | (options or {})
    step = jax.jit(
        make_step(program, objective, make_schedule(optimizer, steps), optimizer.clip_norm),
        donate_argnums=0,
        compiler_options=options,
    )
    state, history = placed_state(program, optimizer, ema_decay), []
    with jax.set_mesh(place.mesh):
        for s in range(steps):
            arrays = {
                name: jax.device_put(
                    v.reshape(microbatches, -1, v.shape[-1]),
                    place.sharding((None, "batch", "sequence"), "compute"),
                )
                for name, v in batches(s).items()
            }
            state, metrics = step(state, arrays)
            history.append({name: float(value) for name, value in metrics.items()})
    return history, state, program
