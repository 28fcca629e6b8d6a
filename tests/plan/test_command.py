"""The command `python -m llm_jax.plan`: its output, its files, and its errors."""

from __future__ import annotations

import dataclasses
import re

import jax
import pytest

from llm_jax.layout import gpu_compile
from llm_jax.objective.next_token import NextToken
from llm_jax.objective.sft import SFT
from llm_jax.plan.__main__ import main
from llm_jax.plan.memory import lower_bound_bytes
from llm_jax.plan.plan import plan_program, with_assumptions
from llm_jax.run.initial_weights import experiment_from_pairs

PARAMETERS = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 2 * 512 * 64 + 64
"""Parameters of the small experiment: projections, feed-forward and norms of two blocks, two tables, the last
norm."""


def test_memory_by_kind_equals_arithmetic_and_sums_to_the_total(planned):
    plan = planned()
    memory = plan["memory_bytes"]
    assert plan["parameters"] == PARAMETERS
    assert memory["parameters"] == 4 * PARAMETERS / 8  # float32, split over 8
    assert memory["gradients"] == memory["parameters"]
    assert memory["moments"] == pytest.approx(2 * memory["parameters"], abs=64)  # and counters
    assert memory["batch"] == pytest.approx(5 * 4 * 16 * 64 / 8, abs=2000)  # five arrays; metrics and padding
    assert memory["average"] == memory["workspace"] == 0
    assert memory["total"] == sum(size for kind, size in memory.items() if kind != "total")


@pytest.mark.parametrize(
    "arguments", [(), ("layout=data_parallel", "train.ema_decay=0.9", "model.parameter_dtype=bfloat16")]
)
def test_no_plan_needs_less_than_the_lower_bound(planned, small, arguments):
    experiment, _ = with_assumptions(
        experiment_from_pairs([("experiment", str(small)), *(tuple(pair.split("=")) for pair in arguments)]),
        "cpu",
    )
    program = plan_program(experiment, jax.devices()[:8])
    memory = planned(*arguments)["memory_bytes"]
    state = memory["total"] - memory["batch"] - memory["activations"]
    assert (
        memory["total"] > lower_bound_bytes(program, {}, experiment) == state + 2 * 4 * 16 * 64 * 64 / 8
    )  # two layers' stream


def test_weights_that_no_axis_splits_are_whole_on_every_device(planned):
    memory = planned("layout=data_parallel", "train.ema_decay=0.9", "model.parameter_dtype=bfloat16")[
        "memory_bytes"
    ]
    assert memory["parameters"] == 2 * PARAMETERS
    assert memory["average"] == memory["gradients"] == 4 * PARAMETERS


def test_json_has_the_keys_that_programs_read(planned):
    plan = planned()
    assert {
        "experiment",
        "layout",
        "mesh",
        "hardware",
        "devices",
        "compiler",
        "memory_bytes",
        "fits",
        "model_flops",
        "assumptions",
    } <= set(plan)
    assert plan["mesh"] == {"data": 8}
    assert plan["fits"] is True
    # 6 FLOPs a multiplied weight and token; 12 layers heads head_dim a visible pair of positions
    weights = PARAMETERS - 512 * 64 - 64 * 5
    assert plan["model_flops"] == 16 * 64 * (6 * weights + 12 * 2 * 64 * 65 / 2)


def test_the_prediction_agrees_with_itself(planned):
    plan = planned()
    seconds = plan["step_seconds"]
    assert seconds["best"] < seconds["expected"] < seconds["worst"]
    assert plan["tokens_per_second_per_device"] == pytest.approx(plan["tokens"] / 8 / seconds["expected"])
    assert plan["mfu"] == pytest.approx(plan["model_flops"] / (8 * 494.7e12 * seconds["expected"]))  # float32
    assert plan["hardware_flops"] == pytest.approx(8 * sum(row["flops"] for row in plan["kernels"]))
    for row in plan["collectives"]:
        assert set(row) == {"kind", "axis", "crosses_nodes", "count", "bytes", "seconds", "hidden_seconds"}
        assert row["axis"] == "data"
        assert not row["crosses_nodes"]  # 8 devices are one node


def test_trace_and_program_are_written(planned):
    plan = planned()
    assert {event["ph"] for event in plan["trace"]["traceEvents"]} >= {"X", "M"}
    last = max(event["ts"] + event["dur"] for event in plan["trace"]["traceEvents"] if event["ph"] == "X")
    assert last / 1e6 == pytest.approx(plan["step_seconds"]["expected"], rel=1e-3)
    assert plan["text"].startswith("HloModule")


def test_simulated_devices_are_never_used_silently(planned):
    plan = planned()
    assert plan["compiler"] == "cpu"
    assert any(line.startswith("compiler=cpu: ") for line in plan["assumptions"])
    assert "CPU compiler" in plan["printed"]


