"""The documentation's pages: README.md and docs/*.md, without docs/log.md, which is history."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "log.md")]


def blocks_of(text: str, language: str) -> list[str]:
    """The code blocks of a text in one language; indented ones (in a list) without their indentation."""
    return [textwrap.dedent(block) for block in re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.S | re.M)]


def lines_of(text: str) -> list[str]:
    """The lines of a text's bash blocks without comments; continued lines are joined."""
    commands = "\n".join(blocks_of(text, "bash")).replace("\\\n", " ")
    return [line for raw in commands.splitlines() if (line := re.sub(r"\s+#\s.*$", "", raw).strip()) and not line.startswith("#")]


def lines(page: Path) -> list[str]:
    """The commands of a page."""
    return lines_of(page.read_text())
