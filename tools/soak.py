"""Faults at random, or in every phase, on a run of two nodes under a real Slurm on this machine; a table of what came of each.

  python -m tools.soak random faults=20 seed=0       random faults in one run
  python -m tools.soak phases tries=3                SIGTERM in each phase, a run for each try
  python -m tools.soak faults                        each kind of fault once

folder=PATH   where runs and the cluster's state live (a temporary folder, removed afterwards)
out=PATH      writes the table there too, as Markdown

Each run is finished in the end by the job itself, through as many requeues as it takes, and is then compared with one that nothing happened to: the
same tokens at every step, the same losses to the last bit, no process left. Exit code 1 where one isn't.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path

from llm_jax.core.command import read_arguments, run_command
from llm_jax.core.errors import UserError, one_of, require
from tools.faults import CHECKPOINT_EVERY, CRASHES, PHASES, SIGNALS, Case, Job, Outcome, cluster, compare, strike

STEPS = 60
HEADER = "| fault | phase | at step | seconds to stop | resumed at | steps lost | identical |\n| --- | --- | --- | --- | --- | --- | --- |"


def row(outcome: Outcome, identical: str) -> str:
    """A line of the table."""
    case = outcome.case
    cells = (case.fault, case.phase, outcome.at, f"{outcome.seconds_to_stop:.1f}", outcome.resumed_at, outcome.lost, identical)
    return f"| {' | '.join(map(str, cells))} |"


def check(outcome: Outcome) -> None:
    """Raises AssertionError where more steps were lost than may be."""
    allowed = 0 if outcome.case.fault in SIGNALS else CHECKPOINT_EVERY
    assert outcome.lost <= allowed, f"{outcome.case}: {outcome.lost} steps lost, at most {allowed} may be"


def finish(job: Job, unbroken: Job) -> str:
    """Waits for the end of a run and compares it: "yes", or in what it differs."""
    try:
        job.wait("COMPLETED", seconds=600)
        end = time.monotonic() + 20
        while job.processes() and time.monotonic() < end:
            time.sleep(0.1)
        compare(job, unbroken)
    except (AssertionError, RuntimeError) as error:
        return f"NO: {error}"
    return "yes"


def whole(folder: Path, steps: int) -> Job:
    """A run that nothing happens to."""
    job = Job(folder / f"unbroken{steps}", steps)
    job.submit()
    job.wait("COMPLETED", seconds=600)
    return job


def soak(folder: Path, faults: int, seed: int) -> list[str]:
    """Random faults in one run, each some random time after the last."""
    chosen = random.Random(seed)
    steps = 15 * faults
    unbroken, job = whole(folder, steps), Job(folder / "soak", steps)
    outcomes: list[Outcome] = []
    job.submit()
    while len(outcomes) < faults and job.state() != "COMPLETED":
        fault = chosen.choice((*SIGNALS, *CRASHES))
        phase = chosen.choice(("start", "compile", "train", "train", "train", "evaluate", "save"))
        outcome = strike(job, Case(fault, phase), chosen.randrange(job.nodes))
        if outcome:
            print(row(outcome, "..."), flush=True)
            outcomes.append(outcome)
    identical = finish(job, unbroken)
    return [row(outcome, identical) for outcome in outcomes] + wrong(outcomes, identical)


def singly(folder: Path, cases: list[Case]) -> list[str]:
    """Each case in a run of its own."""
    unbroken, rows, problems = whole(folder, STEPS), [], []
    for i, case in enumerate(cases):
        job = Job(folder / f"case{i}", STEPS)
        job.submit()
        outcome = strike(job, case, rank=i % job.nodes)
        identical = finish(job, unbroken)
        rows.append(row(outcome, identical) if outcome else f"| {case.fault} | {case.phase} | never there | | | | |")
        print(rows[-1], flush=True)
        problems += wrong([outcome], identical) if outcome else [f"WRONG: {case}: the run went past the phase"]
    return rows + problems


def wrong(outcomes: list[Outcome], identical: str) -> list[str]:
    """Lines about what is not as promised."""
    found = [] if identical == "yes" else [f"WRONG: {identical}"]
    for outcome in outcomes:
        try:
            check(outcome)
        except AssertionError as error:
            found.append(f"WRONG: {error}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(command, arguments)


def command(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(__doc__)
        return 0
    what, given = arguments[0], dict(read_arguments(arguments[1:], ())[1])
    if what not in ("random", "phases", "faults"):
        raise UserError(f"{what}: {one_of(what, ('random', 'phases', 'faults'))}")
    numbers = {key: given.pop(key, default) for key, default in (("faults", "20"), ("seed", "0"), ("tries", "3"))}
    for key, value in numbers.items():
        require(value.isdigit(), key, value, "a whole number")
    out, where = given.pop("out", ""), given.pop("folder", "")
    if given:
        raise UserError(f"{next(iter(given))}: there is no such key; --help says which there are")
    with contextlib.ExitStack() as life:
        folder = Path(where) if where else Path(life.enter_context(tempfile.TemporaryDirectory(prefix="soak")))
        folder.mkdir(parents=True, exist_ok=True)
        life.enter_context(cluster(folder / "cluster", nodes=2))
        print(HEADER, flush=True)
        if what == "random":
            lines = soak(folder, int(numbers["faults"]), int(numbers["seed"]))
        elif what == "phases":
            lines = singly(folder, [Case("TERM", phase) for phase in PHASES for _ in range(int(numbers["tries"]))])
        else:
            lines = singly(folder, [Case(fault, "train") for fault in (*SIGNALS, *CRASHES)])
    print("\n".join(["", HEADER, *lines]))
    if out:
        Path(out).write_text("\n".join([HEADER, *lines]) + "\n")
    return int(any(line.startswith("WRONG") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
