"""Tables for people, on a terminal or in a file."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

WIDTH = 150
"""Columns where the output is no terminal."""


def make_console(width: int = WIDTH) -> Console:
    """A console that prints text as it is; of a fixed width where the output is no terminal, so that tables
    are whole in files."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=width)


def table(*columns: str, keep: tuple[str, ...] = ()) -> Table:
    """An empty table; columns whose titles begin with ">" hold numbers, and those in `keep` are never
    wrapped."""
    made = Table(box=None, pad_edge=False, header_style="dim", show_header=any(columns))
    for column in columns:
        title = column.lstrip(">")
        made.add_column(
            title,
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            no_wrap=title in keep,
        )
    return made


def show(console: Console, title: str, made: Table) -> None:
    """Prints a table under its title, which may be wider."""
    console.print()
    console.print(title, style="bold")
    if made.row_count:
        console.print(made)
