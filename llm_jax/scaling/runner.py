"""Runs a grid: what is done is skipped, what is half-done goes on, what fails is written down, and the rest goes on.

Each point is an ordinary run in <grid's folder>/points/<name>-<hash of its configuration>. After every one the table of runs is
written, so that a grid killed at any moment has one; and the same command goes on from there.
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
from llm_jax.core.console import Console, duration
from llm_jax.core.errors import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped, UserError
from llm_jax.core.files import Busy, check_writable, locked, write_json
from llm_jax.experiment import Experiment, to_yaml
from llm_jax.processes.group import Group
from llm_jax.run import run, run_folder
from llm_jax.run.header import four
from llm_jax.scaling import collect
from llm_jax.scaling.finish import conclude, predict
from llm_jax.scaling.grid import Grid, Point, Row, folder_of
from llm_jax.scaling.progress import GridProgress, PointConsole
from llm_jax.scaling.shared_prefix import branch_off, with_trunks
from llm_jax.scaling.vmapped_runs import groups, run_together
from llm_jax.train.peak_flops import device_peak

EXIT_SOME_FAILED = 1
CORPORA = 4
"""Corpora that are kept at once: points differ in batch, sequence and seed, seldom in text."""


def run_grid(grid: Grid, group: Group) -> int:
    """Runs all points that were asked for and have not come to an end; returns the process's exit code."""
    run.use_compilation_cache(grid.base)
    folder, console = Path(folder_of(grid.base)), Console()
    check_writable(folder)
    points = grid.points([])
    grid.settings.chosen(len(points))
    with contextlib.closing(console):
        run_folder.make_folder(folder)
        # A part of a grid may run beside other parts, as in an array of jobs; the whole may not.
        with locked(folder, console.log, shared=bool(grid.settings.points)):
            console.log_to(folder / "log.txt")
            try:
                return Session(grid, folder, console, group).run()
            except Stopped as stopped:
                console.log(f"{stopped}; the same command goes on from here")
                return stopped.code


