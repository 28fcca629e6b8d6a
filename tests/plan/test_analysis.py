"""Analyses of whole train steps: FLOPs and bytes equal arithmetic. Simulated devices here, absent GPUs under
`gpu_compile`."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest

from llm_jax.experiment import Experiment, load_experiment, override, resolved
from llm_jax.layout import gpu_compile
from llm_jax.layout.hardware import hardware
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.model.accounting import matmul_parameters, train_flops_per_token
from llm_jax.plan.analysis import Analysis, CollectiveRow, analyse
from llm_jax.run.compile import compile_absent
from llm_jax.train.compile import abstract_batch, jit_step
from llm_jax.train.state import TrainModel

SMALL = {
    "model.layers": 6, "model.embed": 64, "model.heads": 8, "model.kv_heads": 4, "model.head_dim": 16,
    "model.mlp": 192, "model.vocab": 512, "model.attention": "xla", "model.remat": "none",
    "objective.chunk": 128, "train.batch_size": 16, "train.sequence_length": 64,
}  # fmt: skip
"""Sizes that differ from each other, so that a wrong dim fails."""
TOKENS = 16 * 64


def small(**changed: object) -> Experiment:
    """A small version of W3; `model__layers=3` changes model.layers."""
    pairs = {**SMALL, **{key.replace("__", "."): value for key, value in changed.items()}}
    return resolved(
        override(load_experiment("bench/w3"), [(key, str(value)) for key, value in pairs.items()])
    )


def on_simulated_devices(experiment: Experiment) -> Analysis:
    """The step on simulated CPU devices, analysed as if they were H100s, four to a node."""
    mesh = make_mesh(experiment.layout, experiment.mesh)
    program = TrainModel(experiment.model, experiment.optimizer, MeshPlacement(experiment.layout, mesh))
    step = jit_step(program, experiment.objective, experiment.optimizer, experiment.train.steps)
    compiled = gpu_compile.compile_for(
        mesh,
        step,
        (program.abstract_state(), abstract_batch(experiment.objective, experiment.train, program.place)),
    )
    return analyse(compiled, mesh, dataclasses.replace(hardware("h100"), devices_per_node=4))


STEPS = {
    "fsdp": {"layout": "fsdp", "model__compute_dtype": "float32"},
    "fsdp, remat, bfloat16": {"layout": "fsdp", "model__remat": "full"},
    "tensor": {"layout": "fsdp_tensor", "mesh__tensor": 4, "model__compute_dtype": "float32"},
}
"""The experiments that are compiled."""


@functools.cache
def simulated(step: str) -> Analysis:
    return on_simulated_devices(small(**STEPS[step]))


def attention_flops(experiment: Experiment, products: int, keys: float) -> float:
    """FLOPs of `products` products of each query with `keys` keys, over all layers and tokens."""
    m = experiment.model
    return 2 * products * m.layers * m.heads * m.head_dim * keys * TOKENS


def rows(analysis: Analysis, kind: str) -> list[CollectiveRow]:
    return [row for row in analysis.collectives if row.kind == kind]


def test_flops_are_six_a_weight_and_token_and_those_of_attention():
    experiment = small()
    weights = 6 * matmul_parameters(experiment.model) * TOKENS
    scores = attention_flops(
        experiment, products=6, keys=64
    )  # this kernel computes them all, hidden or not; forward 2, backward 4
    assert simulated("fsdp").hardware_flops * 8 == pytest.approx(weights + scores)


def test_remat_adds_the_forward_pass_of_the_blocks():
    experiment = small()
    extra = simulated("fsdp, remat, bfloat16").hardware_flops - simulated("fsdp").hardware_flops
    m = experiment.model
    again = 2 * (matmul_parameters(m) - m.vocab * m.embed) * TOKENS + attention_flops(
        experiment, products=2, keys=64
    )
    last = (
        2 * m.layers * m.mlp * m.embed * TOKENS
    )  # the block's last product, whose result the backward pass does not need
    assert extra * 8 == pytest.approx(again - last)


@pytest.mark.parametrize(("step", "most", "item"), [("fsdp", 2, 4), ("fsdp, remat, bfloat16", 3, 2)])
def test_fsdp_gathers_every_block_forward_and_backward(step, most, item):
    """Bytes are those of the weights' dtype on a GPU, although XLA's CPU compiler sends bfloat16 as
    float32."""
    m = small().model
    gathered = rows(simulated(step), "all-gather")
    blocks = (matmul_parameters(m) - m.vocab * m.embed) * item * 7 / 8
    norms_and_tables = 3 * (2 * m.layers + 1) * m.embed * 4 + 2 * m.vocab * m.embed * 4
    assert {(row.axis, row.crosses_nodes) for row in gathered} == {("data", True)}
    assert 2 * blocks < sum(row.bytes for row in gathered) <= most * blocks + norms_and_tables


def test_tensor_parallelism_sums_activations_within_a_node():
    m = small().model
    analysis = simulated("tensor")
    activations = TOKENS // 2 * m.embed * 4  # of one device's rows
    over_tensor = [row for row in rows(analysis, "all-reduce") if row.axis == "tensor"]
    assert not any(row.crosses_nodes for row in over_tensor)
    assert (
        "data" in {row.axis for row in analysis.collectives if row.crosses_nodes} <= {"data", "data+tensor"}
    )
    sums = (
        2 + 5
    )  # forward; and backward one for each projection of a block's input (the GPU compiler adds those up first)
    sent = sums * m.layers * activations * 2 * 3 / 4
    assert sum(row.bytes for row in over_tensor) == pytest.approx(
        sent, rel=0.1
    )  # and the loss: maxima and sums over the vocabulary


def test_attention_without_a_fused_kernel_is_named():
    layers = small().model.layers
    assert simulated("fsdp").attention_kernels == {
        "xla: scores of shape f32[2,4,128,64]": layers
    }  # 2 rows, 4 groups of 2 x 64 queries
    assert simulated("fsdp, remat, bfloat16").attention_kernels == {
        "xla: scores of shape f32[2,4,128,64]": 2 * layers
    }


def test_predictions_are_ordered_and_add_up():
    analysis = simulated("fsdp")
    seconds = analysis.step_seconds
    assert 0 < seconds["best"] < seconds["expected"] < seconds["worst"]
    busy = sum(kernel.seconds for kernel in analysis.kernels)
    exposed = sum(row.seconds - row.hidden_seconds for row in analysis.collectives)
    assert (
        analysis.timeline.seconds == seconds["expected"] == pytest.approx(busy + exposed)
    )  # nothing is asynchronous here
    assert sum(kernel.flops for kernel in analysis.kernels) == pytest.approx(analysis.hardware_flops)


# --- with XLA's GPU compiler ---

ROWS = 16
"""Rows of a device."""


@functools.cache
def on_absent_gpus(devices: int) -> tuple[Experiment, Analysis]:
    """W3 on absent H200s."""
    experiment = resolved(
        override(
            load_experiment("bench/w3"),
            [("model.max_segments", "5"), ("train.batch_size", str(ROWS * devices))],
        )
    )
    step = compile_absent(experiment, "h200", devices)
    mesh = make_mesh(experiment.layout, experiment.mesh, gpu_compile.topology_devices("h200", devices))
    return experiment, analyse(step, mesh, hardware("h200"))


@pytest.mark.gpu_compile
@pytest.mark.parametrize("devices", [1, 16])
def test_flops_on_gpus_are_the_models_and_one_product_more_of_attention(devices):
    """Remat keeps every product. The backward kernel of attention recomputes scores, a sixth of its forward
    and backward pass."""
    experiment, analysis = on_absent_gpus(devices)
    m, tokens = experiment.model, ROWS * 4096
    attention = 2 * m.layers * m.heads * m.head_dim * (4096 + 1) / 2 * tokens
    assert analysis.hardware_flops == pytest.approx(train_flops_per_token(m, 4096) * tokens + attention)
    assert analysis.attention_kernels == {"cudnn forward": m.layers, "cudnn backward": m.layers}


@pytest.mark.gpu_compile
def test_collectives_on_gpus_are_those_of_fsdp_and_mostly_hidden():
    experiment, analysis = on_absent_gpus(16)
    m = experiment.model
    block, table, share = matmul_parameters(m) - m.vocab * m.embed, m.vocab * m.embed, 15 / 16
    by_kind = {row.kind: row for row in analysis.collectives}
    assert {(row.axis, row.crosses_nodes) for row in analysis.collectives} == {("data", True)}
    norms = 4 * m.layers * m.embed * 4
    beside_blocks = by_kind["all-gather"].bytes - 2 * 2 * block * share  # bfloat16, forward and backward
    assert 0 < beside_blocks <= 2 * 2 * table * share + norms
    hidden = sum(row.hidden_seconds for row in analysis.collectives) / sum(
        row.seconds for row in analysis.collectives
    )
    assert hidden > 0.5
    assert math.isclose(analysis.timeline.seconds, analysis.step_seconds["expected"])
    assert {event.row for event in analysis.timeline.events} == {"compute", "communication across nodes"}
