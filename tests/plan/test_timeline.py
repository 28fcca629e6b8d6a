"""Simulated schedules equal timelines drawn by hand. A product takes 1 ms, collectives 1, 3 or 10 ms."""

from __future__ import annotations

import dataclasses
import json

import pytest

from llm_jax.layout.hlo import Module
from llm_jax.plan import collectives, efficiency
from llm_jax.plan.timeline import COMPUTE, NODE, CostedModule, Timeline, simulate
from tests.plan.hardware import PERFECT, ROUND, mesh, program

MS = 1e-3
INSTANT = dataclasses.replace(ROUND, node_latency=0.0, network_latency=0.0, memory_bandwidth=1e30)
"""Hardware on which only products and the bytes of collectives take time."""
PRODUCT = (
    "bf16[1000,500000] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"  # 1e12 FLOPs: 1 ms
)
INPUTS = (
    "%a = bf16[1000,1000] parameter(0)\n%b = bf16[1000,500000] parameter(1)\n%x = u8[200000000] parameter(2)"
)
REDUCE = (
    "u8[200000000] all-reduce-start(%x), replica_groups={{0,1}}, to_apply=%add"  # each sends 2e8 bytes: 2 ms
)


@pytest.fixture(autouse=True)
def collectives_start_at_once(monkeypatch):
    monkeypatch.setattr(collectives, "COLLECTIVE_LAUNCH", 0.0)


def timeline(module: Module, rates=PERFECT) -> Timeline:
    return simulate(
        CostedModule(module, mesh(data=2), ROUND.devices_per_node), INSTANT, rates, record_events=True
    )


def exposed(done: Timeline) -> dict[str, float]:
    return {instruction.name: seconds for instruction, seconds in done.exposed.items() if seconds}


def test_kernels_beside_a_collective_hide_it():
    done = timeline(
        program(
            f"{INPUTS}\n%r = {REDUCE}\n%k = {PRODUCT}\n%d = u8[200000000] all-reduce-done(%r)\nROOT %k2 = "
            f"{PRODUCT}"
        )
    )
    assert done.seconds == pytest.approx(3 * MS)  # 1 of the first product, 1 that it waits, 1 of the second
    assert exposed(done) == {"r": pytest.approx(1 * MS)}
    assert [(e.row, round(e.start / MS, 6), round(e.seconds / MS, 6)) for e in done.events] == [
        (NODE, 0, 2),
        (COMPUTE, 0, 1),
        (COMPUTE, 2, 1),
    ]


def test_a_collective_that_finishes_in_time_costs_nothing():
    done = timeline(
        program(
            f"{INPUTS}\n%r = {REDUCE}\n%k = {PRODUCT}\n%k2 = {PRODUCT}\n%k3 = {PRODUCT}\n%d = "
            "u8[200000000] all-reduce-done(%r)"
        )
    )
    assert done.seconds == pytest.approx(3 * MS)
    assert not exposed(done)


def test_collectives_queue_and_waiting_is_charged_to_the_one_on_the_links():
    done = timeline(
        program(
            f"{INPUTS}\n%r = {REDUCE}\n%s = {REDUCE}\n%k = {PRODUCT}\n%e = u8[200000000] "
            "all-reduce-done(%s)\n%d = u8[200000000] all-reduce-done(%r)"
        )
    )
    assert done.seconds == pytest.approx(4 * MS)
    assert exposed(done) == {"r": pytest.approx(1 * MS), "s": pytest.approx(2 * MS)}


@pytest.mark.parametrize(
    "collective",
    [
        "%r = u8[200000000] all-reduce(%x), replica_groups={{0,1}}, to_apply=%add",
        f'%r = {REDUCE}, backend_config={{"collective_backend_config":{{"is_sync":true}}}}',
    ],
)
def test_synchronous_collectives_hold_the_kernels_up(collective):
    done = timeline(program(f"{INPUTS}\n{collective}\n%k = {PRODUCT}"))
    assert done.seconds == pytest.approx(3 * MS)
    assert exposed(done) == {"r": pytest.approx(2 * MS)}


def test_a_kernel_is_slower_for_as_long_as_a_collective_runs():
    slower = dataclasses.replace(
        PERFECT, slowdown=1.0
    )  # at half speed for 2 ms, which does all of it; the second is alone
    done = timeline(
        program(
            f"{INPUTS}\n%r = {REDUCE}\n%k = {PRODUCT}\n%k2 = {PRODUCT}\n%d = u8[200000000] "
            "all-reduce-done(%r)"
        ),
        slower,
    )
    assert done.seconds == pytest.approx(3 * MS)
    longer = dataclasses.replace(slower, node=0.5)  # the collective takes 4 ms: both are slow
    done = timeline(
        program(
            f"{INPUTS}\n%r = {REDUCE}\n%k = {PRODUCT}\n%k2 = {PRODUCT}\n%d = u8[200000000] "
            "all-reduce-done(%r)"
        ),
        longer,
    )
    assert done.seconds == pytest.approx(4 * MS)