@dataclasses.dataclass
class Session:
    """One start of a grid's command."""

    grid: Grid
    folder: Path
    console: Console
    group: Group
    ended: dict[str, Row] = dataclasses.field(default_factory=dict)
    """Rows of the points that have come to an end, by hash."""
    seen: set[str] = dataclasses.field(default_factory=set)
    """Points whose folders have been looked into."""
    tried: frozenset[str] = frozenset()
    """Points that aren't tried again, whatever they came to, by hash."""
    progress: GridProgress | None = None

    def __post_init__(self) -> None:
        self.shared = run.Shared(prepare=kept_corpora(), peak=functools.lru_cache(device_peak))

    def run(self) -> int:
        """All that is to do, and the last word."""
        points = self.points()
        chosen = self.chosen(points)
        done = [p for p in chosen if p.hash in self.ended]
        self.check_all([p.experiment for p in chosen if p.experiment and p.hash not in self.ended])
        if done:
            self.console.log(f"{len(done)} of {len(chosen)} points have come to an end before: they are not run again")
        cost = sum(p.own_cost for p in chosen)
        self.progress = GridProgress(self.console, len(chosen), len(done), cost, sum(p.own_cost for p in done), self.grid.base.train.progress_every)
        gc.freeze()  # what is there by now needn't be looked through after every run
        try:
            while pending := [p for p in self.chosen(points) if p.hash not in self.ended]:
                known = {p.hash for p in points}
                EXECUTORS[self.grid.settings.executor](self, self.ready(points, pending))
                points = self.points()
                added = [p for p in self.chosen(points) if p.hash not in known]
                self.progress.more(len(added), sum(p.own_cost for p in added))
                for point in added:
                    self.console.log(f"point {point.number} {point.name}: added by the design")
        finally:
            gc.unfreeze()
            self.progress.stop()
        self.write_table()
        return self.last_word(points)

    def check_all(self, experiments: list[Experiment]) -> None:
        """Raises UserError for what is wrong with all runs alike: it needs no folder full of failed ones."""
        errors = []
        for experiment in experiments:
            try:
                run.place_of(experiment)
            except UserError as error:
                errors.append(error)
        if errors and len(errors) == len(experiments):
            raise errors[0]
        if experiments and len({repr((e.data, e.tokenizer)) for e in experiments}) == 1:
            run.prepare_corpus(experiments[0], self.shared, self.group, self.console.log)

    def ready(self, points: list[Point], pending: list[Point]) -> list[Point]:
        """Those that can be run now: what is held out comes after all others, and is foretold from them."""
        first = [point for point in pending if not point.held_out]
        if first:
            return first
        if others := [point.number for point in points if not point.held_out and point.hash not in self.ended]:
            raise UserError(
                f"grid.points={self.grid.settings.points}: point {pending[0].number} is foretold from the others; "
                f"run these first: {', '.join(map(str, others))}"
            )
        predict(self.grid, self.folder, pending, [self.ended[p.hash] for p in points if p.hash in self.ended], self.console.log)
        return pending

    def points(self) -> list[Point]:
        """The grid's points, given what has come to an end, before or in this session; trunks before their branches."""
        while True:
            points = self.grid.points(list(self.ended.values()))
            fresh = [point for point in points if point.hash not in self.seen]
            if not fresh:
                return with_trunks(points) if self.grid.trunks else points
            for point in fresh:
                self.seen.add(point.hash)
                row = self.row(point)
                again = row["status"] == "failed" or (row["status"] == "diverged" and self.grid.settings.retry)
                again = (again and point.number in self.grid.settings.chosen(len(points))) or row["status"] == "unfinished"
                if point.hash in self.tried or not again:
                    self.ended[point.hash] = row

    def chosen(self, points: list[Point]) -> list[Point]:
        """Those that the command line asks for."""
        numbers = self.grid.settings.chosen(len(points))
        return [point for point in points if point.number in numbers]

    def row(self, point: Point) -> Row:
        """What is known of a point, whether it has a run folder or not."""
        if point.experiment and (Path(point.experiment.run_dir) / "config.yaml").exists():
            return collect.row_of(Path(point.experiment.run_dir), point.experiment)
        known = {"name": point.name, "hash": point.hash, "flops_budget": point.budget, "convention": point.convention}
        known |= {"reason": point.error, "held_out": point.held_out}
        return {name: known.get(name) for name in collect.COLUMNS} | {"status": "failed" if point.error else "unfinished"}

    def write_table(self) -> None:
        """runs.csv and runs.parquet: every point that has begun, in the grid's order."""
        rows = [self.ended.get(p.hash) or self.row(p) for p in self.points()]
        table = collect.table_of([row for row in rows if row["run_dir"] or row["status"] == "failed"])
        for name in ("runs.csv", "runs.parquet"):
            collect.write_table(table, self.folder / name)

    def end(self, point: Point, row: Row, seconds: float) -> None:
        """A point has come to an end: it is written down and said."""
        assert self.progress
        self.ended[point.hash] = row
        self.write_table()
        text = f"point {point.number} {point.name}: {row['status']}"
        if row["status"] == "finished":
            text += f", held-out loss {four(row['eval_loss'])}, {duration(seconds)}"
        elif row["reason"]:
            text += f": {row['reason']}"
        self.progress.ended(point.own_cost, text)

    def last_word(self, points: list[Point]) -> int:
        """How it went, and the exit code."""
        chosen = self.chosen(points)
        bad = [p for p in chosen if self.ended[p.hash]["status"] != "finished"]
        self.console.log(f"{len(chosen) - len(bad)} of {len(chosen)} points finished; table: {self.folder / 'runs.csv'}")
        for point in bad:
            row = self.ended[point.hash]
            self.console.log(f"point {point.number} {point.name}: {row['status']}: {row['reason']}")
        if not self.grid.settings.points:
            conclude(self.grid, self.folder, list(self.ended.values()), self.console.log)
        return EXIT_SOME_FAILED if bad else 0


def one_by_one(session: Session, pending: list[Point]) -> None:
    """Runs points one after another in this process."""
    for point in pending:
        run_and_end(session, [point])


def together(session: Session, pending: list[Point]) -> None:
    """Runs points of the same shape at once, in one program; others, and those that have no like, one after another."""
    can_run = {id(point.experiment): point for point in pending if point.experiment}
    one_by_one(session, [point for point in pending if point.experiment is None])
    experiments = [point.experiment for point in can_run.values() if point.experiment]
    for group in groups(experiments, session.grid.settings.at_once):
        run_and_end(session, [can_run[id(experiment)] for experiment in group])


