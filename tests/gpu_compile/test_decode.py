"""A decode step compiled for GPUs writes its caches in place and reads them without copies."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.experiment import Experiment, resolved
from llm_jax.generate.decode_step import DecodePrograms
from llm_jax.generate.sampling import Settings
from llm_jax.layout import gpu_compile
from llm_jax.layout.presets import PRESETS
from llm_jax.model.config import ModelConfig
from llm_jax.run.compile import absent_model
from llm_jax.train.config import TrainConfig

pytestmark = pytest.mark.gpu_compile
MODEL = ModelConfig(
    layers=2, embed=512, heads=8, kv_heads=4, mlp=1408, vocab=8192, attention="cudnn", max_segments=4,
    compute_dtype="bfloat16", parameter_dtype="bfloat16",
)  # fmt: skip
LENGTH = 4096


@pytest.mark.parametrize(
    ("layout", "mesh", "slots"),
    [("data_parallel", {}, 1), ("tensor", {"tensor": 2}, 8)],
    ids=["one GPU, one slot", "tensor, 8 slots"],
)
def test_no_cache_is_copied(layout, mesh, slots):
    train = TrainConfig(batch_size=8, sequence_length=LENGTH)
    experiment = resolved(
        Experiment(name="decode", model=MODEL, layout=PRESETS[layout], mesh=mesh, train=train)
    )
    devices = gpu_compile.topology_devices("h100", mesh.get("tensor", 1))
    programs = DecodePrograms(absent_model(experiment, devices), slots, LENGTH, 1, 8192, print)

    def absent(tree: Any) -> Any:
        """The tree with shardings on the mesh: traced ones, or replicated where tracing gives none."""

        def with_sharding(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = x.sharding.spec if x.sharding else PartitionSpec(*(None for _ in x.shape))
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(programs.place.mesh, spec))

        return jax.tree.map(with_sharding, tree)

    kinds = ("float32", "int32", "float32", "float32", "float32", "uint32")
    with jax.set_mesh(programs.place.mesh):
        weights, state = (
            absent(jax.eval_shape(programs.unstack_layers, programs.model.abstract)[1]),
            absent(jax.eval_shape(programs.initial_state_program)),
        )
        settings = absent(Settings(*(jax.ShapeDtypeStruct((slots,), kind) for kind in kinds)))
    step = jax.jit(functools.partial(programs.step_program, LENGTH), donate_argnums=1)
    compiled = gpu_compile.compile_for(programs.place.mesh, step, (weights, state, settings))
    one_cache = slots * (MODEL.kv_heads or 0) // len(devices) * LENGTH * (MODEL.embed // MODEL.heads) * 2
    of_caches = [
        i
        for c in compiled.module.allocating()
        for i in c
        if f"[{slots},{4 // len(devices)},{LENGTH},64]" in i.type_text
    ]
    made = [i for i in of_caches if i.opcode not in ("parameter", "get-tuple-element", "bitcast", "tuple")]
    assert len(made) == 2 * MODEL.layers  # the writes
    assert all(re.search("scatter|dynamic_update_slice", i.name) for i in made), [i.name for i in made]
    stats = compiled.compiled.memory_analysis()
    assert stats.alias_size_in_bytes >= 2 * MODEL.layers * one_cache
    # no copy of one, beside what sampling takes
    assert stats.temp_size_in_bytes < one_cache + slots * 8192 * 64
