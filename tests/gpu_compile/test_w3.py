"""W3's train step, compiled for absent H200s: kernels, memory, collectives; and its first steps at a reduced
size on the CPU."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest

from llm_jax import launch
from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment, load_experiment, override, resolved
from llm_jax.layout import gpu_compile
from llm_jax.layout.gpu_compile import CompiledStep, compile_for
from llm_jax.layout.hardware import hardware
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.model.kernels.cudnn import backward_workspace_bytes
from llm_jax.objective.next_token import NextToken
from llm_jax.run.compile import compile_absent
from llm_jax.train import program_options as compiling
from llm_jax.train.state import TrainModel
from llm_jax.train.step import make_evaluation
from tests.data.conftest import documents, write_jsonl

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
SEGMENTS = 5
"""More slots than the corpus of W3 needs (4 at 28 rows per device, 10 at one)."""
SEVERAL = 8
needs_compiler = pytest.mark.gpu_compile


def w3(**overrides: object) -> Experiment:
    """The experiment; `train__steps=3` overrides train.steps."""
    pairs = [
        (key.replace("__", "."), str(value))
        for key, value in {"model__max_segments": SEGMENTS, **overrides}.items()
    ]
    return resolved(override(load_experiment("bench/w3"), pairs))


@functools.cache
def step_on(devices: int) -> CompiledStep:
    """The step for this many H200s, each with W3's batch."""
    return compile_absent(w3(train__batch_size=w3().train.batch_size * devices), "h200", devices)


def absent(experiment: Experiment, devices: int = 1) -> TrainModel:
    """The experiment's TrainModel on absent H200s."""
    mesh = make_mesh(experiment.layout, {}, gpu_compile.topology_devices("h200", devices))
    return TrainModel(experiment.model, experiment.optimizer, MeshPlacement(experiment.layout, mesh))


def state_bytes(experiment: Experiment, devices: int) -> int:
    """Bytes of parameters and moments on one device."""
    leaves = jax.tree.leaves(absent(experiment, devices).abstract_state())
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


@needs_compiler
def test_fused_attention_runs_once_forward_and_once_backward():
    assert sorted(step_on(1).custom_calls()) == [FORWARD, BACKWARD]


@needs_compiler
@pytest.mark.parametrize("devices", [1, SEVERAL])
def test_no_scores_and_no_full_logits_are_allocated(devices):
    experiment, step = w3(), step_on(devices)
    T, V = experiment.train.sequence_length, experiment.model.vocab
    assert not step.buffers_with(T, T)
    with_vocabulary = step.buffers_with(V)
    assert with_vocabulary
    largest = max(math.prod(shape) for _, shape in with_vocabulary)
    assert largest == max(experiment.objective.chunk, experiment.model.embed) * V


@needs_compiler
@pytest.mark.parametrize("devices", [1, SEVERAL])
def test_layers_keep_what_remat_names_once_and_nothing_else(devices):
    m, t = w3().model, w3().train
    B, T = t.batch_size, t.sequence_length
    kept = {
        ("bf16", (m.layers, B, T, m.mlp)): 2,  # gate, up
        ("bf16", (m.layers, B, T, m.embed)): 2,  # the stream that enters, what attention adds to it
        ("bf16", (m.layers, B, T, m.heads, m.head_dim)): 2,  # queries, attention
        ("bf16", (m.layers, B, T, m.kv_heads, m.head_dim)): 2,  # keys, values
        ("f32", (m.layers, B, m.heads, T)): 1,  # softmax statistics
    }
    stacks = [
        {a: n for a, n in loop.carried.items() if a[1][:2] == (m.layers, B)}
        for loop in step_on(devices).loops()
    ]
    assert [s for s in stacks if s] == [kept, kept]  # the forward loop and the backward one


@needs_compiler
def test_the_step_fits_an_h200_with_what_the_compiler_cannot_see():
    experiment, memory = w3(), step_on(1).memory_bytes()
    m, t = experiment.model, experiment.train
    assert m.head_dim == 64
    workspace = backward_workspace_bytes(t.batch_size, t.sequence_length, m.heads, m.head_dim, SEGMENTS)
    # XLA_PYTHON_CLIENT_MEM_FRACTION of the experiment's command; the rest is CUDA's and the driver's
    pool = 0.92
    assert memory["total"] + workspace < pool * hardware("h200").memory_bytes
    # what is kept for the backward pass, the gradients in float32, and a tenth of that to work with
    a_token = m.layers * (
        2 * (2 * m.mlp + 2 * m.embed + 2 * m.heads * 64 + 2 * m.kv_heads * 64) + 4 * m.heads
    )
    gradients = 4 * sum(x.size for x in jax.tree.leaves(absent(experiment).abstract))
    assert memory["temporaries"] < 1.1 * (t.batch_size * t.sequence_length * a_token + gradients)


@needs_compiler
@pytest.mark.parametrize("devices", [1, SEVERAL])
def test_the_whole_state_is_updated_in_place(devices):
    memory, state = step_on(devices).memory_bytes(), state_bytes(w3(), devices)
    assert state <= memory["aliased"] < state * 1.001  # each array is padded a little
    assert memory["outputs"] - memory["aliased"] < 10_000  # metrics
    if devices > 1:
        assert state < 1.01 * state_bytes(w3(), 1) / devices


