"""The command `python -m llm_jax.evaluate.suites`: lists the generated suites, or prints items of some."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.command import output_file, output_folder, run_command
from llm_jax.core.errors import UserError, one_of
from llm_jax.core.files import make_folder, write_atomic
from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites import SEED, SUITES, Suite
from llm_jax.evaluate.tasks.task import Item


def output(key: str, value: str) -> Path:
    """The .jsonl file that key=value names, or a folder. Raises UserError if it can't be written."""
    return output_file(key, value) if value.endswith(".jsonl") else output_folder(key, value)


@dataclass(frozen=True, kw_only=True)
class SuitesCommand:
    """Prints items of the generated suites: python -m llm_jax.evaluate.suites NAME key=value ...

      python -m llm_jax.evaluate.suites all
      python -m llm_jax.evaluate.suites german show=5
      python -m llm_jax.evaluate.suites german seed=1 out=german.jsonl
      python -m llm_jax.evaluate.suites all seed=1 out=suites

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """

    name: str = positional("NAME")
    """A suite, a group of them (german, english, numbers, code, recall), or all."""
    show: int = argument(0, least=0)
    """Random items to print of each suite, the right answer first. 0: only what there is."""
    seed: int = argument(SEED, least=0)
    """The items are a function of it; tasks= has those of 0."""
    out: Path | None = argument(None, shown="FILE.jsonl", read=output)
    """Writes all items, an object a line: what tasks=FILE.jsonl reads. Of several suites of one kind each is
    a group of the file's items; in a folder each has its own file."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(show_suites, arguments)


def show_suites(arguments: list[str]) -> int:
    """Prints and writes what the command line asks for. Raises UserError."""
    command = read_command(arguments, SuitesCommand)
    if command is None:
        return 0
    chosen = suites_of(command.name)
    to_file = command.out is not None and command.out.suffix == ".jsonl"
    kinds = {suite.kind: suite.name for suite in chosen}
    if to_file and len(kinds) > 1:
        found = " and ".join(f"{kind} ({name})" for kind, name in kinds.items())
        raise UserError(
            f"out={command.out}: {command.name} has suites of {found}, and a file of tasks is of one kind. "
            "Give a folder, for a file of each suite"
        )
    lines: dict[str, list[str]] = {}
    for suite in chosen:
        items = suite.items(command.seed)
        print(f"{suite.name}  {len(items)} items  {suite.version(command.seed)}  {suite.about}")
        for line in shown(items, command.show, f"{suite.name} {command.seed}"):
            print(f"  {line}")
        group = suite.name if to_file and len(chosen) > 1 else ""
        made = [json.dumps(record_of(item, group), ensure_ascii=False) for item in items]
        lines.setdefault("" if to_file else f"{suite.name}.jsonl", []).extend(made)
    if command.out and not to_file:
        make_folder(command.out, "out")
    if command.out:
        for name, of_file in lines.items():
            write_atomic(command.out / name, "".join(line + "\n" for line in of_file))
        print(f"written: {command.out}" + ("" if to_file else f", {len(lines)} files"))
    return 0


def suites_of(name: str) -> list[Suite]:
    """The suites of a name or a group. Raises UserError."""
    found = [suite for suite in SUITES.values() if name in ("all", suite.name, suite.group)]
    if not found:
        groups = dict.fromkeys(suite.group for suite in SUITES.values())
        raise UserError(f"NAME={name}: {one_of(name, ['all', *groups, *SUITES])}")
    return found


def record_of(item: Item, suite: str = "") -> dict[str, Any]:
    """An item as a record of a file for tasks=: a pair of texts, or choices with their context.

    suite: its name where the file has several, before the item's group.
    """
    assert item.gold is not None
    group = f"{suite} {item.group}".strip()
    about = {"id": item.id, "source": item.source} | ({"group": group} if group else {})
    if not item.context:
        good, bad = item.choices[item.gold], item.choices[1 - item.gold]
        return {"sentence_good": good, "sentence_bad": bad, **about}
    return {
        "context": item.context,
        "choices": list(item.choices),
        "gold": item.gold,
        "normalization": "raw",
        **about,
    }


def shown(items: list[Item], count: int, seed: str) -> Iterator[str]:
    """Random items as lines: the context, the right answer, and the wrong ones."""
    draws = Draws(f"show {seed}")
    for _ in range(min(count, len(items))):
        item = draws.one_of(items)
        right = item.choices[item.gold]
        wrong = [choice for choice in item.choices if choice != right]
        context = f"{item.context!r} " if item.context else ""
        yield f"{context}{right!r}  *{'  *'.join(map(repr, wrong))}"


if __name__ == "__main__":
    sys.exit(main())
