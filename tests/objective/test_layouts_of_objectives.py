"""The gradient of every objective is the same for any number of microbatches and devices, and every preset.

A property test: some combinations are drawn, and all are marked slow. One program has all objectives: it is
compiled once for each combination, and the sum of their losses has gradients of about equal size.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

from llm_jax.data.answer_rows import LabelledRows, PairRows
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS, preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.cpo import CPO
from llm_jax.objective.distill import Distill
from llm_jax.objective.dpo import DPO
from llm_jax.objective.kto import KTO
from llm_jax.objective.next_token import NextToken
from llm_jax.objective.orpo import ORPO
from llm_jax.objective.preference import AnswerObjective
from llm_jax.objective.protocol import OBJECTIVES, Loss, Objective, objective_names
from llm_jax.objective.reward import Reward
from llm_jax.objective.sft import SFT
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import Frozen, TrainModel, TrainState, join
from llm_jax.train.step import make_step
from tests.objective.given_logprobs import with_logprobs
from tests.training import first_state

MODEL = ModelConfig(
    layers=4, embed=32, heads=8, kv_heads=8, head_dim=8, mlp=64, vocab=128, outputs="reward"
).resolved()
"""Its head is for rewards; logits are made with the embedding."""
TEACHER = ModelConfig(layers=4, embed=16, heads=8, kv_heads=8, head_dim=4, mlp=32, vocab=128).resolved()
OPTIMIZER = OptimizerConfig(clip_norm=0.0, weight_decay=0.0)
PARTS: dict[Objective, float] = {
    NextToken(chunk=64): 0.12,
    SFT(chunk=64): 0.17,
    DPO(loss="ipo", sft=0.5): 1.2,
    KTO(undesirable_weight=0.5): 8.0,
    ORPO(): 5.0,
    CPO(): 3.7,
    CPO(loss="simpo", sft=0.1): 42.0,
    Reward(centring=0.01): 0.16,
    Distill(teacher="teacher", beta=0.5, hard=0.2, chunk=64): 0.87,
}
"""Each objective with a factor, so that no gradient hides behind another."""


class WithLogits:
    """The model with its embedding as the head for logits. All losses of a batch share one forward pass."""

    def __init__(self, policy: Any):
        self.policy, self.output, self.streamed = policy, policy.embedding, None

    def stream(self, *arguments: Any) -> Any:
        self.streamed = self.streamed or self.policy.stream(*arguments)
        return self.streamed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


@dataclass(frozen=True)
class AllAtOnce(Objective):
    """The sum of the losses of all objectives, or that of some."""

    parts: tuple[Objective, ...] = tuple(PARTS)

    def arrays(self):
        return {name: spec for part in PARTS for name, spec in part.arrays().items()} | {
            "everywhere": NextToken().arrays()["weights"]
        }

    def frozen(self):
        return {"teacher": "teacher"}

    def totals(self, policy, frozen, batch):
        return {
            f"{i} {name}": value
            for i, part in enumerate(self.parts)
            for name, value in part.totals(WithLogits(policy), frozen, batch).items()
        }

    def compute_loss(self, policy, frozen, batch):
        logits = WithLogits(policy)
        hidden, logp_BT = AnswerObjective().policy_logp(logits, batch)
        found, metrics = [], {}
        for i, part in enumerate(self.parts):
            own = {
                name.removeprefix(f"{i} "): value
                for name, value in batch.items()
                if " " not in name or name.startswith(f"{i} ")
            }
            if isinstance(part, AnswerObjective):
                part_ = with_logprobs(part, hidden, logp_BT)
            else:
                part_ = part
                own["weights"] = own["everywhere"] if part.name == "next_token" else own["weights"]
            loss = part_.compute_loss(logits, frozen, own)
            metrics |= {
                f"{i} {part.name} {name}": metric
                for name, metric in loss.metrics.items()
                if metric.weight is not None
            }
            found.append((PARTS[part], loss))
        total = sum(factor * loss.total for factor, loss in found)
        return Loss(total, sum(loss.weight for _, loss in found), metrics)


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Rows of pairs, with labels and mismatched rows of the same length, and a reference: arrays [32, 64]."""
    rng = np.random.default_rng(0)
    lengths_N = rng.integers(12, 30, 140)
    tokens = rng.zipf(1.4, lengths_N.sum()).astype(np.int32) % 128
    starts_N = np.cumsum(lengths_N) - lengths_N
    weights = np.concatenate([np.arange(n) >= n // 3 for n in lengths_N]).astype(np.uint8)
    common = {
        "length": 64,
        "seed": 3,
        "weights": weights,
        "values_N": rng.integers(0, 2, len(lengths_N)).astype(np.float32),
    }
    pairs, labelled = (Rows(tokens, starts_N, lengths_N, **common) for Rows in (PairRows, LabelledRows))
    for rows in (pairs, labelled.mismatched):
        rows.numbers["reference_logp"] = rng.uniform(-9, -1, len(rows.tokens)).astype(np.float32)
    assert len(pairs.plan) >= 32
    made = []
    for index in range(32):
        row = labelled[index] | pairs[index]  # the tokens of pairs; labels by segment
        row["labels"] = ((row["segments"] % 3) > 0).astype(np.float32)
        row["everywhere"] = row["continues"]
        made.append(row)
    return {name: np.stack([row[name] for row in made]) for name in AllAtOnce().arrays()}


@functools.cache
def state() -> TrainState:
    """The state of one device, whose head has rewards other than 0."""
    first = first_state(MODEL, OPTIMIZER, 0.0)
    head = np.random.default_rng(1).normal(size=first.parameters["head"].shape).astype(np.float32)
    return dataclasses.replace(first, parameters=join(first.parameters, {}) | {"head": head})


def on(program: TrainModel, tree: Any, like: Any) -> Any:
    """A tree of host arrays on the devices, sharded as `like`."""
    return jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding, may_alias=False), tree, like)


