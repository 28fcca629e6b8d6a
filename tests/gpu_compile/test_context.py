"""Long sequences split over devices, compiled for absent H100s: fused attention, and the collectives with
their bytes and overlap."""

from __future__ import annotations

import functools
import math

import pytest

from llm_jax.experiment import Experiment
from llm_jax.layout.gpu_compile import CompiledStep
from llm_jax.layout.hardware import hardware
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.plan.analysis import Analysis, CollectiveRow
from llm_jax.plan.plan import make_plan
from llm_jax.train.config import TrainConfig

pytestmark = pytest.mark.gpu_compile

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
KEPT = "query,key,value,attention,attention_out,mlp_gate,mlp_up,mlp_in"
# layers of an 8B model, one row of 65,536 tokens on four devices: sizes cost the compiler nothing
LAYERS, T, D, H, G, K = 4, 65536, 4096, 32, 8, 128
PARTS = 4
OWN = T // PARTS
KEYS = OWN * G * K
"""Elements of one device's keys, or values."""
CONTEXT = ("context_gather", "context_ring", "context_ulysses")


@functools.cache
def compiled(layout: str, size: int = PARTS) -> tuple[CompiledStep, Analysis]:
    """The step on 8 devices, `size` of them along the layout's second axis."""
    model = ModelConfig(
        layers=LAYERS, embed=D, heads=H, kv_heads=G, head_dim=K, mlp=14336, vocab=128256, tied_embeddings=False,
        attention="cudnn", max_segments=6, compute_dtype="bfloat16", remat=KEPT,
    )  # fmt: skip
    second = list(preset(layout).mesh)[1]
    train = TrainConfig(steps=10, batch_size=8 // size, sequence_length=T)
    experiment = Experiment(model=model.resolved(), layout=preset(layout), mesh={second: size}, train=train)
    plan, step = make_plan(experiment, hardware("h100"), 8)
    return step, plan.analysis


def travels(layout: str, axis: str) -> dict[str, CollectiveRow]:
    """The collectives over one mesh axis, by kind."""
    return {row.kind: row for row in compiled(layout)[1].collectives if row.axis == axis}


@pytest.mark.parametrize("layout", CONTEXT)
def test_attention_is_fused_and_no_scores_are_allocated(layout):
    step, analysis = compiled(layout)
    assert set(analysis.attention_kernels) == {"cudnn forward", "cudnn backward"}
    # each chunk with itself, the ring's late chunk with the early one, and its steps; or two chunks with all
    # keys before them
    a_layer = {"context_gather": 1 + 2, "context_ring": 1 + 1 + PARTS - 1, "context_ulysses": 1}[layout]
    assert set(analysis.attention_kernels.values()) == {LAYERS * a_layer}
    chunk = OWN // 2
    for queries in (T, OWN, chunk):
        for keys in (T, OWN, chunk):
            assert not step.buffers_with(queries, keys)


def test_the_ring_never_has_all_keys_anywhere():
    step, _ = compiled("context_ring")
    assert (
        max(math.prod(shape) for _, shape in step.buffers_with(T)) <= 5 * 2 * T
    )  # numbers of the batch's arrays for two rows, or five of them joined


@pytest.mark.parametrize("layout", CONTEXT)
def test_no_other_collective_uses_the_context_axis(layout):
    """Besides attention's: the batch's integers, and rows of the embedding, which both axes split at rest."""
    kinds = {
        "context_gather": {"reduce-scatter"},
        "context_ring": {"collective-permute"},
        "context_ulysses": set(),
    }[layout]
    assert set(travels(layout, "context")) == kinds | {"all-gather", "all-to-all"}
    assert {row.axis for row in compiled(layout)[1].collectives} == {"data", "context", "data+context"}


INTEGERS = 5 * 4 * 2 * T
"""Bytes of the batch's arrays, and the ids once more for the embedding: at most."""
EMBEDDED = 2 * 2 * 2 * OWN * D
"""Bytes of a device's stream, of twice as many rows half as wide, there and back."""


def test_the_ring_sends_keys_forward_and_with_their_gradients_backward():
    hops = PARTS - 1
    # k and v; dk and dv in float32, but home
    forward, backward = 2 * hops * 2 * KEYS, 2 * hops * 2 * KEYS + 2 * hops * 4 * KEYS + 2 * 2 * KEYS
    assert travels("context_ring", "context")["collective-permute"].bytes == LAYERS * (forward + backward)
    assert travels("context_ring", "context")["all-gather"].bytes < INTEGERS


def test_gathered_keys_are_gathered_again_and_their_gradients_scattered():
    found, part = travels("context_gather", "context"), (PARTS - 1) / PARTS
    assert found["all-gather"].bytes == pytest.approx(LAYERS * 2 * 2 * 2 * KEYS * PARTS * part, abs=INTEGERS)
    assert found["reduce-scatter"].bytes == LAYERS * 2 * 4 * KEYS * PARTS * part


def test_heads_are_exchanged_for_positions_and_back():
    """Forward q, k, v and the output. Backward their gradients, and the output again; q, k, v are kept where
    they attend."""
    queries, keys, part = OWN * H * K, KEYS, (PARTS - 1) / PARTS
    expected = LAYERS * 2 * part * (5 * queries + 4 * keys)
    assert travels("context_ulysses", "context")["all-to-all"].bytes == pytest.approx(expected, abs=EMBEDDED)


@pytest.mark.parametrize(
    ("layout", "kinds"),
    [("context_ring", ["collective-permute"]), ("context_gather", ["all-gather", "reduce-scatter"])],
)
def test_keys_travel_beside_kernels(layout, kinds):
    for kind in kinds:
        row = travels(layout, "context")[kind]
        assert row.hidden_seconds > 0.7 * row.seconds  # of one that is waited for at once, nothing is


def test_scattered_streams_travel_in_bfloat16_and_no_more_than_they_must():
    """Megatron's sequence parallelism, four devices along `tensor`. A layer has two pairs of products; each
    gathers its input forward, and backward its input again and its output's gradient, and scatters its output
    and its input's gradient."""
    found = {row.kind: row for row in compiled("fsdp_tensor_sequence")[1].collectives if row.axis == "tensor"}
    stream = 2 * T * D  # one row a device, bfloat16
    ends = 2 * stream  # the stream that the head reads, and what the embedding gets
    assert found["all-gather"].bytes == pytest.approx((LAYERS * 2 * 3 * stream + ends) * 3 / 4, rel=0.01)
    assert found["reduce-scatter"].bytes == pytest.approx(LAYERS * 2 * 2 * stream * 3 / 4, rel=0.01)
    # the head sums over its vocabulary, and the norms' gradients
    assert set(found) == {"all-gather", "reduce-scatter", "all-reduce"}


@pytest.mark.parametrize("layout", [*CONTEXT, "fsdp_tensor_sequence"])
def test_no_permute_returns_zeros_for_a_devices_own_part(layout):
    """No collective-permute is without pairs, which would return zeros: see `gpu_options.SINGLE`."""
    assert "source_target_pairs={}" not in compiled(layout)[0].text
