"""A mixture of experts, compiled for absent GPUs: its collectives, and that no row is multiplied with an
expert it was not sent to."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.experiment import Experiment
from llm_jax.layout import gpu_compile
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig, MoEConfig
from llm_jax.model.grouped_matmul import grouped_product
from llm_jax.model.moe import capacity
from llm_jax.run.compile import compile_absent
from llm_jax.train.config import TrainConfig

pytestmark = pytest.mark.gpu_compile
# so that no two shapes that are told apart are equal
DEVICES, GROUP, B, T, D, F, E, K = 8, 4, 2, 512, 512, 1536, 8, 2


@functools.cache
def step(dispatch: str) -> gpu_compile.CompiledStep:
    """The step of a small model on data=2 x expert=4, with B rows per device."""
    moe = MoEConfig(experts=E, top_k=K, dispatch=dispatch)  # type: ignore[arg-type]
    model = ModelConfig(
        layers=3,
        embed=D,
        heads=8,
        kv_heads=4,
        mlp=F,
        vocab=6144,
        compute_dtype="bfloat16",
        remat="full",
        moe=moe,
    )
    experiment = Experiment(
        model=model, layout=preset("expert"), train=TrainConfig(batch_size=B * DEVICES, sequence_length=T)
    )
    return compile_absent(experiment, "h100", DEVICES)


def collectives(dispatch: str, kind: str) -> str:
    """The types of all collectives of a kind, one a line."""
    return "\n".join(re.findall(rf" = (.*) {kind}\(", step(dispatch).text))


def test_dropless_gathers_the_tokens_of_a_group_and_scatters_the_sums():
    one, group = rf"bf16\[{B * T},{D}\]\S*", rf"bf16\[{GROUP * B * T},{D}\]\S*"
    assert re.search(rf"{one}.*{group}", collectives("dropless", "all-gather-start"))
    assert re.search(rf"{group}.*{one}", collectives("dropless", "reduce-scatter-start"))


@pytest.mark.slow  # its results are compared in tests/parity
def test_capacity_sends_each_expert_its_capacity_and_no_more():
    model = MoEConfig(experts=E, top_k=K)
    room = capacity(model, T)
    sent = collectives("capacity", "all-to-all-start")
    assert f"bf16[{B},{E},{room},{D}]" in sent
    assert f"bf16[{B * GROUP},{E // GROUP},{room},{D}]" in sent
    assert f"bf16[{GROUP * B * T},{D}]" not in collectives("capacity", "all-gather-start")


@pytest.mark.parametrize("dispatch", ["dropless", "capacity"])
def test_experts_are_exchanged_beside_other_work(dispatch):
    for kind in ("all-gather", "reduce-scatter", "all-to-all"):
        assert not collectives(dispatch, kind)  # none that is waited for at once


def test_no_array_has_all_rows_for_each_expert():
    rows = GROUP * B * T * K
    assert step("dropless").buffers_with(rows, F)
    for own in (E // GROUP, E):
        for width in (D, F):
            assert not step("dropless").buffers_with(own, rows, width)
            assert not step("dropless").buffers_with(rows, own * width)


@pytest.mark.parametrize(("how", "dense"), [("ragged_dot", True), ("loop", False)])
def test_ragged_dot_is_dense_in_these_versions_and_the_loop_is_not(how, dense):
    """If this fails for ragged_dot, JAX has a kernel for GPUs: measure it, and make it the default of
    model.moe.product there."""
    mesh = gpu_compile.topology_mesh("h100", {"data": 1})
    on = lambda shape, dtype: jax.ShapeDtypeStruct(  # noqa: E731
        shape, dtype, sharding=NamedSharding(mesh, PartitionSpec())
    )
    product = jax.shard_map(
        functools.partial(grouped_product, how=how),
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    arguments = (on((4096, D), jnp.bfloat16), on((E, D, F), jnp.bfloat16), on((E,), jnp.int32))
    compiled = gpu_compile.compile_for(mesh, jax.jit(product), arguments)
    assert bool(compiled.buffers_with(4096, E * D)) == dense
