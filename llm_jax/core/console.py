"""The console of a run: lines, which log.txt keeps too, and a live progress bar on a terminal."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn

from llm_jax.core.command import nobody_reads

UNREAD = "stdout was closed; training continues and logs here only"


class Terminal(RichConsole):
    """stdout. A broken pipe (into `head` or `tee`), at which rich ends the process, sets `unread` instead:
    the run continues with its log."""

    unread = False

    def on_broken_pipe(self) -> None:
        if not nobody_reads():
            raise  # what rich caught
        self.unread = True


class Console:
    """Prints lines and a progress bar, and appends the lines to log files. Only the main process of a run
    prints."""

    def __init__(self, is_main_process: bool = True):
        self.rich = Terminal(highlight=False, soft_wrap=True, markup=False)
        self.is_main_process, self.last = is_main_process, 0.0
        self.files: dict[Path, TextIO] = {}
        self.bar: Progress | None = None
        self.waiting: list[str] = []  # logged before there was a log file

    def log_to(self, path: Path) -> None:
        """Appends all further lines to this file too, after the lines that were logged before there was any
        file."""
        if self.is_main_process and path not in self.files:
            self.files[path] = path.open("a")
            self.write(self.files[path], self.waiting)

    def log(self, text: str = "") -> None:
        """Prints a line (or several) and appends it, with the time, to the log files."""
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
        """Appends lines to a file and flushes it."""
        file.writelines(line + "\n" for line in lines)
        file.flush()

    def show(self, text: str) -> None:
        """Prints a line to the terminal, above the progress bar if there is one."""
        (self.bar.console if self.bar else self.rich).print(text)

    def start(self, total: int, done: int) -> None:
        """Starts the progress bar if stdout is a terminal."""
        if self.is_main_process and self.rich.is_terminal:
            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[text]}"),
            )
            self.bar = Progress(*columns, console=self.rich, transient=True)
            self.task = self.bar.add_task("", total=total, completed=done, text="compiling")
            self.bar.start()
        self.last = time.monotonic()

    def progress(self, step: int, total: int, text: str, every: float) -> None:
        """Moves the progress bar; without one, logs a line every `every` seconds and at the last step."""
        if self.bar:
            self.bar.update(self.task, completed=step, text=text)
        elif time.monotonic() - self.last >= every or step == total:
            self.last = time.monotonic()
            self.log(f"step {step:>{len(str(total))}}/{total}  {text}")

    def stop(self) -> None:
        """Removes the progress bar, and flushes stdout."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        sys.stdout.flush()

    def close(self) -> None:
        """Removes the progress bar and closes the log files."""
        self.stop()
        while self.files:
            self.files.popitem()[1].close()
