"""A grid under Slurm: an array of jobs, a run each, and a job that waits for the array and resumes the grid.

The array's jobs are ordinary ones, each with its own run folder, restarts and summary. The waiting job runs
what could not run before: branches, which need their trunk's checkpoint; points that a design adds after
seeing results; and held-out runs, which are predicted from all others. It submits these as another array with
another waiting job, until nothing is left; then it fits and reports.
"""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

from llm_jax.core.console import Console
from llm_jax.core.errors import UserError
from llm_jax.core.files import check_writable, locked, read_json, write_json
from llm_jax.core.templates import render
from llm_jax.experiment import folder_of
from llm_jax.processes.group import Group
from llm_jax.run import run_folder
from llm_jax.scaling import collect
from llm_jax.scaling.grid import Grid, Point, warmup_line
from llm_jax.scaling.runner import Session, point_note, prepare_run_folder
from llm_jax.scaling.shared_prefix import group_by_trunk
from llm_jax.slurm import job
from llm_jax.slurm import submit as submitting
from llm_jax.slurm.submit import Submission


def submit_grid(grid: Grid, group: Group, submission: Submission, resuming: bool) -> int:
    """Submits the points that can run now, and the job that waits for them; with no points left, fits and
    reports. Returns an exit code.

    resuming: this is the waiting job, which runs no point a second time. Raises UserError where the grid is
    under way already.
    """
    if grid.settings.executor != "one_by_one":
        raise UserError(
            f"grid.executor={grid.settings.executor}: submit=slurm gives each run its own job. Leave one "
            "of the two keys out."
        )
    folder, console = Path(folder_of(grid.base)), Console()
    check_writable(folder)
    submitting.check_slurm()
    with contextlib.closing(console):
        run_folder.make_folder(job.job_folder(folder))
        with locked(folder, console.log):
            last = read_state(folder)
            if not resuming:
                check_not_submitted(folder, last)
            console.log_to(folder / "log.txt")
            session = Session(
                grid, folder, console, group, tried=frozenset(last["tried"]) if resuming else frozenset()
            )
            points = session.points()
            note_lost_runs(session, points)
            pending = [p for p in session.selected(points) if p.hash not in session.ended]
            if line := warmup_line(pending):
                console.log(line)
            if not pending:
                session.write_table()
                return session.finish(points)
            submit_points(session, submission, runnable_now(session, points, pending))
    return 0


def runnable_now(session: Session, points: list[Point], pending: list[Point]) -> list[Point]:
    """The pending points that can run now: no branch before its trunk has run, and no held-out run before all
    others."""
    waiting = set()
    if session.grid.trunks:
        for trunk, *branches in group_by_trunk(points):
            if trunk.hash not in session.ended:
                waiting |= {branch.hash for branch in branches}
    return [
        point
        for point in session.runnable(points, pending)
        if point.hash not in waiting or point.hash in session.tried
    ]


def note_lost_runs(session: Session, points: list[Point]) -> None:
    """Writes the reason of runs that were submitted but left no summary (cancelled or lost) into point.json
    and their rows."""
    for point in points:
        row = session.ended.get(point.hash)
        if row and row["status"] == "unfinished" and point.experiment:
            reason = "cancelled" if job.cancel_mark(Path(point.experiment.run_dir)).exists() else job.LOST_JOB
            write_json(Path(point.experiment.run_dir) / collect.NOTE, point_note(point) | {"reason": reason})
            row["reason"] = reason


def submit_points(session: Session, submission: Submission, points: list[Point]) -> None:
    """Submits an array with the runs of these points, and the job that waits for it. Raises UserError if none
    of them can run."""
    folder, log = session.folder, session.console.log
    runs = []
    for point in points:
        if point.experiment is None:  # an invalid point is in the table with its error
            continue
        submitting.check_fits(point.experiment, submission.settings)
        prepare_run_folder(point, session)
        submitting.write_job_folder(point.experiment)
        runs.append(Path(point.experiment.run_dir))
    if not runs:
        raise UserError(f"grid {session.grid.base.name}: {points[0].error}")
    slurm, last = job.job_folder(folder), read_state(folder)
    number = last["round"] + 1
    state = {
        "round": number,
        "tried": [*(session.tried & set(session.ended)), *(point.hash for point in points)],
    }
    write_json(
        slurm / "grid.json", state
    )  # before sbatch: a kill in between must not submit the points twice
    listed, script = slurm / f"runs_{number}.txt", slurm / f"array_{number}.sh"
    listed.write_text("".join(f"{run}\n" for run in runs))
    script.write_text(array_script(session.grid, submission, listed, len(runs)))
    array = submitting.sbatch(script)
    try:
        (slurm / "go_on.sh").write_text(resume_script(session.grid, submission, slurm))
        waiting = submitting.sbatch(slurm / "go_on.sh", f"--dependency=afterany:{array}")
    except UserError:
        job.slurm("scancel", array)
        raise
    for i, run in enumerate(runs):
        submitting.record_number(run, f"{array}_{i}")
    write_json(slurm / "grid.json", state | {"array": array, "job": waiting})
    log(
        f"submitted array {array}: {len(runs)} runs, at most {submission.settings.at_once} at once, each "
        f"on {submission.resources()}"
    )
    log(f"job {waiting} waits for them and resumes the grid; its log: {slurm / 'go_on.log'}")
    if session.tried:  # the waiting job: nobody reads the lines below
        return
    log(f"site settings: {submission.site_file or 'none'}")
    log(f"scripts: {script}, {slurm / 'go_on.sh'}")
    log(submitting.next_steps(folder, folder / "log.txt"))


def array_script(grid: Grid, submission: Submission, listed: Path, count: int) -> str:
    """The sbatch script of the array's jobs; listed: the file with their run folders, a line each."""
    options = submission.options(grid.base.name, (listed.parent / "array.log").absolute())
    return submission.script([*options, f"--array=0-{count - 1}%{submission.settings.at_once}"], runs=listed)


def resume_script(grid: Grid, submission: Submission, slurm: Path) -> str:
    """The sbatch script of the waiting job, which trains nothing and needs a single processor."""
    return render(
        "llm_jax.scaling",
        "go_on.sh.jinja",
        options=submission.light_options(f"{grid.base.name}-go-on", (slurm / "go_on.log").absolute()),
        **submission.template_values(),
        arguments=shlex.join(submission.command_with_site()),
    )


def read_state(folder: Path) -> dict[str, Any]:
    """The last submission of a grid: its round, the hashes of the points submitted so far, and the waiting
    job's id."""
    path = job.job_folder(folder) / "grid.json"
    return {"round": 0, "tried": [], "job": "", **read_json(path)}


def check_not_submitted(folder: Path, last: dict[str, Any]) -> None:
    """Raises UserError where the waiting job of the last submission is still queued or running."""
    if last["job"] in job.queued_jobs([last["job"]]):
        where = shlex.quote(str(folder))
        raise UserError(
            f"run_dir={folder}: its job {last['job']} is still queued or running. Wait for it, or cancel "
            f"it: python -m llm_jax.slurm.cancel {where}"
        )
