"""A plan as tables that a person reads."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from llm_jax.plan.plan import Plan

WIDTH = 120
"""Columns where the output is no terminal."""
KINDS = {
    "parameters": "weights at rest",
    "gradients": "float32, where the weights are at rest",
    "moments": "optimizer state",
    "average": "moving average of the weights",
    "batch": "batch, counters, metrics",
    "activations": "kept for the backward pass, gathered weights, logits: at the peak",
    "workspace": "cuDNN's backward kernel, at most; XLA does not see it",
}


def print_plan(plan: Plan) -> None:
    """Prints all of a plan."""
    console = make_console()
    console.print(header(plan))
    console.print(memory_table(plan))
    console.print(verdict(plan))
    for assumption in plan.assumptions:
        console.print(f"assumed: {assumption}")


def make_console() -> Console:
    """A console of a fixed width where the output is not a terminal, so that tables are whole in files."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


def header(plan: Plan) -> str:
    """What was planned, in two lines."""
    e = plan.experiment
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    return (
        f"{e.name}: {plan.parameters / 1e9:.3g} B parameters on {plan.devices} x {plan.hardware.description}, layout {e.layout.name} ({mesh})\n"
        f"a step: {e.train.batch_size:,} rows of {e.train.sequence_length:,} tokens, {plan.model_flops:.3g} model FLOPs; "
        f"planned with XLA's {plan.compiler.upper()} compiler in {plan.seconds_to_plan:.1f} s"
    )


def memory_table(plan: Plan) -> Table:
    """Bytes of one device by kind."""
    table = Table(title="memory of one device, GB (1e9 bytes)", title_justify="left", box=None, pad_edge=False)
    for column, justify in (("kind", "left"), ("GB", "right"), ("what", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for kind, what in KINDS.items():
        if plan.memory[kind]:
            table.add_row(kind, f"{plan.memory[kind] / 1e9:,.2f}", what)
    table.add_row(
        "total", f"{plan.memory['total'] / 1e9:,.2f}", f"of {plan.usable_bytes / 1e9:,.2f} usable, {plan.hardware.memory_bytes / 1e9:,.2f} in all"
    )
    return table


def verdict(plan: Plan) -> str:
    """Whether it fits."""
    part = plan.memory["total"] / plan.usable_bytes
    if plan.fits:
        return f"fits: {part:.0%} of what a program can use"
    return f"does NOT fit: {part:.0%} of what a program can use; more devices, a smaller batch, more microbatches or more remat would help"
