"""What a person sees of a run: lines, also kept in log.txt, and a live progress bar on a terminal."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn

from llm_jax.core.command import nobody_reads

UNREAD = "nobody reads any more what is printed; the run goes on, and says it here alone"


class Terminal(RichConsole):
    """stdout. Rich would end the process where the pipe into another (`head`, `tee`) breaks; a run has its log, and goes on."""

    unread = False

    def on_broken_pipe(self) -> None:
        if not nobody_reads():
            raise  # what rich caught
        self.unread = True


class Console:
    """Prints lines and one line of progress. Only the first of several processes has a voice."""

    def __init__(self, is_main_process: bool = True):
        self.rich = Terminal(highlight=False, soft_wrap=True, markup=False)
        self.is_main_process, self.last = is_main_process, 0.0
        self.files: dict[Path, TextIO] = {}
        self.bar: Progress | None = None
        self.waiting: list[str] = []  # said before there was a run folder

    def log_to(self, path: Path) -> None:
        """From now on, and for what was said before any log was there, also append to this file, and to those named before."""
        if self.is_main_process and path not in self.files:
            self.files[path] = path.open("a")
            self.write(self.files[path], self.waiting)

    def log(self, text: str = "") -> None:
        """A line (or several)."""
        if not self.is_main_process:
            return
        before = self.rich.unread
        self.show(text)
        if self.rich.unread and not before:
            text += f"\n{UNREAD}"
        stamp = datetime.now().isoformat(timespec="seconds")
        lines = [f"{stamp} {line}" for line in text.split("\n")]
        if not self.files:
            self.waiting += lines
        for file in self.files.values():
            self.write(file, lines)

    @staticmethod
    def write(file: TextIO, lines: list[str]) -> None:
        """Lines that are in the file when this returns."""
        file.writelines(line + "\n" for line in lines)
        file.flush()

    def show(self, text: str) -> None:
        """Puts a line before a person's eyes."""
        (self.bar.console if self.bar else self.rich).print(text)

    def start(self, total: int, done: int) -> None:
        """Begins the progress bar, on a terminal."""
        if self.is_main_process and self.rich.is_terminal:
            columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(bar_width=20), TextColumn("{task.fields[text]}"))
            self.bar = Progress(*columns, console=self.rich, transient=True)
            self.task = self.bar.add_task("", total=total, completed=done, text="compiling")
            self.bar.start()
        self.last = time.monotonic()

    def progress(self, step: int, total: int, text: str, every: float) -> None:
        """Moves the bar; where there is none, says a line each `every` seconds and at the end."""
        if self.bar:
            self.bar.update(self.task, completed=step, text=text)
        elif time.monotonic() - self.last >= every or step == total:
            self.last = time.monotonic()
            self.log(f"step {step:>{len(str(total))}}/{total}  {text}")

    def stop(self) -> None:
        """Ends the progress bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        sys.stdout.flush()

    def close(self) -> None:
        """Ends the bar and the log files."""
        self.stop()
        while self.files:
            self.files.popitem()[1].close()
