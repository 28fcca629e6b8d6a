"""Runs the command line of a grid, `python -m llm_jax.launch`: prints it, prints its cost (--dry-run), runs
or submits it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llm_jax import experiment as experiments
from llm_jax.core.errors import UserError
from llm_jax.core.format import hours, short
from llm_jax.core.tables import make_console, table
from llm_jax.layout.hardware import hardware
from llm_jax.layout.mesh import make_mesh
from llm_jax.model import accounting
from llm_jax.processes.group import Group
from llm_jax.scaling.grid import Grid, warmup_line, with_command_line
from llm_jax.scaling.shared_prefix import with_trunks
from llm_jax.slurm.submit import Submission
from llm_jax.train.peak_flops import device_peak


def launch_grid(
    grid: Grid,
    name: str,
    flags: list[str],
    pairs: list[tuple[str, str]],
    group: Group,
    submission: Submission | None = None,
) -> int:
    """Runs a grid's command line and returns the exit code. Raises UserError for a mistake that all points
    share.

    submission: how the runs are submitted to Slurm; None: they run in this process.
    """
    grid = with_command_line(dataclasses.replace(grid, base=experiments.named(grid.base, name)), pairs)
    if "--show" in flags:
        print(show(grid), end="")
        return 0
    if "--dry-run" in flags:
        return dry_run(grid, submission)
    if submission:
        from llm_jax.scaling.submit import submit_grid  # late: Orbax, which --show and --dry-run don't need

        return submit_grid(grid, group, submission, resuming="--go-on" in flags)
    from llm_jax.scaling.runner import run_grid  # late: Orbax, which --show and --dry-run don't need

    if group.task.size > 1:
        raise UserError(
            f"experiment={name}: is a grid, which one process runs, but {group.task.size} processes were "
            "started. "
            "Start one (srun --ntasks=1), or run a point by its own config.yaml on all of them."
        )
    group.join(grid.base.cluster)
    return run_grid(grid, group)


def show(grid: Grid) -> str:
    """The text of --show: the base as YAML, and each point as a comment."""
    lines = [
        f"# {point.number} {point.name}: "
        f"{point.error or ', '.join(f'{k}={v}' for k, v in point.overrides.items())}"
        for point in grid.points([])
    ]
    settings = [
        f"# grid.{f.name}={getattr(grid.settings, f.name)}" for f in dataclasses.fields(grid.settings)
    ]
    base = dataclasses.replace(grid.base, run_dir=experiments.folder_of(grid.base))
    return (
        experiments.to_yaml(base)
        + "\n".join(["# points, each with its overrides:", *lines, *settings])
        + "\n"
    )


def dry_run(grid: Grid, submission: Submission | None = None) -> int:
    """Prints every selected point with its size, tokens, FLOPs and hours; with a submission also the job
    script. Returns 0."""
    points = with_trunks(grid.points([])) if grid.trunks else grid.points([])
    chosen = grid.settings.selected_numbers(len(points))
    speed, assumed = assumed_speed(grid)
    n_column, c_column = accounting.columns(grid.convention)
    titles = (
        "",
        "point",
        "layers",
        "embed",
        "N",
        "all weights",
        "tokens",
        "tokens/N",
        "FLOPs",
        "exact",
        "steps",
        "batch",
        "rate",
        "hours",
    )
    made = table(*(title if title == "point" else f">{title}" for title in titles), keep=titles)
    for point in points:
        if point.number not in chosen:
            continue
        if point.experiment is None:
            made.add_row(str(point.number), f"{point.name} (invalid)")
            continue
        e = point.experiment
        counted = accounting.account(e.model, e.train.sequence_length, point.tokens)
        n = counted[n_column]
        made.add_row(
            str(point.number), point.name + (" (held out)" if point.held_out else ""), str(e.model.layers),
            str(e.model.embed), short(n),
            short(counted["parameters"]), short(point.tokens), f"{point.tokens / n:.3g}",
            short(counted[c_column]), short(point.cost),
            f"{e.train.steps:,}", str(e.train.batch_size), f"{e.optimizer.learning_rate:.3g}",
            hours(point.own_cost / speed if speed else None),
        )  # fmt: skip
    console = make_console()
    console.print(
        f"{grid.base.name}: {made.row_count} points, N and FLOPs by the convention {grid.convention}; "
        "exact: by layer, causal attention"
    )
    console.print(made)
    for point in points:
        if point.number in chosen and point.error:
            console.print(f"point {point.number} {point.name} is invalid: {point.error}")
    if line := warmup_line([point for point in points if point.number in chosen]):
        console.print(line)
    for name in grid.merged():
        console.print(f"{name}: trains the same configuration as another point, so the two are merged")
    total = sum(p.own_cost for p in points if p.number in chosen)
    time = hours(total / speed if speed else None)
    console.print(
        f"total: {short(total)} FLOPs{' (branches without their trunk)' * grid.trunks}, {time} hours of "
        f"{assumed}"
    )
    console.print(f"run folder: {experiments.folder_of(grid.base)}")
    if submission:
        from llm_jax.scaling.submit import array_script

        listed = Path(experiments.folder_of(grid.base)) / "slurm" / "runs_1.txt"
        # the others are submitted after these
        first = [
            p for p in points if p.number in chosen and p.experiment and not p.held_out and not p.inherited
        ]
        print("", array_script(grid, submission, listed, len(first)), sep="\n", end="")
    return 0


def assumed_speed(grid: Grid) -> tuple[float | None, str]:
    """FLOP/s that a run is assumed to reach, and in words what that rests on; None where the devices' peak
    isn't known."""
    settings, dtype = grid.settings, grid.base.model.compute_dtype
    if settings.hardware:
        known = hardware(settings.hardware)
        peak: float | None = known.peak_flops[dtype] * settings.devices
        devices = (
            f"{settings.devices} x {known.description} ({short(known.peak_flops[dtype])}FLOP/s each, "
            f"{dtype}, datasheet)"
        )
    else:
        mesh = make_mesh(grid.base.layout, grid.base.mesh)
        one = device_peak(mesh, dtype)
        peak, kind = one * mesh.size if one else None, mesh.devices.flat[0]
        devices = (
            f"this machine ({mesh.size} x {kind.device_kind}, "
            f"{f'{short(peak)}FLOP/s, ' if peak else 'peak not known: give grid.hardware='}"
        )
        devices += ("measured" if kind.platform == "cpu" else "datasheet") + ")" if peak else ")"
    return (
        peak * settings.mfu if peak else None
    ), f"{devices} at an assumed MFU of {settings.mfu:.0%} (grid.mfu=)"
