"""The Python of a job in which the run is a stand-in: fast, and its end is as a test wants it. Everything else is the real Python's.

Each start of the run takes a line of <run_dir>/plan: an exit code and the step of the checkpoint that it leaves. "wait" waits for a signal first.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

if "llm_jax.launch" not in sys.argv or any(argument.startswith("submit=") for argument in sys.argv):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
if os.environ["SLURM_PROCID"] == "0":
    stopped: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: stopped.append(number))
    run_dir = Path(next(argument for argument in sys.argv if argument.startswith("run_dir=")).partition("=")[2])
    starts = run_dir / "starts"
    count = len(starts.read_text().split()) if starts.exists() else 0
    code, step, *wait = (run_dir / "plan").read_text().splitlines()[count].split()
    with starts.open("a") as file:
        file.write(os.environ["SLURM_JOB_ID"] + "\n")
    print(f"start {count}: tasks {os.environ['SLURM_NTASKS']}, experiment {sys.argv[4]}")
    end = time.monotonic() + 60
    while wait and not stopped and time.monotonic() < end:
        time.sleep(0.05)
    shutil.copy(run_dir / "slurm" / "experiment.yaml", run_dir / "config.yaml")
    (run_dir / "checkpoints" / step).mkdir(parents=True, exist_ok=True)
    sys.exit(int(code))