BODY = f"""inner:
{INPUTS}
%r = {REDUCE}
%k = {PRODUCT}
%d = u8[200000000] all-reduce-done(%r)
ROOT %t = (s32[]) tuple(%a)

outer:
{INPUTS}
%w = (s32[]) while(%a), condition=%c, body=%inner, backend_config={{"known_trip_count":{{"n":"7"}}}}
%k3 = {PRODUCT}
ROOT %t3 = (s32[]) tuple(%a)"""


def test_loops_count_every_trip_and_the_trace_shows_the_first_ones():
    module = program(
        f"{INPUTS}\nROOT %w2 = (s32[]) while(%a), condition=%c, body=%outer, "
        f'backend_config={{"known_trip_count":{{"n":"5"}}}}',
        BODY,
    )
    done = timeline(module)
    assert done.seconds == pytest.approx(5 * (7 * 2 + 1) * MS)
    assert {i.name: n for i, n in done.counts.items()} == {"r": 35, "k": 35, "k3": 5}
    assert exposed(done) == {"r": pytest.approx(35 * MS)}
    blocks = [e for e in done.events if "more trips" in e.name]
    assert [(e.name, round(e.seconds / MS)) for e in blocks] == [
        ("5 more trips of w", 10), ("5 more trips of w", 10), ("3 more trips of w2", 45),
    ]  # fmt: skip
    assert blocks[-1].start + blocks[-1].seconds == pytest.approx(done.seconds)


def test_a_program_without_a_schedule_is_refused():
    module = program(f"{INPUTS}\nROOT %k = {PRODUCT}")
    with pytest.raises(ValueError, match="not scheduled"):
        timeline(dataclasses.replace(module, scheduled=False))


@pytest.mark.parametrize(
    ("scope", "trips", "counted"),
    [
        ("", 1, "once"),
        ("trips=6/", 6, "as the model expects"),
        ("transpose(jvp(trips=6))/while/body/", 6, "as the model expects"),
    ],
)
def test_a_loop_whose_trips_the_data_decides_runs_as_often_as_the_model_expects(scope, trips, counted):
    name = f'metadata={{op_name="jit(step)/{scope}while"}}'
    done = timeline(
        program(f"{INPUTS}\nROOT %w2 = (s32[]) while(%a), condition=%c, body=%inner, {name}", BODY)
    )
    assert done.seconds == pytest.approx(trips * (2 * MS + efficiency.HOST_SYNC))
    assert done.notes == (f"1 loops whose trips the data decides: counted {counted}",)


def test_a_collective_started_before_a_loop_is_hidden_by_all_of_it():
    module = program(
        f"""{INPUTS}
        %y = u8[2000000000] parameter(3)
        %r = u8[2000000000] all-reduce-start(%y), replica_groups={{{{0,1}}}}, to_apply=%add
        %w2 = (s32[]) while(%a), condition=%c, body=%only, backend_config={{"known_trip_count":{{"n":"15"}}}}
        ROOT %d = u8[2000000000] all-reduce-done(%r)""",
        f"only:\n{INPUTS}\n%k = {PRODUCT}\nROOT %t = (s32[]) tuple(%a)",
    )
    assert timeline(module).seconds == pytest.approx(20 * MS)
    assert exposed(timeline(module)) == {"r": pytest.approx(5 * MS)}
    slower = dataclasses.replace(PERFECT, slowdown=1.0)  # 10 trips of 2 ms beside it, then 5 of 1 ms
    assert timeline(module, slower).seconds == pytest.approx(25 * MS)


def test_the_longest_branch_of_a_conditional_counts():
    module = program(
        f"{INPUTS}\n%i = s32[] parameter(3)\nROOT %c = (s32[]) conditional(%i, %a, %b), "
        f"branch_computations={{%nothing, %something}}",
        f"nothing:\n%p = s32[] parameter(0)\nROOT %t = (s32[]) tuple(%p)\n\nsomething:\n{INPUTS}\n%k = "
        f"{PRODUCT}\nROOT %t1 = (s32[]) tuple(%a)",
    )
    assert timeline(module).seconds == pytest.approx(1 * MS)
    assert timeline(module).notes == ("1 conditionals: counted as the branch that takes longest",)


def test_copies_to_the_host_run_beside_the_kernels():
    module = program(
        f"""{INPUTS}
        %s = (u8[200000000]{{0:S(5)}}, u8[200000000]{{0}}, u32[]) copy-start(%x)
        %k = {PRODUCT}
        ROOT %d = u8[200000000]{{0:S(5)}} copy-done(%s)"""
    )
    done = timeline(module)
    assert done.seconds == pytest.approx(2e8 / efficiency.HOST_BANDWIDTH)
    assert {e.row for e in done.events} == {COMPUTE, "host transfers"}


def test_the_trace_is_chrome_json_with_a_row_for_each_stream():
    done = timeline(
        program(f"{INPUTS}\n%r = {REDUCE}\n%k = {PRODUCT}\nROOT %d = u8[200000000] all-reduce-done(%r)")
    )
    trace = json.loads(json.dumps(done.chrome_trace()))["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in trace if e["name"] == "thread_name"}
    shown = {(rows[e["tid"]], e["name"]): (e["ts"], e["dur"]) for e in trace if e["ph"] == "X"}
    assert shown == {
        (COMPUTE, "matmul: k"): (0, pytest.approx(1000)),
        (NODE, "all-reduce over data"): (0, pytest.approx(2000)),
    }
