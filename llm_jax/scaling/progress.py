"""What a person sees of a grid: a line for each run that came to an end, and one line of progress for the whole."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.progress import BarColumn, Progress, TextColumn

from llm_jax.core.console import Console, duration
from llm_jax.core.format import short


class PointConsole(Console):
    """A run's own console in a grid: it writes log.txt, and tells the grid how far it is."""

    def __init__(self, began: Callable[[int], None], told: Callable[[int, str], None]):
        super().__init__()
        self.began, self.told = began, told

    def show(self, text: str) -> None:
        """Nothing: it is in log.txt."""

    def start(self, total: int, done: int) -> None:
        """Begins at a step."""
        self.last = time.monotonic()
        self.began(done)
        self.told(done, "compiling")

    def progress(self, step: int, total: int, text: str, every: float) -> None:
        """Tells the grid, and log.txt at times."""
        super().progress(step, total, text, every)
        self.told(step, f"step {step}/{total} {text.split('  ')[0]}")

    def stop(self) -> None:
        """There is no bar."""


class GridProgress:
    """The whole grid's progress, counted in FLOPs: points differ too much to be counted."""

    def __init__(self, console: Console, points: int, done: int, flops: float, flops_done: float, every: float = 10.0):
        self.console, self.every = console, every
        self.points, self.done, self.flops, self.before = points, done, flops, flops_done
        self.flops_done, self.of_point = flops_done, 0.0
        self.started = self.last = time.monotonic()
        self.bar: Progress | None = None
        if console.rich.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.fields[text]}"))
            self.bar = console.bar = Progress(*columns, console=console.rich, transient=True)
            self.task = self.bar.add_task("", total=1.0, text="")
            self.bar.start()

    def more(self, points: int, flops: float) -> None:
        """The design added points."""
        self.points += points
        self.flops += flops

    def began(self, flops: float) -> None:
        """A point goes on with so many FLOPs done before: they say nothing of how fast this start is."""
        self.before += flops

    def running(self, name: str, flops: float, text: str) -> None:
        """How far the point is that runs now: its own FLOPs, those of earlier starts among them."""
        self.of_point = flops
        if self.bar:
            self.bar.update(self.task, completed=self.part(), text=f"{self.line()}  {name}: {text}")
        elif time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self.console.log(f"{self.line()}  {name}: {text}")

    def ended(self, flops: float, text: str) -> None:
        """A point came to an end, of so many FLOPs in all; it is said in a line."""
        self.done, self.flops_done, self.of_point, self.last = self.done + 1, self.flops_done + flops, 0.0, time.monotonic()
        self.console.log(f"{self.line()}  {text}")

    def part(self) -> float:
        """How much of all FLOPs is done."""
        return (self.flops_done + self.of_point) / self.flops if self.flops else 1.0

    def line(self) -> str:
        """points 7/20  1.2T of 5T FLOPs (24 %)  ETA 3:20"""
        done, elapsed = self.flops_done + self.of_point, time.monotonic() - self.started
        fresh = done - self.before
        eta = f"  ETA {duration((self.flops - done) * elapsed / fresh)}" if fresh > 0 and done < self.flops else ""
        return f"points {self.done}/{self.points}  {short(done)} of {short(self.flops)} FLOPs ({self.part():.0%}){eta}"

    def stop(self) -> None:
        """Ends the bar."""
        self.console.stop()
        self.bar = None
