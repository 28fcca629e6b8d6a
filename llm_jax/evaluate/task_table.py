"""Results of tasks as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.core.tables import make_console, table
from llm_jax.evaluate.statistics import Estimate, group

Result = Mapping[str, Any]


def print_results(results: Sequence[Result], groups: bool = False) -> None:
    """Prints a table with a line for each result, and what must be known to read the scores. groups: a line
    for each group of a task's items too."""
    made = table(
        "task",
        "metric",
        ">score",
        ">95% interval",
        ">chance",
        ">n",
        ">bits/byte",
        "notes",
        keep=("task", "metric"),
    )
    for result in results:
        chance = shown(result, result["chance"]) if result["chance"] else ""
        made.add_row(
            result["task"],
            metric_name(result),
            shown(result, result["value"]),
            interval(result, result["ci95"]),
            chance,
            f"{result['n']:,}",
            "" if result["gold_bits_per_byte"] is None else f"{result['gold_bits_per_byte']:.3f}",
            "; ".join(notes(result)),
        )
        for name, part in result["groups"].items() if groups else ():
            made.add_row(
                f"  {name}", "", shown(result, part["value"]), interval(result, part["ci95"]), "",
                f"{part['n']:,}", "", "",
            )  # fmt: skip
    console = make_console()
    console.print(made)
    first = results[0]
    print(f"model       {first['path']}, step {first['step']}, {first['dtype']}, layout {first['layout']}")
    print(f"convention  {first['bos']}")


def group_lines(results: Sequence[Result], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each group of tasks: the mean of their scores above chance, as a share of what is above it,
    with its 95% interval. groups: the names of its tasks, by its name.

    Only shares of right answers are averaged; a group with fewer than two such tasks has no line.
    """
    lines = []
    for name, members in groups.items():
        own = [
            result
            for result in results
            if result["task"] in members and result["kind"] in ("choice", "pair", "cloze", "generate")
        ]
        if len(own) < 2:
            continue
        estimates = [
            Estimate(r["value"], r["stderr"] or 0.0, tuple(r["ci95"]), r["n"], r["clusters"]) for r in own
        ]
        found = group(estimates, [result["chance"] or 0.0 for result in own])
        low, high = found.ci95
        share = f"{found.value:.1%} above chance ({low:.1%} to {high:.1%})"
        lines.append(f"{name:<11} {share}, the mean of {len(own)} tasks")
    return lines


def metric_name(result: Result) -> str:
    """The metric with the formulation, where a kind has several.

    >>> metric_name({"kind": "choice", "formulation": "cf", "metric": "per_character"})
    'accuracy, cf, per_character'
    """
    name = result["metric"]
    if result["kind"] in ("choice", "pair"):
        return f"accuracy, {result['formulation']}, {name}"
    named = {"greedy": "accuracy, greedy", "exact": "exact answers"}
    return named.get(name, str(name))


def shown(result: Result, value: float | None) -> str:
    """A score: bits per byte as they are, shares as percentages."""
    if value is None:
        return "?"
    return f"{value:.3f}" if result["metric"] == "bits_per_byte" else f"{value:.1%}"


def interval(result: Result, ends: Sequence[float | None]) -> str:
    """The 95% interval of a score."""
    return f"{shown(result, ends[0])} to {shown(result, ends[1])}"


def notes(result: Result) -> list[str]:
    """What a reader of a score must know about its items."""
    counts = {
        "n_truncated": "cut on the left",
        "n_merged": "with a token across the boundary",
        "n_longer_than_trained": "longer than rows of training",
        "n_skipped": "too long, left out",
        "n_ended_by_length": "ended by their length",
    }
    found = [f"{result[name]:,} {words}" for name, words in counts.items() if result.get(name)]
    contamination = result.get("contamination")
    if contamination and contamination["unchecked"]:
        found.append(f"{contamination['unchecked']:,} too short to be looked for in the training text")
    if contamination and contamination["n_items"]:
        without = contamination["value_without"]
        found.append(
            f"{contamination['n_items']:,} share an n-gram with the training text; without them "
            f"{shown(result, without) if without is not None else 'none is left'}"
        )
    return found
