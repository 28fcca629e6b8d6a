"""A pipeline computes what one device computes: the loss and every gradient, whatever flows through it and
however it is cut.

Gradients are compared in float32, each with the largest of its array: 1e-5 is the order in which sums are
taken (seen: 1e-6). (Or with a thousandth of the largest of all: that of a key's bias is rounding and nothing
else, as softmax takes no notice of it.)
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from llm_jax.layout.layout import Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS, STAGES, TENSOR
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import PipelineConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel
from tests.parity.test_layouts import assert_same
from tests.tiny_run import launch, summary
from tests.training import SMALL, packed_batch, train

DEEP = dataclasses.replace(SMALL, layers=4, kv_heads=2)
TOLERANCE = 1e-5


def pipeline(*, rounds: int = 1, **config: object) -> Layout:
    """A layout with stages and data; with several rounds, weights at rest are split by `embed`."""
    at_rest = {"layers": "", "embed": "stage"} if rounds > 1 else {}
    return Layout(
        "pipeline",
        {"stage": 2, "data": 1},
        compute=STAGES,
        stored=at_rest,
        pipeline=PipelineConfig(rounds=rounds, **config),
    )


def loss_and_gradients(
    layout: Layout, mesh: dict[str, int], model: ModelConfig
) -> tuple[float, dict[str, np.ndarray]]:
    """(the sum of losses of the first batch under a new model, the gradient of each parameter by its
    path)."""
    layout.check()
    program = TrainModel(model.resolved(), OptimizerConfig(), MeshPlacement(layout, make_mesh(layout, mesh)))
    objective = NextToken(z_loss=1e-4, chunk=64)
    sharding = program.place.sharding(("batch", "sequence"), "compute")
    batch = {name: jax.device_put(value, sharding) for name, value in packed_batch(0).items()}
    with jax.set_mesh(program.place.mesh):
        run = jax.jit(
            jax.value_and_grad(
                lambda parameters, batch: objective.loss(program.model(parameters), {}, batch).total
            )
        )
        loss, gradients = run(program.new_state(0).parameters, batch)
    return float(loss), {
        jax.tree_util.keystr(path): np.asarray(g)
        for path, g in jax.tree_util.tree_leaves_with_path(gradients)
    }


@functools.cache
def single(model: ModelConfig):
    return loss_and_gradients(PRESETS["single"], {}, model)


def assert_agrees(layout: Layout, mesh: dict[str, int], model: ModelConfig = DEEP) -> None:
    loss, gradients = loss_and_gradients(layout, mesh, model)
    right, theirs = single(dataclasses.replace(model, remat="none", scan_layers=True))
    assert loss == pytest.approx(right, rel=TOLERANCE)
    assert gradients.keys() == theirs.keys()
    largest = {name: np.abs(g).max() for name, g in theirs.items()}
    for name, g in gradients.items():
        np.testing.assert_allclose(
            g,
            theirs[name],
            rtol=0,
            atol=TOLERANCE * max(largest[name], 1e-3 * max(largest.values())),
            err_msg=name,
        )


@pytest.mark.parametrize(
    ("mesh", "microbatches"),
    [
        pytest.param({"stage": 2}, 2, marks=pytest.mark.slow),
        ({"stage": 2}, 4),
        pytest.param({"stage": 2}, 8, marks=pytest.mark.slow),
        ({"stage": 4, "data": 2}, 4),
        ({"stage": 1, "data": 2}, 1),
    ],
)
def test_stages_and_microbatches_change_nothing(mesh, microbatches):
    assert_agrees(pipeline(microbatches=microbatches), mesh)


@pytest.mark.parametrize(("mesh", "microbatches"), [({"stage": 2}, 4), ({"stage": 2, "data": 4}, 2)])
def test_going_round_twice_changes_nothing(mesh, microbatches):
    assert_agrees(pipeline(rounds=2, microbatches=microbatches), mesh)


VARIANTS = {
    "kept by name": (pipeline(microbatches=4), dataclasses.replace(DEEP, remat="attention,mlp_up")),
    "each layer again inside of a stage": (pipeline(microbatches=4), dataclasses.replace(DEEP, remat="full")),
    "a stage keeps everything": (pipeline(microbatches=4, remat=False), DEEP),
    "unrolled": (pipeline(microbatches=4), dataclasses.replace(DEEP, scan_layers=False)),
    "gpt2": (
        pipeline(microbatches=4),
        ModelConfig(
            layers=2, embed=32, heads=8, mlp=64, vocab=128, norm="layer", activation="gelu", position="learned", positions=64,
            bias_qkv=True, bias_out=True, bias_mlp=True, tied_embeddings=False, window=7,
        ),
    ),
    "norm after, attention in blocks": (
        pipeline(microbatches=4), dataclasses.replace(DEEP, norm_placement="after", qk_norm="projection", attention="blocked"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_variants_in_stages_change_nothing(variant):
    layout, model = VARIANTS[variant]
    assert_agrees(layout, {}, model)


def test_idle_stages_put_no_nan_into_gradients():
    # with the least epsilon the slope of a norm at zeros overflows, and a cotangent of zero times it is NaN
    assert_agrees(
        pipeline(microbatches=4), {"stage": 4, "data": 1}, dataclasses.replace(DEEP, norm_epsilon=1.2e-38)
    )


def test_stages_beside_tensor_sequence_and_fsdp_axes_change_nothing():
    tables = {
        "compute": {**STAGES, **TENSOR},
        "stored": {"embed": "data"},
        "residual": {"sequence": "tensor"},
    }
    layout = Layout(
        "4d", {"stage": 2, "data": 2, "tensor": 2}, **tables, pipeline=PipelineConfig(microbatches=4)
    )
    assert_agrees(layout, {}, dataclasses.replace(DEEP, remat="full"))


def test_gradient_accumulation_around_a_pipeline_agrees_with_one_device():
    layout = pipeline(microbatches=2)
    history = train(layout, {}, steps=8, model=DEEP, microbatches=4)[0]
    assert_same(history, train(PRESETS["single"], {}, steps=8, model=DEEP)[0])


def test_a_run_in_a_pipeline_trains_evaluates_and_samples_like_one_device(tiny, tmp_path):
    ends = {}
    for name, settings in {"single": [], "pipeline": ["mesh.stage=2", "mesh.data=2"]}.items():
        run_dir = tmp_path / name
        assert (
            launch(
                f"experiment={tiny}",
                f"layout={name}",
                *settings,
                "sample.tokens=2",
                "train.steps=4",
                f"run_dir={run_dir}",
            )
            == 0
        )
        ends[name] = summary(run_dir), (run_dir / "samples.txt").read_text()
    for key in ("train_loss", "eval_loss"):
        assert ends["pipeline"][0][key] == pytest.approx(ends["single"][0][key], rel=TOLERANCE)
    assert ends["pipeline"][1] == ends["single"][1]
    assert (
        "2 stages of 1 layers, 4 microbatches, 1 rounds: a stage idles in 20% of the ticks"
        in (tmp_path / "pipeline" / "log.txt").read_text()
    )
