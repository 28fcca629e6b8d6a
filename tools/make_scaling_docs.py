"""Updates the command outputs shown in docs/scaling.md: python tools/make_scaling_docs.py

A line `<!-- output: ARGUMENTS -->` stands before the text block that `python -m llm_jax.launch ARGUMENTS`
fills.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from llm_jax.launch import main

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
BLOCK = re.compile(r"(<!-- output: (.*?) -->\n```text\n)(.*?)(```\n)", re.S)


def filled(page: str) -> str:
    """The page with the output of every command replaced by what it prints now."""

    def output(found: re.Match[str]) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main(found[2].split())
        lines = [line.rstrip() for line in printed.getvalue().splitlines()]
        return "\n".join([f"{found[1]}$ python -m llm_jax.launch {found[2]}", *lines, found[4]])

    return BLOCK.sub(output, page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