@needs_compiler
@pytest.mark.parametrize("devices", [1, SEVERAL])
def test_the_step_neither_waits_for_the_host_nor_moves_memory_there(devices):
    text = step_on(devices).text
    assert not re.search(r" (infeed|outfeed|send|recv|send-done|recv-done)\(", text)
    assert "S(5)" not in text  # XLA's memory space of the host
    assert not any("callback" in call for call in step_on(devices).custom_calls())


@needs_compiler
@pytest.mark.parametrize("devices", [1, SEVERAL])
def test_xla_recomputes_nothing_on_its_own(devices):
    assert not re.search(r"^ *(ROOT )?%[\w.\-]+\.remat\d*(\.\S+)? = ", step_on(devices).text, re.MULTILINE)


@needs_compiler
def test_collectives_of_fsdp_are_asynchronous_and_have_work_beside_them():
    lines = step_on(SEVERAL).text.splitlines()
    kinds = ("all-gather", "reduce-scatter", "all-reduce")
    for kind in kinds:
        starts = [i for i, line in enumerate(lines) if f" {kind}-start(" in line]
        assert starts
        assert len(starts) == sum(f" {kind}-done(" in line for line in lines)
        waited_for = [line for line in lines if f" {kind}(" in line]
        # JAX 0.11: three sums, of the loss and the weights
        assert all(re.search(r" = f32\[\d?\]", line) for line in waited_for)
    matmuls = re.compile(r" fusion\(.*(gemm|dot)|custom-call")
    hidden = 0
    for kind in kinds[:2]:
        for i, line in enumerate(lines):
            if f" {kind}-start(" in line:
                done = next(j for j in range(i, len(lines)) if f" {kind}-done(" in lines[j])
                hidden += any(matmuls.search(between) for between in lines[i:done])
    assert hidden >= 4  # at least the weights' and gradients' of both loops


@needs_compiler
def test_evaluation_and_rows_without_segments_use_the_kernel_too():
    experiment = w3(train__batch_size=4)
    program = absent(experiment)
    place, mesh = program.place, program.place.mesh
    parameters = program.abstract_state().parameters
    batch = {
        k: jax.ShapeDtypeStruct(
            (4, 4096), spec.dtype, sharding=place.sharding(("batch", "sequence"), "compute")
        )
        for k, spec in NextToken().arrays().items()
    }
    sizes = jax.ShapeDtypeStruct((experiment.model.vocab,), jnp.float32)
    assert compile_for(
        mesh, jax.jit(make_evaluation(program, NextToken())), (parameters, batch, sizes)
    ).custom_calls() == [FORWARD]
    # as the sampler calls it
    hidden = jax.jit(lambda parameters, tokens: program.model(parameters).hidden(tokens))
    step = compile_for(mesh, hidden, (parameters, batch["tokens"]))
    assert step.custom_calls() == [FORWARD]
    assert not step.buffers_with(4096, 4096)


@needs_compiler
def test_gpu_options_are_those_that_the_step_is_compiled_with(monkeypatch):
    experiment = w3(train__batch_size=1, model__layers=2)
    program = absent(experiment)
    monkeypatch.setattr(compiling.gpu_options, "SINGLE", {"xla_gpu_no_such_option": True})
    with pytest.raises(Exception, match="xla_gpu_no_such_option"):
        compile_absent(experiment, "h200", 1)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_no_such_option=false")  # the user's stay theirs
    assert compiling.program_options(program) == {}


# --- without the GPU compiler ---


def test_on_a_cpu_the_step_has_no_gpu_options():
    experiment = dataclasses.replace(w3(), model=dataclasses.replace(w3().model, layers=2, attention="xla"))
    place = MeshPlacement(experiment.layout, make_mesh(experiment.layout, {}))
    options = compiling.program_options(TrainModel(experiment.model, experiment.optimizer, place))
    assert not [name for name in options if "gpu" in name]


@pytest.mark.parametrize(
    ("key", "others"), [("model.vocab", {}), ("model.max_segments", {"model__vocab": 100})]
)
def test_values_that_need_a_corpus_must_be_given(key, others):
    experiment = w3(**others)
    model = dataclasses.replace(experiment.model, **{key.split(".")[1]: None})
    with pytest.raises(UserError, match=re.escape(f"{key}=null: must be a number")):
        compile_absent(dataclasses.replace(experiment, model=model), "h200", 1)


def test_w3_runs_its_first_steps_at_a_reduced_size(tmp_path):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", documents(300))
    reduced = {
        "model.layers": 2, "model.embed": 64, "model.heads": 4, "model.kv_heads": 2, "model.mlp": 128, "model.vocab": 320, "model.attention": "xla",
        "tokenizer.vocab": 320, "data.source": corpus, "data.workers": 1, "data.cache_dir": tmp_path / "cache", "objective.chunk": 64,
        "train.steps": 12, "train.batch_size": 8, "train.sequence_length": 64, "optimizer.warmup_steps": 2, "optimizer.learning_rate": 3e-3,
        "run_dir": tmp_path / "run",
    }  # fmt: skip
    assert launch.main(["experiment=bench/w3", *(f"{key}={value}" for key, value in reduced.items())]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train_loss"] for line in lines if "train_loss" in line]
    assert len(losses) == 12
    assert losses[0] == pytest.approx(math.log(320), rel=0.05)  # a new model knows nothing
    assert losses[-1] < losses[0] - 0.5