def test_without_the_gpu_compiler_one_line_names_both_ways(small, capsys, monkeypatch):
    monkeypatch.setattr(gpu_compile.importlib.util, "find_spec", lambda name: None)
    assert main([f"experiment={small}", "devices=8", "hardware=h100"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "llm_jax[cuda]" in error
    assert "compiler=cpu" in error


def test_the_verdict_is_against_what_a_program_can_use(planned):
    plan = planned()
    assert plan["memory_usable_bytes"] == int(0.92 * 84_942_979_072)
    assert "fits" in plan["printed"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["devices=8", "hardware=h10"], r"hardware=h10: must be one of .*did you mean 'h100'\?"),
        (
            ["devices=8", "hardwar=h100"],
            r"hardwar=h100: there is no key 'hardwar'; did you mean 'hardware'\?",
        ),
        (
            ["devices=8", "hardware=h100", "batch_size=4"],
            r"batch_size=4: .*did you mean 'train.batch_size'\?",
        ),
        (["hardware=h100"], "devices=N is missing"),
        (["devices=8"], "hardware=NAME is missing; one of: a40, "),
        (["devices=eight", "hardware=h100"], "devices=eight: must be a whole number"),
        (["devices=0", "hardware=h100"], "devices=0: must be a whole number, at least 1"),
        (["devices=8", "hardware=h100", "compiler=gcc"], "compiler=gcc: must be one of gpu, cpu"),
        (
            ["devices=8", "hardware=h100", "json=no/such/plan.json"],
            "json=no/such/plan.json: there is no folder no/such",
        ),
        (["devices=8", "hardware=h100", "--trace"], "--trace: no such option"),
        (
            ["devices=8", "hardware=h100", "compiler=cpu", "layout=single"],
            "devices=8: layout single .mesh.data=1. uses 1 of them",
        ),
        (
            ["devices=8", "hardware=h100", "compiler=cpu", "layout=fsdb"],
            r"layout=fsdb: no such layout; did you mean 'fsdp'\?",
        ),
        (
            ["devices=8", "hardware=h100", "compiler=cpu", "train.batch_size=12"],
            "train.batch_size=12: layout fsdp .* not a multiple of 8",
        ),
        (
            ["devices=8", "hardware=h100", "compiler=cpu", "layout=fsdp_tensor", "mesh.tensor=3"],
            "8 devices can't be divided by 3",
        ),
        (["devices=64", "hardware=h100", "compiler=cpu"], "devices=64: only 8 are simulated here"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix(small, capsys, arguments, says):
    assert main([f"experiment={small}", *arguments]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(says, error)
    assert not out


def test_help_lists_the_keys(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in (
        "experiment=",
        "devices=",
        "hardware=",
        "layout=all",
        "json=",
        "trace=",
        "picture=",
        "text=",
        "compiler=cpu",
    ):
        assert word in out


@pytest.mark.gpu_compile
def test_the_gpu_compiler_plans_the_same_state(planned, gpu_compiler):
    there, here = planned(compiler="gpu"), planned()
    for kind in ("parameters", "gradients", "moments", "workspace"):
        assert there["memory_bytes"][kind] == here["memory_bytes"][kind]
    assert not any("compiler=cpu" in line for line in there["assumptions"])


@pytest.mark.gpu_compile
def test_a_kernel_that_a_gpu_does_not_have_is_refused(small, capsys, gpu_compiler):
    line = [f"experiment={small}", "devices=8", "model.attention=cudnn", "model.compute_dtype=bfloat16"]
    assert main([*line, "hardware=a100_80"]) == 2
    assert re.search(
        r"error: model.attention=cudnn: .* have 8.0; use model.attention=xla", capsys.readouterr().err
    )


@pytest.mark.gpu_compile
def test_sizes_that_the_gpu_compiler_has_no_kernel_for_are_one_line(small, capsys, gpu_compiler):
    assert main([f"experiment={small}", "hardware=h100", "devices=1", "model.head_dim=6"]) == 2
    assert "error: hardware=h100: XLA's compiler for it has no kernel" in capsys.readouterr().err


def test_a_substitute_for_a_kernel_that_cpus_lack_is_noted(planned):
    plan = planned("model.attention=cudnn", "model.compute_dtype=bfloat16", "train.microbatches=2")
    assert any(line.startswith("model.attention=blocked stands in for cudnn") for line in plan["assumptions"])
    assert plan["memory_bytes"]["workspace"] == 0


def test_rows_of_whole_examples_are_planned_with_more_of_them(small):
    experiment = experiment_from_pairs(
        [("experiment", str(small)), ("model.attention", "cudnn"), ("train.sequence_length", "2048")]
    )
    for objective, segments, note in ((SFT(), 16, True), (NextToken(), 2, False)):
        made, assumptions = with_assumptions(dataclasses.replace(experiment, objective=objective), "gpu")
        assert made.model.max_segments == segments
        assert any("padding behind whole examples" in line for line in assumptions) == note
