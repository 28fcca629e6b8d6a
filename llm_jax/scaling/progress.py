"""Progress of a grid on the console: a line for each run that ended, and one progress line for the whole
grid."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.progress import BarColumn, Progress, TextColumn

from llm_jax.core.console import Console
from llm_jax.core.format import clock, short


class PointConsole(Console):
    """The console of a run in a grid: it writes the run's log.txt only, and reports its progress to the
    grid."""

    def __init__(self, on_start: Callable[[int], None], on_progress: Callable[[int, str], None]):
        """on_start(step): called once, with the step from which the run starts or resumes. on_progress(step,
        text): called often."""
        super().__init__()
        self.on_start, self.on_progress = on_start, on_progress

    def show(self, text: str) -> None:
        """Prints nothing: the line is in log.txt."""

    def start(self, total: int, done: int) -> None:
        """Reports the start of training after `done` steps."""
        self.last = time.monotonic()
        self.on_start(done)
        self.on_progress(done, "compiling")

    def progress(self, step: int, total: int, text: str, every: float) -> None:
        """Reports a step to the grid; logs a line every `every` seconds."""
        super().progress(step, total, text, every)
        self.on_progress(step, f"step {step}/{total} {text.split('  ')[0]}")

    def stop(self) -> None:
        """Does nothing: a run in a grid has no bar of its own."""


class GridProgress:
    """Progress of a whole grid, measured in FLOPs because points differ in cost by orders of magnitude."""

    def __init__(
        self, console: Console, points: int, done: int, flops: float, flops_done: float, every: float = 10.0
    ):
        """points, flops: of the selected points; done, flops_done: of those that ended before. every: seconds
        between two lines."""
        self.console, self.every = console, every
        self.points, self.done, self.flops, self.flops_before = points, done, flops, flops_done
        self.flops_done, self.flops_of_point = flops_done, 0.0
        self.started = self.last = time.monotonic()
        self.bar: Progress | None = None
        if console.rich.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.fields[text]}"))
            self.bar = console.bar = Progress(*columns, console=console.rich, transient=True)
            self.task = self.bar.add_task("", total=1.0, text="")
            self.bar.start()

    def add_points(self, points: int, flops: float) -> None:
        """Counts points that the design added, and their FLOPs."""
        self.points += points
        self.flops += flops

    def resume_from(self, flops: float) -> None:
        """Excludes FLOPs that a resumed point did in earlier starts from the speed behind the ETA."""
        self.flops_before += flops

    def update(self, name: str, flops: float, text: str) -> None:
        """Shows the progress of the running point; flops: done of it so far, in earlier starts too."""
        self.flops_of_point = flops
        if self.bar:
            self.bar.update(self.task, completed=self.part(), text=f"{self.line()}  {name}: {text}")
        elif time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self.console.log(f"{self.line()}  {name}: {text}")

    def point_ended(self, flops: float, text: str) -> None:
        """Counts a point as ended and prints `text` behind the progress; flops: the point's total."""
        self.done, self.flops_done, self.flops_of_point, self.last = (
            self.done + 1,
            self.flops_done + flops,
            0.0,
            time.monotonic(),
        )
        self.console.log(f"{self.line()}  {text}")

    def part(self) -> float:
        """The part of the grid's FLOPs that is done, 0 to 1."""
        return (self.flops_done + self.flops_of_point) / self.flops if self.flops else 1.0

    def line(self) -> str:
        """The progress line: "points 7/20  1.2T of 5T FLOPs (24 %)  ETA 3:20"."""
        done, elapsed = self.flops_done + self.flops_of_point, time.monotonic() - self.started
        fresh = done - self.flops_before
        eta = (
            f"  ETA {clock((self.flops - done) * elapsed / fresh)}" if fresh > 0 and done < self.flops else ""
        )
        return (
            f"points {self.done}/{self.points}  {short(done)} of {short(self.flops)} FLOPs "
            f"({self.part():.0%}){eta}"
        )

    def stop(self) -> None:
        """Removes the bar."""
        self.console.stop()
        self.bar = None
