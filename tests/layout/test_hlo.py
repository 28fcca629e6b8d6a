"""The parser of XLA's compiled text, on small programs written by hand and on one that XLA prints."""

# lines as XLA prints them

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layout import hlo

PROGRAM = r"""HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0}, s32[])->f32[8,4]{1,0}}

FileNames
1 "somewhere.py"

%fused (param_0: f32[8,4]) -> f32[2,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  ROOT %slice.1 = f32[2,4]{1,0} slice(%param_0), slice={[0:2], [0:4]}
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1, metadata={op_name="batch[\'tokens\']" stack_frame_id=3}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
}

%condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %p.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %lt = pred[] constant(true)
}

ENTRY %main.7 (a: f32[8,4], b: s32[]) -> f32[8,4] {
  %a = f32[8,4]{1,0:S(5)} parameter(0), sharding={devices=[2,1]<=[2]}
  %b = s32[] parameter(1)
  %fusion.1 = f32[2,4]{1,0} fusion(%a), kind=kLoop, calls=%fused
  %start = ((f32[2,4]{1,0}, bf16[3]{0}), (f32[4,4]{1,0}, /*index=1*/bf16[6]{0})) all-gather-start(%fusion.1, /*index=1*/%fusion.1), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}
  %tuple.1 = (s32[], f32[8,4]{1,0}) tuple(%b, %a)
  %while.1 = (s32[], f32[8,4]{1,0}) while(%tuple.1), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"},"known_init_step":{"init":"0","step":"1"}}
  %call.1 = (bf16[8]{0}, u8[0]{0}) custom-call(%a), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,"names":["a}","b"]}}
  ROOT %out = f32[8,4]{1,0} get-tuple-element(%while.1), index=1
}
"""


@pytest.fixture(scope="module")
def program() -> hlo.Module:
    return hlo.parse(PROGRAM)


def test_computations_and_their_order_are_read(program):
    assert list(program.computations) == ["fused", "body", "condition", "main.7"]
    assert program.scheduled
    assert [i.opcode for i in program.entry] == [
        "parameter", "parameter", "fusion", "all-gather-start", "tuple", "while", "custom-call", "get-tuple-element",
    ]  # fmt: skip
    assert program.entry.root.name == "out"
    assert program.entry.parameters[1].shape == ("s32", ())


def test_types_operands_and_attributes_are_read(program):
    entry = program.entry.instructions
    start = entry["start"]
    assert start.shapes == (("f32", (2, 4)), ("bf16", (3,)), ("f32", (4, 4)), ("bf16", (6,)))
    assert start.bytes == 32 + 6 + 64 + 12
    assert start.operands == ("fusion.1", "fusion.1")
    assert start.numbers("dimensions") == (0,)
    assert start.attribute("channel_id") == "1"
    assert start.attribute("no_such") is None
    loop = entry["while.1"]
    assert (loop.trips, sorted(loop.called)) == (10, ["body", "condition"])
    assert entry["call.1"].target == "__cublas$gemm"
    assert entry["call.1"].backend_config["gemm_backend_config"]["names"] == ["a}", "b"]
    assert entry["out"].backend_config == {}
    assert program.computations["body"].instructions["x"].op_name == "batch['tokens']"
    assert [user.name for user in program.entry.users["a"]] == ["fusion.1", "tuple.1", "call.1"]


def test_results_inside_a_fusion_are_not_in_memory(program):
    assert [c.name for c in program.allocating()] == ["body", "condition", "main.7"]


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule empty\n")


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("[2,4]<=[2,2,2]T(1,0,2)", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['data'=2,'tensor'=4] {'tensor'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['data'=2,'tensor'=4] {'data'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=1,'c'=4] {'a','c'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", [[0, 3], [1, 2]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_replica_groups_are_read_in_every_form(groups, expected):
    line = (
        f"HloModule m\nENTRY %e (p: f32[]) -> f32[] {{\n  ROOT %r = f32[] all-reduce(%p), channel_id=1, "
        f"replica_groups={groups}, to_apply=%add\n}}"
    )
    assert hlo.parse(line).entry.root.replica_groups(8).tolist() == expected


def test_pairs_of_a_permute_are_read():
    line = (
        "HloModule m\nENTRY %e (p: f32[]) -> f32[] {\n  ROOT %r = f32[] collective-permute(%p), "
        "source_target_pairs={{0,1},{1,0}}, channel_id=2\n}"
    )
    assert hlo.parse(line).entry.root.source_target_pairs == [(0, 1), (1, 0)]


def test_a_program_of_this_xla_is_read():
    """The groups that XLA's partitioner writes are the columns of the mesh, whatever form they have."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), (jax.sharding.AxisType.Explicit,) * 2)

    def f(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(jnp.sin(c), "a"), None), x, length=7)[0]

    with jax.set_mesh(mesh):
        spec = jax.P("a", "b")
        step = jax.jit(jax.shard_map(f, in_specs=spec, out_specs=spec, check_vma=False))
        program = hlo.parse(
            step.lower(jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=jax.NamedSharding(mesh, spec)))
            .compile()
            .as_text()
        )
    instructions = [i for computation in program.computations.values() for i in computation]
    assert [i.trips for i in instructions if i.opcode == "while"] == [7]
    (reduce,) = [i for i in instructions if i.opcode == "all-reduce"]
    assert reduce.shape == ("f32", (4, 2))
    assert np.sort(reduce.replica_groups(8)).tolist() == [[i, i + 4] for i in range(4)]
