"""The Python of a job in which a fast stand-in replaces the run, and ends as a test wants it. All other
commands go to the real Python.

Each start of the run takes a line of <run_dir>/plan, or of the file in the folder PLANS that has its name: an
exit code and the step of the checkpoint that it leaves. "wait" waits for a signal first; -9 is kill -9.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    if "llm_jax.launch" not in sys.argv or any(argument.startswith("submit=") for argument in sys.argv):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    stopped: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: stopped.append(number))
    run_dir = Path(
        next(argument for argument in sys.argv if argument.startswith("run_dir=")).partition("=")[2]
    )
    here = run_dir / f"tasks_{os.environ['SLURM_JOB_ID']}_{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    here.mkdir(exist_ok=True)
    (here / os.environ["SLURM_PROCID"]).touch()
    if os.environ["SLURM_PROCID"] != "0":
        os._exit(0)  # at once: while Python tidies up there is no handler any more
    while len(list(here.iterdir())) < int(
        os.environ["SLURM_NTASKS"]
    ):  # a signal kills those that aren't there yet
        time.sleep(0.05)
    plan = (
        run_dir / "plan"
        if (run_dir / "plan").exists()
        else Path(os.environ["PLANS"]) / run_dir.name.rsplit("-", 1)[0]
    )
    starts = run_dir / "starts"
    count = len(starts.read_text().split()) if starts.exists() else 0
    code, step, *wait = plan.read_text().splitlines()[count].split()
    print(
        f"start {count}: tasks {os.environ['SLURM_NTASKS']}, GPUs "
        f"{os.environ.get('CUDA_VISIBLE_DEVICES')}, experiment {sys.argv[4]}",
        flush=True,
    )
    with starts.open("a") as file:
        file.write(os.environ["SLURM_JOB_ID"] + "\n")
    end = time.monotonic() + 60
    while wait and not stopped and time.monotonic() < end:
        time.sleep(0.05)
    if code == "-9":
        os.kill(os.getpid(), signal.SIGKILL)
    if code == "2":
        print("error: data.source=none.jsonl: no such file or folder", file=sys.stderr)
        sys.exit(2)
    shutil.copy(run_dir / "slurm" / "experiment.yaml", run_dir / "config.yaml")
    (run_dir / "checkpoints" / step).mkdir(parents=True, exist_ok=True)
    if code == "0":
        (run_dir / "summary.json").write_text(
            json.dumps({"state": "finished", "step": int(step), "eval_loss": 2.0, "tokens": 8 * int(step)})
        )
    sys.exit(int(code))


if __name__ == "__main__":
    main()
