"""Prints plans and rankings as tables."""

from __future__ import annotations

from collections import defaultdict

from rich.table import Table

from llm_jax.core.format import byte_size, duration, parameter_count
from llm_jax.core.tables import make_console, show, table
from llm_jax.plan.plan import Plan
from llm_jax.plan.search import Ranking

KINDS = {
    "parameters": "trained weights at rest",
    "frozen": "weights that are not trained: the model's own, and frozen models",
    "gradients": "float32, where the moments are",
    "moments": "optimizer state",
    "average": "moving average of the weights",
    "batch": "batch, counters, metrics",
    "activations": "kept for the backward pass, gathered weights, logits: at the peak",
    "workspace": "cuDNN's backward kernel, at most; XLA does not see it",
}


def print_plan(plan: Plan) -> None:
    """Prints a plan: memory, largest arrays, kernels, collectives, prediction and assumptions."""
    console = make_console()
    console.print(header(plan))
    for title, made in (
        memory_table(plan),
        array_table(plan),
        kernel_table(plan),
        collective_table(plan),
        prediction(plan),
    ):
        show(console, title, made)
    console.print()
    for assumption in plan.assumptions:
        console.print(f"assumed: {assumption}")


def print_ranking(ranking: Ranking) -> None:
    """Prints the layouts that fit, the fastest first, then those left out with the reason."""
    console = make_console()
    made = table(
        "", "layout", ">tokens/s a device", ">MFU", ">step", ">best to worst", ">memory", ">waits for others"
    )
    for place, plan in enumerate(ranking.plans, 1):
        seconds = plan["step_seconds"]
        waits = sum(row["seconds"] - row["hidden_seconds"] for row in plan["collectives"])
        made.add_row(
            str(place),
            f"{plan['layout']} ({mesh_text(plan['mesh'])})",
            f"{plan['tokens_per_second_per_device']:,.0f}",
            f"{plan['mfu']:.1%}",
            duration(seconds["expected"]),
            f"{duration(seconds['best'])} to {duration(seconds['worst'])}",
            byte_size(plan["memory_bytes"]["total"]),
            duration(waits),
        )
    show(console, "Layouts that fit, the fastest first" if ranking.plans else "No layout fits.", made)
    reasons: dict[str, list[str]] = defaultdict(list)
    for out in ranking.left_out:
        reasons[out.why].append(out.candidate.name)
    if reasons:
        made = table("layout", "why")
        for why, names in reasons.items():
            made.add_row(", ".join(names), why)
        show(console, "Left out", made)
    if ranking.same:
        console.print(
            f"Not listed: {ranking.same} meshes that are equivalent to one of these (with an axis of one "
            "device, for example)."
        )
    for assumption in ranking.plans[0]["assumptions"] if ranking.plans else []:
        console.print(f"assumed: {assumption}")


def header(plan: Plan) -> str:
    """Two lines that name what was planned."""
    e = plan.experiment
    partly = plan.trained != plan.parameters
    trained = f" ({parameter_count(plan.trained)} trained)" if partly else ""
    return (
        f"{e.name}: {parameter_count(plan.parameters)} parameters{trained} on {plan.devices} x "
        f"{plan.hardware.description}, "
        f"layout {e.layout.name} ({mesh_text(plan.mesh)})\n"
        f"a step: {e.train.batch_size:,} rows of {e.train.sequence_length:,} tokens; "
        f"planned with XLA's {plan.compiler.upper()} compiler in {plan.seconds_to_plan:.1f} s"
    )


def mesh_text(mesh: dict[str, int]) -> str:
    """A mesh as text: "data 8 x tensor 8"."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def memory_table(plan: Plan) -> tuple[str, Table]:
    """(title, table) of one device's bytes by kind; the title has whether they fit."""
    verdict = "fits" if plan.fits else "does NOT fit"
    if plan.compiler == "cpu":
        verdict += " by the CPU compiler's account, which is too large"
    made = table("kind", ">bytes", "")
    for kind, what in KINDS.items():
        if plan.memory[kind]:
            made.add_row(kind, byte_size(plan.memory[kind]), what)
    made.add_row("total", byte_size(plan.memory["total"]), f"of {byte_size(plan.hardware.memory_bytes)}")
    part = plan.memory["total"] / plan.usable_bytes
    return (
        f"Memory of one device: {verdict}, {part:.0%} of the {byte_size(plan.usable_bytes)} that a "
        "program can use",
        made,
    )


def array_table(plan: Plan) -> tuple[str, Table]:
    """(title, table) of the largest arrays that a loop carries, such as stacks of activations kept for the
    backward pass."""
    made = table(">bytes", ">arrays", "of")
    for total, n, dtype, shape in plan.largest:
        made.add_row(byte_size(total), str(n), f"{dtype}{list(shape)}")
    return "Largest arrays that a loop carries" if plan.largest else "No loops.", made


def kernel_table(plan: Plan) -> tuple[str, Table]:
    """(title, table) of kernels by kind; the title names the attention kernels."""
    made = table("kind", ">count", ">FLOPs", ">bytes", ">seconds")
    kinds: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for row in plan.analysis.kernels:
        for i, value in enumerate((row.count, row.flops, row.bytes, row.seconds)):
            kinds[row.kind][i] += value
    for kind, (n, flops, moved, seconds) in sorted(kinds.items(), key=lambda item: -item[1][3]):
        made.add_row(kind, f"{n:,.0f}", f"{flops:.3g}" if flops else "", byte_size(moved), duration(seconds))
    found = [f"{name} ({n} times)" for name, n in plan.analysis.attention_kernels.items()]
    attention = ", ".join(found[:2]) + (f", and {len(found) - 2} more" if len(found) > 2 else "")
    return f"Kernels of one device; attention: {attention or 'not recognised'}", made


def collective_table(plan: Plan) -> tuple[str, Table]:
    """(title, table) of collectives by kind and axis."""
    made = table("kind", "over", "on the", ">count", ">bytes", ">seconds", ">hidden")
    for row in plan.analysis.collectives:
        share = f"{row.hidden_seconds / row.seconds:.0%}" if row.seconds else ""
        made.add_row(
            row.kind,
            row.axis,
            "network" if row.crosses_nodes else "node",
            f"{row.count:,}",
            byte_size(row.bytes),
            duration(row.seconds),
            share,
        )
    return (
        "Collectives: bytes that one device sends, and the share of their time hidden behind kernels"
        if made.row_count
        else "No collectives.",
        made,
    )


def prediction(plan: Plan) -> tuple[str, Table]:
    """(title, table) of the predicted step time, tokens/s, MFU and FLOPs."""
    seconds = plan.analysis.step_seconds
    made = table("", "")
    more = plan.hardware_flops / plan.model_flops
    made.add_row(
        "step",
        f"{duration(seconds['expected'])} (best {duration(seconds['best'])}, worst "
        f"{duration(seconds['worst'])})",
    )
    made.add_row(
        "speed",
        f"{plan.tokens_per_second_per_device:,.0f} tokens/s a device, "
        f"{plan.tokens / seconds['expected']:,.0f} in all",
    )
    made.add_row(
        "MFU",
        f"{plan.mfu:.1%} of {plan.hardware.peak_flops[plan.experiment.model.compute_dtype] / 1e12:,.0f} "
        "TFLOP/s",
    )
    made.add_row(
        "FLOPs",
        f"{plan.model_flops:.3g} needed by the model, {plan.hardware_flops:.3g} executed by the devices "
        f"({more:.2f} times)",
    )
    return "Prediction", made
