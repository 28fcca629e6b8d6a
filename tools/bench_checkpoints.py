"""What checkpoints cost: the part of the time of training for which it stands still because of them.

  python tools/bench_checkpoints.py                               the quickstart, 200 steps, a checkpoint every 50
  python tools/bench_checkpoints.py experiment=bench/w1 steps=100

Checkpoints are written in the background; what stalls is the copy of the arrays, the wait for one that is still being written, and the
wait for the last one at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from llm_jax.core.command import read_arguments, run_command
from llm_jax.core.errors import UserError

EVERY = 50


def bench(arguments: list[str]) -> int:
    """Runs the launcher in a process of its own and prints what its summary says."""
    flags, pairs = read_arguments(arguments, ("--help",))
    if flags:
        print(__doc__)
        return 0
    given = {"experiment": "quickstart", "steps": "200", **dict(pairs)}
    if not given["steps"].isdigit() or int(given["steps"]) < EVERY:
        raise UserError(f"steps={given['steps']}: must be a whole number, at least {EVERY}")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "llm_jax.launch", f"experiment={given['experiment']}", f"train.steps={given['steps']}", f"checkpoint.every={EVERY}",
            "evaluate.every=0", "evaluate.final_batches=1", "sample.tokens=0", f"run_dir={folder}/run",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        run = Path(folder) / "run"
        summary = json.loads((run / "summary.json").read_text())
        newest = run / "checkpoints" / given["steps"]
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    seconds, saves = summary["seconds"], int(given["steps"]) // EVERY
    interval, stall = EVERY * seconds["step"] / int(given["steps"]), seconds["checkpoint"] / saves
    print(f"{given['experiment']}: {summary['parameters'] / 1e6:.1f} M parameters, {size / 1e6:.0f} MB a checkpoint, {saves} of them")
    print(f"{EVERY} steps take {interval:.2f} s, a checkpoint stalls training for {stall:.3f} s: {stall / interval:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(bench))
