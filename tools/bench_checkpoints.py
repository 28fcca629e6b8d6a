"""Measures what checkpoints cost: the part of the time of training for which it stands still
because of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.arguments import argument, read_command
from llm_jax.core.command import run_command

EVERY = 50


@dataclass(frozen=True, kw_only=True)
class BenchCheckpoints:
    """Measures what checkpoints cost: the part of the time of training for which it stands still because of
    them.

      python tools/bench_checkpoints.py steps=200                     the quickstart, a checkpoint every 50 steps
      python tools/bench_checkpoints.py experiment=bench/w1 steps=100

    Checkpoints are written in the background; what stalls is the copy of the arrays, the wait for one that is
    still being written, and the wait for the last one at the end.
    """

    experiment: str = argument("quickstart", shown="NAME")
    """The experiment that is trained."""
    steps: int = argument(200, least=EVERY)
    """How long."""


def bench(arguments: list[str]) -> int:
    """Runs the launcher in a process of its own and prints the costs from its summary."""
    given = read_command(arguments, BenchCheckpoints)
    if given is None:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "llm_jax.launch", f"experiment={given.experiment}", f"train.steps={given.steps}", f"checkpoint.every={EVERY}",
            "evaluate.every=0", "evaluate.final_batches=1", "sample.tokens=0", f"run_dir={folder}/run",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        run = Path(folder) / "run"
        summary = json.loads((run / "summary.json").read_text())
        newest = run / "checkpoints" / str(given.steps)
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    seconds, saves = summary["seconds"], given.steps // EVERY
    interval, stall = EVERY * seconds["step"] / given.steps, seconds["checkpoint"] / saves
    print(
        f"{given.experiment}: {summary['parameters'] / 1e6:.1f} M parameters, {size / 1e6:.0f} MB a "
        f"checkpoint, {saves} of them"
    )
    print(
        f"{EVERY} steps take {interval:.2f} s, a checkpoint stalls training for {stall:.3f} s: "
        f"{stall / interval:.1%}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(bench))
