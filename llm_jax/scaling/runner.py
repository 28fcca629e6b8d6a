"""Runs the points of a grid: finished points are skipped, interrupted ones resume, failures are recorded and
don't stop the others.

Each point is an ordinary run in <grid's folder>/points/<name>-<hash of its configuration>. The table of runs
is written after every run, so that a grid that was killed has one; the same command resumes the grid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_jax import data
from llm_jax.core.console import Console
from llm_jax.core.errors import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped, UserError
from llm_jax.core.files import Busy, check_writable, locked, write_json
from llm_jax.core.format import clock, format_loss
from llm_jax.evaluate.in_training import task_scores
from llm_jax.experiment import Experiment, folder_of, to_yaml
from llm_jax.layout.compilation_cache import use_compilation_cache
from llm_jax.processes.group import Group
from llm_jax.run import run_folder
from llm_jax.run.prepare import RunServices, place_of, prepare_corpus
from llm_jax.scaling import collect
from llm_jax.scaling.finish import finish_grid, predict_held_out
from llm_jax.scaling.grid import Grid, Point, Row, warmup_line
from llm_jax.scaling.progress import GridProgress, PointConsole
from llm_jax.scaling.shared_prefix import copy_trunk_checkpoint, with_trunks
from llm_jax.scaling.vmapped_runs import group_by_shape, run_vmapped
from llm_jax.train.peak_flops import device_peak

EXIT_SOME_FAILED = 1
MAX_CORPORA = 4
"""Prepared corpora that are kept in memory: points differ in batch, sequence and seed, seldom in text."""


def run_grid(grid: Grid, group: Group) -> int:
    """Runs the selected points that have not ended before; returns the process's exit code."""
    use_compilation_cache()
    folder, console = Path(folder_of(grid.base)), Console()
    check_writable(folder)
    points = grid.points([])
    grid.settings.selected_numbers(len(points))
    with contextlib.closing(console):
        run_folder.make_folder(folder)
        # Parts of a grid (grid.points) may run side by side, as in an array of jobs; the whole grid takes the
        # folder for itself.
        with locked(folder, console.log, shared=bool(grid.settings.points)):
            console.log_to(folder / "log.txt")
            try:
                return Session(grid, folder, console, group).run()
            except Stopped as stopped:
                console.log(f"{stopped}; rerun this command to resume")
                return stopped.code