def one_step(
    layout: str, mesh: dict[str, int], microbatches: int, objective: AllAtOnce = AllAtOnce()
) -> tuple[dict[str, float], dict]:
    """(metrics, gradient) of the first step."""
    tables = preset(layout)
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    place = MeshPlacement(tables, make_mesh(tables, mesh, devices))
    program, teacher = (TrainModel(config, OPTIMIZER, place) for config in (MODEL, TEACHER))
    models = {"teacher": teacher}
    step = program.jit(make_step(program, objective, lambda s: 1e-3, OPTIMIZER.clip_norm, models))
    sharding = place.sharding((None, "batch", "sequence"), "compute")
    theirs = first_state(TEACHER, OPTIMIZER, 0.0).parameters
    with jax.set_mesh(place.mesh):
        arrays = {
            name: jax.device_put(value.reshape(microbatches, -1, value.shape[-1]), sharding)
            for name, value in batch().items()
        }
        frozen = Frozen(models={"teacher": on(teacher, theirs, teacher.abstract_parameters())})
        after, metrics = step(on(program, state(), program.abstract_state()), arrays, frozen)
    # Adam's first moment after one step is the gradient, times a constant.
    first = {
        jax.tree_util.keystr(path): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(after.moments)
        if ".mu" in jax.tree_util.keystr(path)
    }
    assert first
    return {name: float(value) for name, value in metrics.items()}, first


@functools.cache
def alone() -> tuple[dict[str, float], dict]:
    return one_step("single", {"data": 1}, 1)


def meshes(name: str) -> list[dict[str, int]]:
    """The mesh of a preset on 1, 2 and 8 devices: the last axis that isn't of data takes what there is first."""
    axes = list(PRESETS[name].mesh)
    if name == "single":
        return [{"data": 1}]
    one = dict.fromkeys(axes, 1)
    first = next((axis for axis in axes if axis != "data"), axes[0])
    eight = {1: (8,), 2: (2, 4) if axes[0] == "data" else (4, 2), 3: (2, 2, 2)}[len(axes)]
    return [one, one | {first: 2}, dict(zip(axes, eight, strict=True))]


ALL = [(name, mesh, n) for name in sorted(PRESETS) for mesh in meshes(name) for n in (1, 2, 4)]
ALL.remove(("single", {"data": 1}, 1))
DRAWN = [("fsdp_tensor", {"data": 4, "tensor": 2}, 2), ("context_ring", {"data": 4, "context": 2}, 1)]
DRAWN += random.Random(16).sample(
    [one for one in ALL if one not in DRAWN and np.prod([*one[1].values()]) == 2], 1
)


def name_of(one: Any) -> str:
    return "x".join(f"{axis}{size}" for axis, size in one.items()) if isinstance(one, dict) else str(one)


@pytest.mark.parametrize(
    ("layout", "mesh", "microbatches"),
    [*DRAWN, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALL if one not in DRAWN)],
    ids=name_of,
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


def test_every_objective_is_there():
    """Those of the package, and on 1, 2 and 8 devices every preset."""
    of_package = {name for name in objective_names() if OBJECTIVES[name].__module__.startswith("llm_jax.")}
    assert of_package == {part.name for part in PARTS}
    assert {(name, int(np.prod([*mesh.values()]))) for name, mesh, _ in ALL} >= {
        (name, n) for name in PRESETS if name != "single" for n in (1, 2, 8)
    }


@pytest.mark.slow
def test_no_gradient_hides_behind_another():
    """The gradient of each part of the sum is at least a twentieth of the whole in each array that it trains."""
    (whole, gradient), parts = alone(), {}
    for part in PARTS:
        metrics, own = one_step("single", {"data": 1}, 1, AllAtOnce(parts=(part,)))
        # Both are means, over weights of their own.
        scale = metrics["loss_weight"] / whole["loss_weight"]
        parts[part] = {
            name: scale * np.linalg.norm(x) / np.linalg.norm(gradient[name])
            for name, x in own.items()
            if x.any()
        }
    assert len(parts) == len(PARTS)
    assert min(min(sizes.values()) for sizes in parts.values()) > 0.05, parts
