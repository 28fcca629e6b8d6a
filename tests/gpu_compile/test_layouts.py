"""What each layout sends, by XLA's GPU compiler: every collective of the train step, with its axes, its dtype
and its bytes.

`GOLDEN` has it in closed form from the shapes of a small Llama: what is not named there must not be there,
but for small things (losses, norms' scales, token ids, statistics of the softmax), together less than 2 % of
all.
"""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from llm_jax.experiment import Experiment, resolved
from llm_jax.layout import gpu_compile
from llm_jax.layout.gpu_compile import CompiledStep
from llm_jax.layout.hardware import hardware
from llm_jax.layout.presets import PRESETS
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.plan.collectives import Collective, collective_of
from llm_jax.plan.efficiency import EXPECTED
from llm_jax.plan.timeline import CostedModule, Timeline, simulate
from llm_jax.run.compile import absent_model, compile_step
from llm_jax.train.config import TrainConfig

pytestmark = pytest.mark.gpu_compile

L, D, H, G, K, F, V = 6, 512, 8, 4, 64, 2048, 8192
BATCH, T, CHUNK = 64, 1024, 1024
LAYERS = L * (D * K * (2 * H + 2 * G) + 3 * D * F)
"""Elements of the matrices of all blocks."""
TABLE = V * D
"""Elements of the embedding, and of the head."""
STREAM = T * D
"""Elements of a sequence's residual stream."""

MODEL = ModelConfig(
    layers=L, embed=D, heads=H, kv_heads=G, head_dim=K, mlp=F, vocab=V, tied_embeddings=False,
    compute_dtype="bfloat16", attention="cudnn",
    max_segments=4,
)  # fmt: skip

Sent = dict[tuple[str, str, str], float]
"""(kind, mesh axes, dtype) → elements of the whole arrays, gathered or before they are scattered, on one
device, in one step."""


def rows(parts: int) -> int:
    """Elements of the stream of one device's sequences."""
    return BATCH // parts * STREAM


KEYS_VALUES = 2 * G * K // D
"""The size of a layer's keys and values, in streams."""
OVER_BOTH: Sent = {
    # weights split over data x context at rest, and the embedding's rows by way of both axes
    ("all-gather", "data+context", "bf16"): 2 * LAYERS + TABLE,
    ("reduce-scatter", "data+context", "f32"): LAYERS + TABLE,
    ("all-to-all", "data", "bf16"): 2 * rows(8),
}

GOLDEN: dict[str, tuple[int, Sent]] = {
    "data_parallel": (8, {("all-reduce", "data", "f32"): LAYERS + 2 * TABLE}),
    "zero1": (
        8,
        {
            ("reduce-scatter", "data", "f32"): LAYERS + TABLE,
            # the gradient of the embedding: rows of activations instead of the table
            ("all-to-all", "data", "bf16"): rows(8),
            ("all-gather", "data", "f32"): LAYERS + 2 * TABLE,  # new weights, once a step
        },
    ),
    "fsdp": (
        8,
        {
            ("all-gather", "data", "bf16"): 2 * LAYERS + TABLE,  # forward, and backward again
            ("reduce-scatter", "data", "f32"): LAYERS + TABLE,
            ("all-to-all", "data", "bf16"): 2 * rows(8),  # the embedding, and its gradient
        },
    ),
    "hybrid_fsdp": (
        64,
        {
            ("all-gather", "data", "bf16"): 2 * LAYERS + TABLE,
            ("reduce-scatter", "data", "f32"): LAYERS + TABLE,
            ("all-to-all", "data", "bf16"): 2 * rows(64),
            ("all-reduce", "node", "f32"): (LAYERS + 2 * TABLE) / 8,  # an eighth crosses the network
        },
    ),
    "fsdp_tensor": (
        8,
        {
            ("all-gather", "data", "bf16"): (2 * LAYERS + TABLE) / 2,
            ("reduce-scatter", "data", "f32"): (LAYERS + TABLE) / 2,
            ("all-to-all", "data", "bf16"): 2 * rows(4),
            # two in a block forward, two backward (queries, keys and values in one; gate and up in one), and
            # the embedding's rows
            ("all-reduce", "tensor", "bf16"): (4 * L + 1) * rows(4),
            # the head's gradient of the stream, summed over the vocabulary
            ("all-reduce", "tensor", "f32"): rows(4),
        },
    ),
    "fsdp_tensor_sequence": (
        8,
        {
            ("all-gather", "data", "bf16"): (2 * LAYERS + TABLE) / 2,
            ("reduce-scatter", "data", "f32"): (LAYERS + TABLE) / 2,
            ("all-to-all", "data", "bf16"): 2 * rows(4),
            # what was an all-reduce in a block is a scattered sum, and a gather before the next product
            ("reduce-scatter", "tensor", "bf16"): 4 * L * rows(4),
            # and before the head, and for the gradient of the embedding's rows
            ("all-gather", "tensor", "bf16"): (4 * L + 2) * rows(4),
            ("all-reduce", "tensor", "bf16"): rows(4),  # the embedding's rows
            ("all-reduce", "tensor", "f32"): rows(4),
        },
    ),
    "context_gather": (
        8,
        {
            **OVER_BOTH,
            ("all-gather", "context", "bf16"): 2 * L * KEYS_VALUES * rows(4),  # forward, and backward again
            ("reduce-scatter", "context", "f32"): L * KEYS_VALUES * rows(4),
            ("all-to-all", "context", "bf16"): 2 * rows(8),
        },
    ),
    "context_ring": (
        8,
        {
            **OVER_BOTH,
            ("collective-permute", "context", "bf16"): 3 * L * KEYS_VALUES * rows(8),
            ("collective-permute", "context", "f32"): L * KEYS_VALUES * rows(8),
            ("all-to-all", "context", "bf16"): 2 * rows(8),
        },
    ),
    "context_ulysses": (
        8,
        {
            **OVER_BOTH,
            # queries, keys and values to whole sequences, the result back; their gradients the other way
            ("all-to-all", "context", "bf16"): (L * 2 * (2 + KEYS_VALUES) + 2) * rows(8),
        },
    ),
}


