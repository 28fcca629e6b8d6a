"""Measures the scorer beside lm-evaluation-harness's backend `hf`: the same prompts on the same cores, in
turn.

    python -m tools.bench_evaluation FOLDER tasks=arc_easy,hellaswag limit=100 rounds=3 python=~/lm/bin/python

Every round scores each task by one, then by the other. The harness has a process of its own, started anew for
each round, and ours is compiled before the first; neither's loading is counted. Prints items a second of
both, medians of the rounds, and the tokens that ours read beside those of one pass a choice.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from llm_jax.core.arguments import argument, read_command
from llm_jax.core.command import run_command
from llm_jax.core.tables import make_console, table
from llm_jax.evaluate.parity import Arguments, ParityCommand, asked, reference


@dataclass(frozen=True, kw_only=True)
class BenchCommand(ParityCommand):
    """Items a second of the scorer and of lm-evaluation-harness: python -m tools.bench_evaluation FOLDER
    tasks=NAMES"""

    rounds: int = argument(3, least=1)
    """How often each task is scored by both."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(bench, arguments)


def bench(arguments: list[str]) -> int:
    """Reads the command line, measures and prints a table. Raises UserError."""
    command = read_command(arguments, BenchCommand)
    if command is None:
        return 0
    from llm_jax.evaluate.harness import HarnessMethods, convention_of  # they import JAX
    from llm_jax.pretrained.model import open_model

    requests, files = asked(command.tasks, command.limit, command.data)
    opened = open_model(command.folder, dtype="float32")
    model = HarnessMethods(opened, convention_of(opened))
    theirs: dict[str, list[float]] = {name: [] for name in requests}
    ours: dict[str, list[float]] = {name: [] for name in requests}
    given = {name: [Arguments(tuple(a)) for a in found["arguments"]] for name, found in requests.items()}
    for name, found in requests.items():
        getattr(model, found["kind"])(given[name])  # compiles
    print(f"load before: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    for _ in range(command.rounds):
        for name, found in reference(command, requests, files)["tasks"].items():
            theirs[name].append(found["seconds"])
        for name, found in requests.items():
            ours[name].append(seconds(model, found["kind"], given[name]))
    made = table(
        "task",
        ">items",
        ">requests",
        ">theirs items/s",
        ">ours items/s",
        ">ratio",
        ">tokens, one pass a choice",
        ">tokens read",
    )
    for name, found in requests.items():
        items = len({context for context, *_ in found["arguments"]})
        rates = [items / statistics.median(taken[name]) for taken in (theirs, ours)]
        row: list[Any] = [
            name,
            items,
            len(given[name]),
            f"{rates[0]:.2f}",
            f"{rates[1]:.2f}",
            f"{rates[1] / rates[0]:.2f}",
        ]
        made.add_row(*map(str, [*row, *tokens(model, found["kind"], given[name])]))
    make_console().print(made)
    return 0


def seconds(model: Any, kind: str, requests: list[Arguments]) -> float:
    """How long ours takes."""
    begun = time.perf_counter()
    getattr(model, kind)(requests)
    return time.perf_counter() - begun


def tokens(model: Any, kind: str, requests: list[Arguments]) -> tuple[str, str]:
    """(tokens of one pass for each request, tokens that the scorer read); nothing for texts."""
    if kind != "loglikelihood":
        return "", ""
    pairs = [model.convention.pair(*request.args) for request in requests]
    before = model.scorer.tokens_read
    model.scorer.score(pairs)
    once = sum(len(context) + len(continuation) - 1 for context, continuation in pairs)
    return f"{once:,}", f"{model.scorer.tokens_read - before:,}"


if __name__ == "__main__":
    sys.exit(main())
