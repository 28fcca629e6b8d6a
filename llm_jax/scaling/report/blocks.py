"""What a page is made of, as data: `page.html.jinja` has a macro for each kind of block, and all of the HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llm_jax.scaling.report.caveats import Check


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph. Here and in all other texts, powers are raised: C^0.5."""

    kind: ClassVar[str] = "paragraph"
    text: str
    absent: bool = False
    """It says that something isn't there, and why."""


@dataclass(frozen=True)
class Listing:
    """Lines as a list."""

    kind: ClassVar[str] = "listing"
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    """One that begins with ">" is of a column of numbers."""
    rows: Sequence[Sequence[object]]
    row_styles: Sequence[str] = ()
    """Of every row: doubt, gone, aside, or empty; none for all of them."""
    style: str = ""
    tall: bool = False
    """It scrolls, as it has many rows."""

    @property
    def head(self) -> list[tuple[object, bool]]:
        """The header's cells, and whether each is of numbers."""
        return self.marked(name.removeprefix(">") for name in self.header)

    @property
    def body(self) -> list[tuple[list[tuple[object, bool]], str]]:
        """Every row's cells, marked like the header's, and its style."""
        return [(self.marked(row), style) for row, style in zip(self.rows, self.row_styles or [""] * len(self.rows), strict=True)]

    def marked(self, cells: Iterable[object]) -> list[tuple[object, bool]]:
        """Cells with whether each is in a column of numbers."""
        return list(zip(cells, (name.startswith(">") for name in self.header), strict=True))


@dataclass(frozen=True)
class Folded:
    """A table behind a line that one clicks at."""

    kind: ClassVar[str] = "folded"
    summary: str
    table: Table


@dataclass(frozen=True)
class CheckList:
    """What the conclusion rests on, in a table."""

    kind: ClassVar[str] = "check_list"
    checks: Sequence[Check]


@dataclass(frozen=True)
class Picture:
    """A figure with its caption."""

    kind: ClassVar[str] = "picture"
    number: int
    name: str
    """Its file beside the page, without .png."""
    data: str
    """It as a data URI."""
    caption: str


Block = Heading | Paragraph | Listing | Table | Folded | CheckList | Picture


@dataclass(frozen=True)
class Section:
    """A part of the page with its heading."""

    key: str
    """The page's link to it."""
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Card:
    """A number of the result, and what it is."""

    number: str
    about: str
