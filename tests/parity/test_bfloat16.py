"""In bfloat16 a layout is as near to one device as rounding lets anything be. Measured over 20 steps,
rounding where the program says so: left to itself XLA drops roundings between operations that it fuses, other
ones on one device than on eight.

Where only the batch is split, every product is the same and sums over devices are float32: the difference is
that of the same batch with its rows in another order, which moves the loss by 1e-5 (root mean square,
relative). Where products are split (tensor), their parts are rounded before they are added, so the yardstick
is bfloat16's own distance from float32, 2e-4. Both distances are those of one noise, amplified by 20 steps,
so the bound is a factor of 4; a bfloat16 sum of gradients already differs by 3 times the permuted batch.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from llm_jax.layout.presets import PRESETS
from tests.training import SMALL, packed_batch, train

MODEL = dataclasses.replace(SMALL, kv_heads=2, compute_dtype="bfloat16")
FACTOR = 4


@functools.cache
def losses(layout: str = "single", seed: int = 0, **model: str) -> np.ndarray:
    """20 losses; with a seed, each batch with its rows in another order."""

    def batches(step: int):
        batch = packed_batch(step)
        order = np.random.default_rng((seed, step)).permutation(len(batch["tokens"])) if seed else slice(None)
        return {name: values[order] for name, values in batch.items()}

    exact = {"xla_allow_excess_precision": False}
    history, _, _ = train(
        PRESETS[layout],
        MESHES.get(layout, {}),
        steps=20,
        model=dataclasses.replace(MODEL, **model),
        batches=batches,
        options=exact,
    )
    return np.array([metrics["train_loss"] for metrics in history])


MESHES = {"hybrid_fsdp": {"data": 4}, "fsdp_tensor": {"data": 4}}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The root mean square of the relative differences between two histories of losses."""
    return float(np.sqrt(np.mean(np.square(a / b - 1))))


@pytest.mark.parametrize("layout", ["fsdp", pytest.param("hybrid_fsdp", marks=pytest.mark.slow)])
def test_where_the_batch_is_split_bfloat16_differs_as_a_permuted_batch_does(layout):
    permuted = max(distance(losses(seed=seed), losses()) for seed in (1, 2, 3))
    assert 0 < distance(losses(layout), losses()) < FACTOR * permuted


def test_where_products_are_split_bfloat16_differs_as_from_float32():
    assert (
        0
        < distance(losses("fsdp_tensor"), losses())
        < FACTOR * distance(losses(compute_dtype="float32"), losses())
    )