@dataclasses.dataclass
class Session:
    """One start of a grid's command: the points, the rows of those that ended, and the caches that runs
    share."""

    grid: Grid
    folder: Path
    console: Console
    group: Group
    ended: dict[str, Row] = dataclasses.field(default_factory=dict)
    """Rows of the points that have ended (finished, diverged or failed), by hash."""
    seen: set[str] = dataclasses.field(default_factory=set)
    """Hashes of the points whose folders have been read."""
    tried: frozenset[str] = frozenset()
    """Hashes of the points that aren't run again, however they ended."""
    progress: GridProgress | None = None

    def __post_init__(self) -> None:
        self.services = RunServices(corpus_cache(), functools.lru_cache(device_peak), task_scores)

    def run(self) -> int:
        """Runs the selected points until the design adds none, writes the table, fit and report; returns the
        exit code."""
        points = self.points()
        selected = self.selected(points)
        done = [p for p in selected if p.hash in self.ended]
        self.check_all([p.experiment for p in selected if p.experiment and p.hash not in self.ended])
        if line := warmup_line(selected):
            self.console.log(line)
        if done:
            self.console.log(f"{len(done)} of {len(selected)} points ended before: skipped")
        cost, cost_done = sum(p.own_cost for p in selected), sum(p.own_cost for p in done)
        self.progress = GridProgress(
            self.console, len(selected), len(done), cost, cost_done, self.grid.base.train.progress_every
        )
        gc.freeze()  # the collection after every run then skips all objects that exist by now
        try:
            while pending := [p for p in self.selected(points) if p.hash not in self.ended]:
                known = {p.hash for p in points}
                EXECUTORS[self.grid.settings.executor](self, self.runnable(points, pending))
                points = self.points()
                added = [p for p in self.selected(points) if p.hash not in known]
                self.progress.add_points(len(added), sum(p.own_cost for p in added))
                for point in added:
                    self.console.log(f"point {point.number} {point.name}: added by the design")
        finally:
            gc.unfreeze()
            self.progress.stop()
        self.write_table()
        return self.finish(points)

    def check_all(self, experiments: list[Experiment]) -> None:
        """Raises the UserError that every run would raise, before any folder is made; prepares a corpus that
        all runs share."""
        errors = []
        for experiment in experiments:
            try:
                place_of(experiment)
            except UserError as error:
                errors.append(error)
        if errors and len(errors) == len(experiments):
            raise errors[0]
        if experiments and len({repr((e.data, e.tokenizer)) for e in experiments}) == 1:
            prepare_corpus(experiments[0], self.services, self.group, self.console.log)

    def runnable(self, points: list[Point], pending: list[Point]) -> list[Point]:
        """The pending points that can run now: held-out points come last, after prediction.json is written
        from all others.

        Raises UserError where only held-out points were selected and others have not ended yet.
        """
        fitted = [point for point in pending if not point.held_out]
        if fitted:
            return fitted
        if missing := [
            point.number for point in points if not point.held_out and point.hash not in self.ended
        ]:
            raise UserError(
                f"grid.points={self.grid.settings.points}: point {pending[0].number} is held out and "
                "predicted from the other points. "
                f"Run these first: {', '.join(map(str, missing))}"
            )
        rows = [self.ended[p.hash] for p in points if p.hash in self.ended]
        predict_held_out(self.grid, self.folder, pending, rows, self.console.log)
        return pending

    def points(self) -> list[Point]:
        """The grid's points, given the runs that have ended in this start or an earlier one; trunks before
        their branches."""
        while True:
            points = self.grid.points(list(self.ended.values()))
            fresh = [point for point in points if point.hash not in self.seen]
            if not fresh:
                return with_trunks(points) if self.grid.trunks else points
            for point in fresh:
                self.seen.add(point.hash)
                row = self.row(point)
                again = row["status"] == "failed" or (
                    row["status"] == "diverged" and self.grid.settings.retry
                )
                again = (again and point.number in self.grid.settings.selected_numbers(len(points))) or row[
                    "status"
                ] == "unfinished"
                if point.hash in self.tried or not again:
                    self.ended[point.hash] = row

    def selected(self, points: list[Point]) -> list[Point]:
        """The points whose numbers the key grid.points selects."""
        numbers = self.grid.settings.selected_numbers(len(points))
        return [point for point in points if point.number in numbers]

    def row(self, point: Point) -> Row:
        """A point's row of the table of runs, read from its run folder where there is one."""
        if point.experiment and (Path(point.experiment.run_dir) / "config.yaml").exists():
            return collect.read_row(Path(point.experiment.run_dir), point.experiment)
        known = {
            "name": point.name,
            "hash": point.hash,
            "flops_budget": point.budget,
            "convention": point.convention,
        }
        known |= {"reason": point.error, "held_out": point.held_out}
        return {name: known.get(name) for name in collect.COLUMNS} | {
            "status": "failed" if point.error else "unfinished"
        }

    def write_table(self) -> None:
        """Writes runs.csv and runs.parquet: every point that has a run folder or failed, in the grid's
        order."""
        rows = [self.ended.get(p.hash) or self.row(p) for p in self.points()]
        table = collect.make_table([row for row in rows if row["run_dir"] or row["status"] == "failed"])
        for name in ("runs.csv", "runs.parquet"):
            collect.write_table(table, self.folder / name)

    def record_end(self, point: Point, row: Row, seconds: float) -> None:
        """Records that a point ended: its row, the table on disk, and a line on the console. seconds: wall
        time of its training."""
        assert self.progress
        self.ended[point.hash] = row
        self.write_table()
        text = f"point {point.number} {point.name}: {row['status']}"
        if row["status"] == "finished":
            text += f", held-out loss {format_loss(row['eval_loss'])}, {clock(seconds)}"
        elif row["reason"]:
            text += f": {row['reason']}"
        self.progress.point_ended(point.own_cost, text)

    def finish(self, points: list[Point]) -> int:
        """Prints how many points finished and why others did not, fits and reports a whole grid; returns the
        exit code."""
        selected = self.selected(points)
        bad = [p for p in selected if self.ended[p.hash]["status"] != "finished"]
        self.console.log(
            f"{len(selected) - len(bad)} of {len(selected)} points finished; table: "
            f"{self.folder / 'runs.csv'}"
        )
        for point in bad:
            row = self.ended[point.hash]
            self.console.log(f"point {point.number} {point.name}: {row['status']}: {row['reason']}")
        if not self.grid.settings.points:
            finish_grid(self.grid, self.folder, list(self.ended.values()), self.console.log)
        return EXIT_SOME_FAILED if bad else 0


def one_by_one(session: Session, pending: list[Point]) -> None:
    """The executor of grid.executor=one_by_one: runs points one after another in this process."""
    for point in pending:
        run_and_record(session, [point])


def vmap(session: Session, pending: list[Point]) -> None:
    """The executor of grid.executor=vmap: runs up to grid.at_once points of one shape in one program, group
    after group."""
    by_experiment = {id(point.experiment): point for point in pending if point.experiment}
    one_by_one(session, [point for point in pending if point.experiment is None])
    experiments = [point.experiment for point in by_experiment.values() if point.experiment]
    for group in group_by_shape(experiments, session.grid.settings.at_once):
        run_and_record(session, [by_experiment[id(experiment)] for experiment in group])


