"""Runs the failing inputs that were found by trying what users of other projects reported: one script a kind of
fault, in the folder `field_cases` of $LLM_JAX_SHARED (or ../shared).

  python -m tools.field_cases                  all of them; exit code 1 where a fault is there
  python -m tools.field_cases jsonl_null       one

They were written when three modules and functions had other names, which are given to them here.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path

FOLDER = (
    Path(os.environ.get("LLM_JAX_SHARED", Path(__file__).parent.parent.parent / "shared")) / "field_cases"
)


def add_old_names() -> None:
    """Makes the old names importable."""
    import llm_jax.core.errors
    import llm_jax.experiment
    import llm_jax.generate.detokenizer
    from llm_jax.run.initial_weights import experiment_from_pairs

    sys.modules["llm_jax.errors"] = llm_jax.core.errors
    sys.modules["llm_jax.generate.text"] = llm_jax.generate.detokenizer
    llm_jax.experiment.__dict__["from_pairs"] = experiment_from_pairs


def run(script: Path) -> tuple[int, str]:
    """(exit code, output) of one script."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, output.getvalue()


def main(names: list[str]) -> int:
    """Runs the scripts of these names, or all; 1 if one of them finds its fault."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    scripts = [FOLDER / f"{name}.py" for name in names] or sorted(FOLDER.glob("*.py"))
    if missing := [script for script in scripts if not script.is_file()] or (not scripts and [FOLDER]):
        print(f"there is no {missing[0]}", file=sys.stderr)
        return 2
    add_old_names()
    failed = 0
    for script in scripts:
        code, output = run(script)
        failed += code != 0
        print(f"== {script.stem}: {'fault' if code else 'ok'}\n{output}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
