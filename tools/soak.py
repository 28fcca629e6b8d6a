"""Injects faults into runs of two nodes under a real Slurm on this machine: python -m tools.soak
random|phases|faults"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.command import run_command
from tools.faults import (
    CHECKPOINT_EVERY,
    CRASHES,
    PHASES,
    SIGNALS,
    Case,
    Job,
    Outcome,
    cluster,
    compare,
    strike,
)

STEPS = 60
COLUMNS = ("fault", "phase", "at step", "seconds to stop", "resumed at", "steps lost", "identical")
HEADER = f"| {' | '.join(COLUMNS)} |\n| {' | '.join(['---'] * len(COLUMNS))} |"


def row(outcome: Outcome, identical: str) -> str:
    """A line of the table."""
    case = outcome.case
    cells = (
        case.fault,
        case.phase,
        outcome.at,
        f"{outcome.seconds_to_stop:.1f}",
        outcome.resumed_at,
        outcome.lost,
        identical,
    )
    return f"| {' | '.join(map(str, cells))} |"


def check(outcome: Outcome) -> None:
    """Raises AssertionError where a fault lost more steps than its kind allows."""
    allowed = 0 if outcome.case.fault in SIGNALS else CHECKPOINT_EVERY
    assert outcome.lost <= allowed, f"{outcome.case}: {outcome.lost} steps lost, at most {allowed} may be"


def finish(job: Job, unbroken: Job) -> str:
    """Waits for the end of a run and compares it with the uninterrupted one: "yes", or "NO" with the
    difference."""
    try:
        job.wait("COMPLETED", seconds=600)
        end = time.monotonic() + 20
        while job.processes() and time.monotonic() < end:
            time.sleep(0.1)
        compare(job, unbroken)
    except (AssertionError, RuntimeError) as error:
        return f"NO: {error}"
    return "yes"


def uninterrupted(folder: Path, steps: int) -> Job:
    """A finished run without faults."""
    job = Job(folder / f"unbroken{steps}", steps)
    job.submit()
    job.wait("COMPLETED", seconds=600)
    return job


def random_faults(folder: Path, faults: int, seed: int) -> list[str]:
    """Injects random faults into one run, one after the other: rows of the table, and lines about what is
    wrong."""
    dice = random.Random(seed)
    steps = 15 * faults
    unbroken, job = uninterrupted(folder, steps), Job(folder / "soak", steps)
    outcomes: list[Outcome] = []
    job.submit()
    while len(outcomes) < faults and job.state() != "COMPLETED":
        fault = dice.choice((*SIGNALS, *CRASHES))
        phase = dice.choice(("start", "compile", "train", "train", "train", "evaluate", "save"))
        outcome = strike(job, Case(fault, phase), dice.randrange(job.nodes))
        if outcome:
            print(row(outcome, "..."), flush=True)
            outcomes.append(outcome)
    identical = finish(job, unbroken)
    return [row(outcome, identical) for outcome in outcomes] + problems_of(outcomes, identical)


def one_fault_each(folder: Path, cases: list[Case]) -> list[str]:
    """Injects each fault into a run of its own: rows of the table, and lines about what is wrong."""
    unbroken, rows, problems = uninterrupted(folder, STEPS), [], []
    for i, case in enumerate(cases):
        job = Job(folder / f"case{i}", STEPS)
        job.submit()
        outcome = strike(job, case, rank=i % job.nodes)
        identical = finish(job, unbroken)
        rows.append(
            row(outcome, identical) if outcome else f"| {case.fault} | {case.phase} | not reached | | | | |"
        )
        print(rows[-1], flush=True)
        problems += (
            problems_of([outcome], identical) if outcome else [f"WRONG: {case}: the run went past the phase"]
        )
    return rows + problems


def problems_of(outcomes: list[Outcome], identical: str) -> list[str]:
    """Lines about promises that outcomes break."""
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


@dataclass(frozen=True, kw_only=True)
class SoakCommand:
    """Injects faults into runs of two nodes under a real Slurm on this machine, at random or in every phase,
    and prints a table of the outcomes.

      python -m tools.soak random faults=20 seed=0       random faults in one run
      python -m tools.soak phases tries=3                SIGTERM in each phase, a run for each try
      python -m tools.soak faults                        each kind of fault once

    Each job finishes its run, with as many requeues as it takes. The run is then compared with an
    uninterrupted one: equal tokens at every step, bit-identical losses, and no process left. Exit code 1
    where one differs.
    """

    what: str = positional("KIND", choices=lambda: ("random", "phases", "faults"))
    """Which faults."""
    faults: int = argument(20, least=0)
    """random: how many."""
    seed: int = argument(0, least=0)
    """random: of the choice."""
    tries: int = argument(3, least=0)
    """phases: runs for each phase."""
    folder: Path | None = argument(None, shown="FOLDER")
    """The folder of runs and of the cluster's state; a temporary one, removed afterwards, if not given."""
    out: Path | None = argument(None, shown="FILE")
    """Also writes the table to this file, as Markdown."""


def command(arguments: list[str]) -> int:
    """Runs the command line; raises UserError where it is wrong."""
    given = read_command(arguments, SoakCommand)
    if given is None:
        return 0
    with contextlib.ExitStack() as life:
        folder = given.folder or Path(life.enter_context(tempfile.TemporaryDirectory(prefix="soak")))
        folder.mkdir(parents=True, exist_ok=True)
        life.enter_context(cluster(folder / "cluster", nodes=2))
        print(HEADER, flush=True)
        if given.what == "random":
            lines = random_faults(folder, given.faults, given.seed)
        elif given.what == "phases":
            lines = one_fault_each(
                folder, [Case("TERM", phase) for phase in PHASES for _ in range(given.tries)]
            )
        else:
            lines = one_fault_each(folder, [Case(fault, "train") for fault in (*SIGNALS, *CRASHES)])
    print("\n".join(["", HEADER, *lines]))
    if given.out:
        given.out.write_text("\n".join([HEADER, *lines]) + "\n")
    return int(any(line.startswith("WRONG") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