def run_and_record(session: Session, points: list[Point]) -> None:
    """Runs points, in one program if they are several, and records how they ended. Raises Stopped after a
    signal."""
    started = time.monotonic()
    rows = run_points(session, points)
    for point, row in zip(points, rows, strict=True):
        session.record_end(point, row, time.monotonic() - started)
    if session.group.received is not None:
        raise Stopped(session.group.received, session.group.reason)
    gc.collect()  # frees the arrays of these runs before the next run allocates its own


def run_points(session: Session, points: list[Point]) -> list[Row]:
    """Trains or resumes points in one program and returns their rows.

    An exception is recorded as the points' failure, but for Busy (another process has the folder); a signal
    is raised as Stopped.
    """
    experiments = [point.experiment for point in points if point.experiment]
    if len(experiments) < len(points):
        return [session.row(point) for point in points]
    for point in points:
        prepare_run_folder(point, session)
    per_step = sum(point.cost for point in points) / experiments[0].train.steps
    name = points[0].name + (f" and {len(points) - 1} more" if len(points) > 1 else "")

    def flops_done(step: int) -> float:
        return step * per_step - sum(point.inherited for point in points)

    def on_start(step: int) -> None:
        assert session.progress
        session.progress.resume_from(flops_done(step))

    def on_progress(step: int, text: str) -> None:
        assert session.progress
        session.progress.update(name, flops_done(step), text)

    session.group.disarm()
    failed = {}
    with contextlib.closing(PointConsole(on_start, on_progress)) as console:
        for experiment in experiments:
            console.log_to(Path(experiment.run_dir) / "log.txt")
        try:
            codes = run_vmapped(experiments, console, session.group, time.monotonic(), session.services)
            if max(codes) in (EXIT_STOPPED, EXIT_INTERRUPTED):
                raise Stopped(session.group.received or 0, session.group.reason)
        except Busy:
            raise  # another process has the folder: the points have not failed
        except Exception as error:
            reason = failure_reason(error)
            console.log(
                reason
                if isinstance(error, UserError)
                else "".join(traceback.format_exception(error)).rstrip()
            )
            failed = {"status": "failed", "reason": reason}
    for point, experiment in zip(points, experiments, strict=True):
        write_json(Path(experiment.run_dir) / collect.NOTE, point_note(point) | failed)
    return [collect.read_row(Path(experiment.run_dir)) for experiment in experiments]


def prepare_run_folder(point: Point, session: Session) -> None:
    """Makes a point's run folder with its configuration and point.json, and for a branch the checkpoint of
    its trunk."""
    assert point.experiment
    run_dir = Path(point.experiment.run_dir)
    run_folder.make_folder(run_dir)
    if not (run_dir / "config.yaml").exists():
        run_folder.write_config(run_dir, to_yaml(point.experiment))
    write_json(run_dir / collect.NOTE, point_note(point))
    if session.grid.trunks:
        copy_trunk_checkpoint(point, session.points(), session.console.log)


def point_note(point: Point) -> dict[str, Any]:
    """The content of point.json: the grid's facts about a run that its configuration doesn't hold."""
    return {
        "name": point.name,
        "flops_budget": point.budget,
        "convention": point.convention,
        "held_out": point.held_out,
    }


def failure_reason(error: Exception) -> str:
    """An exception as one line of at most 500 characters; names memory where that ran out."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, UserError):
        return line
    memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in line or "out of memory" in line.lower()
    return f"{'out of memory: ' if memory else ''}{type(error).__name__}: {line}"[:500]


def corpus_cache() -> Callable[..., data.Corpus]:
    """`data.prepare` with a cache of the last MAX_CORPORA corpora."""
    kept: dict[Any, data.Corpus] = {}

    def prepare(
        config: data.DataConfig,
        tokenizer: data.TokenizerConfig,
        *,
        log: Callable[[str], None],
        run_dir: Path | None,
        **shape: Any,
    ) -> data.Corpus:
        key = (
            repr(config),
            repr(tokenizer),
            repr(sorted((k, getattr(v, "fingerprint", v)) for k, v in shape.items())),
        )
        if key not in kept:
            while len(kept) >= MAX_CORPORA:
                del kept[next(iter(kept))]
            kept[key] = data.prepare(config, tokenizer, log=log, run_dir=run_dir, **shape)
        return kept[key]

    return prepare


EXECUTORS: dict[str, Callable[[Session, list[Point]], None]] = {"one_by_one": one_by_one, "vmap": vmap}
"""By grid.executor. Each runs the given points and calls `session.record_end` for each that ended."""
