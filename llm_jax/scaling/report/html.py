"""Pieces of HTML. Text is escaped here and nowhere else."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence


def escape(text: object) -> str:
    """Text as HTML has it, powers raised.

    >>> escape("N* < C^0.466."), escape("B/D^β")
    ('N* &lt; C<sup>0.466</sup>.', 'B/D<sup>β</sup>')
    """
    return re.sub(r"\^(-?\d+(?:\.\d+)?|\w+)", r"<sup>\1</sup>", html.escape(str(text)))


def listing(lines: Iterable[str]) -> str:
    """Lines as a list; nothing where there are none."""
    items = "".join(tag("li", escape(line)) for line in lines)
    return tag("ul", items) if items else ""


def tag(name: str, content: str, **attributes: str) -> str:
    """An element around HTML that is there already; `class_` is class."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items() if value)
    return f"<{name}{given}>{content}</{name}>"


def paragraph(text: str, class_: str = "") -> str:
    """A paragraph of text."""
    return tag("p", escape(text), class_=class_)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], classes: Sequence[str] = (), class_: str = "", tall: bool = False) -> str:
    """A table of texts. A header that begins with ">" is of a column of numbers; `classes` are those of the rows."""
    rows = list(rows)
    numeric = [cell.startswith(">") for cell in header]
    head = "".join(tag("th", escape(cell.removeprefix(">")), class_="n" if n else "") for cell, n in zip(header, numeric, strict=True))
    body = "\n".join(
        tag("tr", "".join(tag("td", escape(cell), class_="n" if n else "") for cell, n in zip(row, numeric, strict=True)), class_=of_row)
        for row, of_row in zip(rows, classes or [""] * len(rows), strict=True)
    )
    made = tag("table", f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>", class_=class_)
    return tag("div", made, class_="scroll tall" if tall else "scroll")


def section(key: str, title: str, *blocks: str) -> str:
    """A section of the page with its heading."""
    return tag("section", "\n".join([tag("h2", escape(title)), *blocks]), id=key)


def folded(summary: str, content: str) -> str:
    """Content behind a line that one clicks at."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