def experiment(layout: str) -> Experiment:
    train, objective = TrainConfig(batch_size=BATCH, sequence_length=T), NextToken(chunk=CHUNK)
    return resolved(
        Experiment(name=layout, model=MODEL, layout=PRESETS[layout], train=train, objective=objective)
    )


@functools.cache
def compiled(layout: str) -> tuple[CompiledStep, CostedModule, Timeline]:
    """(the step for absent H100s, its program as the plan reads it, its timeline)."""
    devices = GOLDEN[layout][0]
    program = absent_model(experiment(layout), gpu_compile.topology_devices("h100", devices))
    step, h100 = compile_step(program, experiment(layout)), hardware("h100")
    read = CostedModule(step.module, program.place.mesh, h100.devices_per_node)
    return step, read, simulate(read, h100, EXPECTED)


def sent(layout: str) -> Sent:
    """The collectives of the compiled step → elements; a reduction counts its input."""
    _, program, timeline = compiled(layout)
    found: Counter = Counter()
    for instruction, n in timeline.counts.items():
        collective = program.costs[instruction]
        if not isinstance(collective, Collective):
            continue
        inside = collective_of(program.module, program.computation_of[instruction], instruction)
        assert inside
        computation, start, kind = inside
        for operand in computation.operands_of(start):
            for shape in operand.shapes:
                found[kind, collective.axis, shape.dtype] += (
                    n * shape.elements * (collective.devices if kind == "all-gather" else 1)
                )
    return found


SLOW = ("hybrid_fsdp", "zero1", "context_gather", "context_ulysses")
"""What they send is also compared under simulated devices (tests/parity), and planned (tests/plan)."""


@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in GOLDEN]
)
def test_only_the_layouts_collectives_are_sent(layout):
    found, (_, golden) = sent(layout), GOLDEN[layout]
    for key, elements in golden.items():
        assert found[key] == pytest.approx(elements, rel=0.02), key
    other = {key: elements for key, elements in found.items() if key not in golden}
    assert sum(other.values()) < 0.02 * sum(golden.values()), other


@pytest.mark.parametrize("layout", GOLDEN)
def test_weights_and_gradients_of_the_layer_scan_travel_asynchronously(layout):
    """All but small ones. Outside of the loops, and for sums that the next product needs (tensor), XLA may
    wait: nothing could run beside."""
    _, program, timeline = compiled(layout)
    for i in timeline.counts:
        collective = program.costs[i]
        if (
            isinstance(collective, Collective)
            and collective.axis != "tensor"
            and program.computation_of[i] is not program.module.entry
        ):
            assert i.opcode.endswith("-start") or all(shape.elements <= CHUNK for shape in i.shapes), (
                i.type_text
            )
