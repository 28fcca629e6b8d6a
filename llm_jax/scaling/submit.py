"""A grid under Slurm: an array of jobs, a run each, and a job that waits for them and goes on with the grid.

The array's jobs are ordinary ones, each with its own run folder, restarts and last word. What can't run yet is left to the job that waits:
branches, which need their trunk's checkpoint; points that a design adds when it has seen results; and held-out runs, which are foretold from
all others. It submits them as another array, and another job that waits, until nothing is left; then it fits and reports.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

from llm_jax.core.console import Console
from llm_jax.core.errors import UserError
from llm_jax.core.files import check_writable, locked, write_json
from llm_jax.core.templates import render
from llm_jax.processes.group import Group
from llm_jax.run import run_folder
from llm_jax.scaling import collect
from llm_jax.scaling.grid import Grid, Point, folder_of
from llm_jax.scaling.runner import Session, point_note, prepare_run_folder
from llm_jax.scaling.shared_prefix import group_by_trunk
from llm_jax.slurm import job
from llm_jax.slurm import submit as submitting
from llm_jax.slurm.submit import Submission


def submit_grid(grid: Grid, group: Group, submission: Submission, going_on: bool) -> int:
    """Submits what of a grid can run now, and the job that goes on with it; where nothing is left, the last word.

    going_on: this is the waiting job, which tries nothing a second time.
    """
    if grid.settings.executor != "one_by_one":
        raise UserError(f"grid.executor={grid.settings.executor}: submit=slurm gives each run a job of its own; leave one of them out")
    folder, console = Path(folder_of(grid.base)), Console()
    check_writable(folder)
    submitting.check_slurm()
    with contextlib.closing(console):
        run_folder.make_folder(job.job_folder(folder))
        with locked(folder, console.log):
            last = read_state(folder)
            if not going_on:
                check_not_submitted(folder, last)
            console.log_to(folder / "log.txt")
            session = Session(grid, folder, console, group, tried=frozenset(last["tried"]) if going_on else frozenset())
            points = session.points()
            tell_lost(session, points)
            pending = [p for p in session.selected(points) if p.hash not in session.ended]
            if not pending:
                session.write_table()
                return session.finish(points)
            submit_points(session, submission, ready(session, points, pending))
    return 0


def ready(session: Session, points: list[Point], pending: list[Point]) -> list[Point]:
    """Those that can run now: no branch whose trunk is still to run, and no held-out run before all others."""
    waiting = set()
    if session.grid.trunks:
        for trunk, *branches in group_by_trunk(points):
            if trunk.hash not in session.ended:
                waiting |= {branch.hash for branch in branches}
    return [point for point in session.runnable(points, pending) if point.hash not in waiting or point.hash in session.tried]


def tell_lost(session: Session, points: list[Point]) -> None:
    """Says of runs that were tried and left no last word that this is so: in the table they are unfinished."""
    for point in points:
        row = session.ended.get(point.hash)
        if row and row["status"] == "unfinished" and point.experiment:
            reason = "cancelled" if job.cancel_mark(Path(point.experiment.run_dir)).exists() else job.LOST_JOB
            write_json(Path(point.experiment.run_dir) / collect.NOTE, point_note(point) | {"reason": reason})
            row["reason"] = reason


def submit_points(session: Session, submission: Submission, points: list[Point]) -> None:
    """Submits an array of these points' runs, and the job that waits for it."""
    folder, log = session.folder, session.console.log
    runs = []
    for point in points:
        if point.experiment is None:  # what can't be is in the table as it is
            continue
        submitting.check_fits(point.experiment, submission.settings)
        prepare_run_folder(point, session)
        submitting.write_job_folder(point.experiment)
        runs.append(Path(point.experiment.run_dir))
    if not runs:
        raise UserError(f"grid {session.grid.base.name}: {points[0].error}")
    slurm, last = job.job_folder(folder), read_state(folder)
    number = last["round"] + 1
    state = {"round": number, "tried": [*(session.tried & set(session.ended)), *(point.hash for point in points)]}
    write_json(slurm / "grid.json", state)  # first: what is submitted and then forgotten would be submitted twice
    listed, script = slurm / f"runs_{number}.txt", slurm / f"array_{number}.sh"
    listed.write_text("".join(f"{run}\n" for run in runs))
    script.write_text(array_script(session.grid, submission, listed, len(runs)))
    array = submitting.sbatch(script)
    try:
        (slurm / "go_on.sh").write_text(go_on_script(session.grid, submission, slurm))
        waiting = submitting.sbatch(slurm / "go_on.sh", f"--dependency=afterany:{array}")
    except UserError:
        job.slurm("scancel", array)
        raise
    for i, run in enumerate(runs):
        submitting.record_number(run, f"{array}_{i}")
    write_json(slurm / "grid.json", state | {"array": array, "job": waiting})
    log(f"submitted array {array}: {len(runs)} runs, at most {submission.settings.at_once} at once, each on {submission.resources()}")
    log(f"job {waiting} waits for them, and goes on with the grid; its log: {slurm / 'go_on.log'}")
    if session.tried:  # nobody is there to read more
        return
    log(f"site settings: {submission.site_file or 'none'}")
    log(f"scripts: {script}, {slurm / 'go_on.sh'}")
    log(submitting.next_steps(folder, folder / "log.txt"))


def array_script(grid: Grid, submission: Submission, listed: Path, count: int) -> str:
    """The script of the array's jobs."""
    options = submission.options(grid.base.name, (listed.parent / "array.log").absolute())
    return submission.script([*options, f"--array=0-{count - 1}%{submission.settings.at_once}"], runs=listed)


def go_on_script(grid: Grid, submission: Submission, slurm: Path) -> str:
    """The script of the job that waits. It trains nothing, so it needs a single processor."""
    return render(
        "llm_jax.scaling",
        "go_on.sh.jinja",
        options=submission.light_options(f"{grid.base.name}-go-on", (slurm / "go_on.log").absolute()),
        **submission.template_values(),
        arguments=shlex.join(submission.command_with_site()),
    )


def read_state(folder: Path) -> dict[str, Any]:
    """What was submitted of a grid last."""
    path = job.job_folder(folder) / "grid.json"
    return {"round": 0, "tried": [], "job": "", **(json.loads(path.read_text()) if path.exists() else {})}


def check_not_submitted(folder: Path, last: dict[str, Any]) -> None:
    """Raises UserError where the grid is under way."""
    if last["job"] in job.queued_jobs([last["job"]]):
        where = shlex.quote(str(folder))
        raise UserError(f"run_dir={folder}: its job {last['job']} is under way; wait for it, or end it: python -m llm_jax.slurm.cancel {where}")
