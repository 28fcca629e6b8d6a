"""Fills docs/layouts.md and docs/plan.md with output of llm_jax.plan: runs the command of every block and
inserts what it prints.

    python tools/make_layout_docs.py            # all blocks; takes minutes
    python tools/make_layout_docs.py ring       # only blocks whose command contains this text

A block begins with `<!-- plan: ARGUMENTS -->` and ends with `<!-- plan end -->`. A block that names a layout
also gets its picture. Needs the extra `cuda`, no GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"<!-- plan: (?P<arguments>.+?) -->\n.*?<!-- plan end -->", re.DOTALL)


def fill(match: re.Match[str]) -> str:
    """The block with the current output of its command. Exits if the command fails."""
    arguments = match["arguments"]
    if not all(word in arguments for word in sys.argv[1:]):
        return match[0]
    words = arguments.split()
    layout = next((word.partition("=")[2] for word in words if word.startswith("layout=")), "")
    pictured = layout not in ("", "all")
    picture = f"layouts/{layout}.png"
    command = [
        sys.executable,
        "-m",
        "llm_jax.plan",
        *words,
        *([f"picture={DOCS / picture}"] if pictured else []),
    ]
    print(arguments, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr}")
    lines = [line.rstrip() for line in done.stdout.splitlines() if not line.startswith("drawn: ")]
    text = re.sub(r"; planned with XLA's GPU compiler in [\d.]+ s", "", "\n".join(lines).strip())
    shown = f"```text\n$ python -m llm_jax.plan {arguments}\n{text}\n```\n"
    if pictured:
        shown += f"\n![{layout}: which device holds which part]({picture})\n"
    return f"<!-- plan: {arguments} -->\n{shown}<!-- plan end -->"


def main() -> None:
    """Rewrites both pages."""
    (DOCS / "layouts").mkdir(exist_ok=True)
    for page in (DOCS / "layouts.md", DOCS / "plan.md"):
        page.write_text(BLOCK.sub(fill, page.read_text()))


if __name__ == "__main__":
    main()