def run_and_end(session: Session, points: list[Point]) -> None:
    """Runs points, at once if they are several, and writes down how they ended."""
    started = time.monotonic()
    rows = run_points(session, points)
    for point, row in zip(points, rows, strict=True):
        session.end(point, row, time.monotonic() - started)
    if session.group.received is not None:
        raise Stopped(session.group.received, session.group.reason)
    gc.collect()  # arrays of the runs, before the next one makes its own


def run_points(session: Session, points: list[Point]) -> list[Row]:
    """Trains points, one or several at once, or goes on with them. Whatever is raised is their failure; a signal is raised as Stopped."""
    experiments = [point.experiment for point in points if point.experiment]
    if len(experiments) < len(points):
        return [session.row(point) for point in points]
    for point in points:
        begin(point, session)
    per_step = sum(point.cost for point in points) / experiments[0].train.steps
    name = points[0].name + (f" and {len(points) - 1} more" if len(points) > 1 else "")

    def done(step: int) -> float:
        return step * per_step - sum(point.inherited for point in points)

    def began(step: int) -> None:
        assert session.progress
        session.progress.began(done(step))

    def told(step: int, text: str) -> None:
        assert session.progress
        session.progress.running(name, done(step), text)

    session.group.release()
    failed = {}
    with contextlib.closing(PointConsole(began, told)) as console:
        for experiment in experiments:
            console.log_to(Path(experiment.run_dir) / "log.txt")
        try:
            codes = run_together(experiments, console, session.group, time.monotonic(), session.shared)
            if max(codes) in (EXIT_STOPPED, EXIT_INTERRUPTED):
                raise Stopped(session.group.received or 0, session.group.reason)
        except Busy:
            raise  # not the points' fault: somebody else is at it
        except Exception as error:
            reason = failure(error)
            console.log(reason if isinstance(error, UserError) else "".join(traceback.format_exception(error)).rstrip())
            failed = {"status": "failed", "reason": reason}
    for point, experiment in zip(points, experiments, strict=True):
        write_json(Path(experiment.run_dir) / collect.NOTE, note_of(point) | failed)
    return [collect.row_of(Path(experiment.run_dir)) for experiment in experiments]


def begin(point: Point, session: Session) -> None:
    """The point's run folder, with its configuration and the grid's note, and the trunk's checkpoint where it branches off."""
    assert point.experiment
    run_dir = Path(point.experiment.run_dir)
    run_folder.make_folder(run_dir)
    if not (run_dir / "config.yaml").exists():
        run_folder.write_config(run_dir, to_yaml(point.experiment))
    write_json(run_dir / collect.NOTE, note_of(point))
    if session.grid.trunks:
        branch_off(point, session.points(), session.console.log)


def note_of(point: Point) -> dict[str, Any]:
    """What goes with a run that its configuration doesn't say."""
    return {"name": point.name, "flops_budget": point.budget, "convention": point.convention, "held_out": point.held_out}


def failure(error: Exception) -> str:
    """An exception in one line."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, UserError):
        return line
    memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in line or "out of memory" in line.lower()
    return f"{'out of memory: ' if memory else ''}{type(error).__name__}: {line}"[:500]


def kept_corpora() -> Callable[..., data.Corpus]:
    """`data.prepare` that keeps the last corpora."""
    kept: dict[Any, data.Corpus] = {}

    def prepare(
        config: data.DataConfig, tokenizer: data.TokenizerConfig, *, log: Callable[[str], None], run_dir: Path | None, **shape: Any
    ) -> data.Corpus:
        key = (repr(config), repr(tokenizer), tuple(sorted(shape.items())))
        if key not in kept:
            while len(kept) >= CORPORA:
                del kept[next(iter(kept))]
            kept[key] = data.prepare(config, tokenizer, log=log, run_dir=run_dir, **shape)
        return kept[key]

    return prepare


EXECUTORS: dict[str, Callable[[Session, list[Point]], None]] = {"one_by_one": one_by_one, "together": together}
"""Each runs the points that it is given and calls `session.end` for each that has come to an end."""
