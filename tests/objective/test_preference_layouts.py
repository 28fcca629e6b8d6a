"""The gradient of every preference objective is the same for any number of microbatches and devices, and every
preset."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from llm_jax.data.answer_rows import LabelledRows, PairRows
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS, preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.cpo import CPO
from llm_jax.objective.dpo import DPO
from llm_jax.objective.kto import KTO
from llm_jax.objective.orpo import ORPO
from llm_jax.objective.preference import AnswerObjective
from llm_jax.objective.protocol import Loss
from llm_jax.train.compile import program_options
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel
from llm_jax.train.step import make_step
from tests.objective.given_logprobs import with_logprobs
from tests.training import placed_state

MODEL = ModelConfig(layers=4, embed=32, heads=8, kv_heads=8, head_dim=8, mlp=64, vocab=128)
OPTIMIZER = OptimizerConfig(clip_norm=0.0, weight_decay=0.0)
PARTS = (DPO(loss="ipo", sft=0.5), KTO(undesirable_weight=0.5), ORPO(), CPO(loss="simpo", sft=0.1))


@dataclass(frozen=True)
class AllAtOnce(AnswerObjective):
    """The sum of the losses of all objectives, so that one program is compiled for all of them."""

    def arrays(self):
        return {name: spec for part in PARTS for name, spec in part.arrays().items()}

    def totals(self, policy, frozen, batch):
        return {
            f"{part.name} {name}": value
            for part in PARTS
            for name, value in part.totals(policy, frozen, batch).items()
        }

    def compute_loss(self, policy, frozen, batch):
        found = []
        hidden, logp_BT = self.policy_logp(policy, batch)
        for part in PARTS:
            own = {
                name.removeprefix(f"{part.name} "): value
                for name, value in batch.items()
                if " " not in name or name.startswith(f"{part.name} ")
            }
            found.append(with_logprobs(part, hidden, logp_BT).compute_loss(policy, frozen, own))
        metrics = {
            f"{part.name}_{name}": metric
            for part, loss in zip(PARTS, found, strict=True)
            for name, metric in loss.metrics.items()
            if metric.weight is not None
        }
        return Loss(sum(loss.total for loss in found), sum(loss.weight for loss in found), metrics)


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Rows of pairs, with labels and mismatched rows of the same length, and a reference: arrays [8, 128]."""
    rng = np.random.default_rng(0)
    lengths_N = rng.integers(20, 50, 60)
    tokens = rng.zipf(1.4, lengths_N.sum()).astype(np.int32) % 128
    starts_N = np.cumsum(lengths_N) - lengths_N
    weights = np.concatenate([np.arange(n) >= n // 3 for n in lengths_N]).astype(np.uint8)
    common = {
        "length": 128,
        "seed": 3,
        "weights": weights,
        "values_N": rng.integers(0, 2, 60).astype(np.float32),
    }
    pairs, labelled = (Rows(tokens, starts_N, lengths_N, **common) for Rows in (PairRows, LabelledRows))
    for rows in (pairs, labelled.mismatched):
        rows.numbers["reference_logp"] = rng.uniform(-9, -1, len(rows.tokens)).astype(np.float32)
    made = []
    for index in range(8):
        row = labelled[index] | pairs[index]  # the tokens of pairs; labels by segment
        row["labels"] = ((row["segments"] % 3) > 0).astype(np.float32)
        made.append(row)
    assert len(pairs.plan) >= 8
    return {name: np.stack([row[name] for row in made]) for name in AllAtOnce().arrays()}


def one_step(layout: str, mesh: dict[str, int], microbatches: int) -> tuple[dict[str, float], dict]:
    """(metrics, gradient) of the first step."""
    place = MeshPlacement(preset(layout), make_mesh(preset(layout), mesh))
    program = TrainModel(MODEL.resolved(), OPTIMIZER, place)
    step = jax.jit(
        make_step(program, AllAtOnce(), lambda s: 1e-3, OPTIMIZER.clip_norm),
        compiler_options=program_options(program),
    )
    sharding = place.sharding((None, "batch", "sequence"), "compute")
    with jax.set_mesh(place.mesh):
        arrays = {
            name: jax.device_put(value.reshape(microbatches, -1, value.shape[-1]), sharding)
            for name, value in batch().items()
        }
        state, metrics = step(placed_state(program, OPTIMIZER, 0.0), arrays)
    # Adam's first moment after one step is the gradient, times a constant.
    moments = jax.tree_util.tree_leaves_with_path(state.moments)
    first = {
        jax.tree_util.keystr(path): np.asarray(x)
        for path, x in moments
        if ".mu" in jax.tree_util.keystr(path)
    }
    assert first
    return {name: float(value) for name, value in metrics.items()}, first


@functools.cache
def alone() -> tuple[dict[str, float], dict]:
    return one_step("single", {}, 1)


FAST = [("fsdp_tensor", {"data": 4, "tensor": 2}, 2), ("context_ring", {}, 1)]
ALL = [(name, {}, 1) for name in sorted(PRESETS) if name not in ("single", "context_ring")]
ALL += [("single", {}, 2), ("single", {}, 4), ("data_parallel", {"data": 2}, 4)]


@pytest.mark.parametrize(
    ("layout", "mesh", "microbatches"), [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALL)]
)
def test_the_gradient_is_that_of_one_device_and_one_microbatch(layout, mesh, microbatches):
    metrics, gradient = alone()
    metrics_, gradient_ = one_step(layout, mesh, microbatches)
    for name in metrics:
        assert metrics_[name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-6), name
    for name, expected in gradient.items():
        np.testing.assert_allclose(
            gradient_[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name
        )
