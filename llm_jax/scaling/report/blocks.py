"""The blocks that a page consists of, as data; `page.html.jinja` has a macro for each kind of block, and all
of the HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llm_jax.scaling.report.caveats import Assumption


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
    """Whether the paragraph explains why something is missing."""


@dataclass(frozen=True)
class Listing:
    """A list with a bullet for each line."""

    kind: ClassVar[str] = "listing"
    lines: Sequence[str]


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are shown as text."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    """Column titles; ">" in front marks a column of numbers, aligned right."""
    rows: Sequence[Sequence[object]]
    row_styles: Sequence[str] = ()
    """The style of each row: caveat, gone, aside, or empty; no entries: every row is plain."""
    style: str = ""
    tall: bool = False
    """Whether the table scrolls, having many rows."""

    @property
    def head(self) -> list[tuple[object, bool]]:
        """The header's cells, and whether each is of numbers."""
        return self.marked(name.removeprefix(">") for name in self.header)

    @property
    def body(self) -> list[tuple[list[tuple[object, bool]], str]]:
        """Every row's cells, marked like the header's, and its style."""
        return [
            (self.marked(row), style)
            for row, style in zip(self.rows, self.row_styles or [""] * len(self.rows), strict=True)
        ]

    def marked(self, cells: Iterable[object]) -> list[tuple[object, bool]]:
        """Cells with whether each is in a column of numbers."""
        return list(zip(cells, (name.startswith(">") for name in self.header), strict=True))


@dataclass(frozen=True)
class Folded:
    """A table behind a line that opens it on a click."""

    kind: ClassVar[str] = "folded"
    summary: str
    table: TextTable


@dataclass(frozen=True)
class AssumptionList:
    """The assumptions that the conclusion rests on, as a table."""

    kind: ClassVar[str] = "assumption_list"
    assumptions: Sequence[Assumption]


@dataclass(frozen=True)
class Picture:
    """A figure with its caption."""

    kind: ClassVar[str] = "picture"
    number: int
    name: str
    """File name in figures/, without .png."""
    data: str
    """The image as a data URI."""
    caption: str


Block = Heading | Paragraph | Listing | TextTable | Folded | AssumptionList | Picture


@dataclass(frozen=True)
class Section:
    """A section of the page with its heading."""

    key: str
    """The anchor that links point to."""
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Card:
    """A number of the result with its description."""

    number: str
    about: str
