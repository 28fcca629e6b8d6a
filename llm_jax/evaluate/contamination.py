"""Contamination: which items of a task share an n-gram with the corpus that a run is trained on, and the
task's score without them. As a command:

  python -m llm_jax.evaluate.contamination RUN file=HumanEval.jsonl.gz key=canonical_solution

An item whose text has fewer than n tokens can't be checked, and is counted apart. A shared n-gram is no proof
that an item was learned: idioms are shared by chance. So each item comes with the share of its text that
shared n-grams cover, and with a document that has one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.arithmetic import finite
from llm_jax.core.command import output_file, run_command
from llm_jax.core.errors import UserError
from llm_jax.core.files import write_json
from llm_jax.evaluate.ngrams import N, Overlap, tokens_of
from llm_jax.evaluate.statistics import Estimate
from llm_jax.evaluate.tasks.task import Item, Task

SHOWN = 10
"""Items that the command prints."""


@dataclass(frozen=True)
class Contamination:
    """The contamination of a task's items, and its score with and without those that are."""

    n: int
    """Tokens of an n-gram."""
    n_items: int
    """Items that share an n-gram with the corpus."""
    share: float
    """Their part of the items that could be checked."""
    covered: float
    """The mean part of these items' text that is in shared n-grams."""
    unchecked: int
    """Items that are shorter than an n-gram; they are in both scores."""
    value_with: float
    """The score of all items."""
    value_without: float | None
    """The score of the items that share nothing; None if there are none."""
    ci95_without: tuple[float | None, float | None] | None

    def to_json(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return dict(vars(self))


def with_and_without(
    overlaps: Sequence[Overlap], score: Callable[[Sequence[int]], Estimate]
) -> Contamination:
    """The contamination of a task, with its score on all items and on those that share nothing.

    overlaps: of each item, at least one. score: the score of the items with these numbers.
    """
    shared = [overlap for overlap in overlaps if overlap.covered]
    checked = sum(overlap.checked for overlap in overlaps)
    clean = [number for number, overlap in enumerate(overlaps) if not overlap.covered]
    without = score(clean) if clean else None
    return Contamination(
        n=overlaps[0].n,
        n_items=len(shared),
        share=len(shared) / checked if checked else 0.0,
        covered=sum(overlap.share for overlap in shared) / len(shared) if shared else 0.0,
        unchecked=len(overlaps) - checked,
        value_with=score(range(len(overlaps))).value,
        value_without=without.value if without else None,
        ci95_without=(finite(without.ci95[0]), finite(without.ci95[1])) if without else None,
    )


def texts_to_find(task: Task, items: Sequence[Item], shots: int = 0, n: int = N) -> list[str]:
    """The text of each item that is looked for in a corpus: its right answer, or the question with it where
    the answer alone is shorter than an n-gram. Shots before a question are left out, unless what is left is
    shorter than an n-gram too."""
    found = []
    for item in items:
        answer = item.text or (item.choices[item.gold or 0] if item.choices else "")
        if len(tokens_of(answer)) < n:
            context = item.contexts[item.gold or 0] if item.contexts else item.context
            parts = context.split(task.separator) if shots else [context]
            texts = [task.separator.join(parts[i:]) + answer for i in range(len(parts) - 1, -1, -1)]
            answer = next((text for text in texts if len(tokens_of(text)) >= n), texts[-1])
        found.append(answer)
    return found


@dataclass(frozen=True, kw_only=True)
class ContaminationCommand:
    """Which texts of a file share an n-gram with the training documents of a run:
    python -m llm_jax.evaluate.contamination RUN file=FILE key=FIELD

      python -m llm_jax.evaluate.contamination runs/quickstart/default file=HumanEval.jsonl.gz key=canonical_solution

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """  # noqa: E501

    folder: Path = positional("RUN")
    """A run folder, whose corpus is read; held-out documents are no part of it."""
    file: Path = argument(shown="FILE")
    """The texts: .jsonl, .parquet or .txt, the first and last also .gz or .zst."""
    key: str = "text"
    """The field of a record that holds its text."""
    n: int = argument(N, least=3)
    """Tokens of an n-gram: words, numbers, other characters."""
    out: Path | None = argument(None, shown="FILE.json", read=output_file)
    """Writes what is found there, an object an item."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(contamination, arguments)


def contamination(arguments: list[str]) -> int:
    """Reads the command line, looks for the texts, and prints what they share. Raises UserError."""
    command = read_command(arguments, ContaminationCommand)
    if command is None:
        return 0

    from llm_jax.data.documents import SUFFIXES, numbered_records
    from llm_jax.evaluate.training_text import overlaps_with_run  # imports JAX, which `run_command` sets up

    if not command.file.is_file():
        problem = "is a folder; must be a file" if command.file.is_dir() else "no such file"
        raise UserError(f"file={command.file}: {problem}")
    if not command.file.name.endswith(SUFFIXES):
        raise UserError(f"file={command.file}: must be a file that ends in {', '.join(SUFFIXES)}")
    records = numbered_records(command.file, text_key=command.key, document_bytes=4096, separator="")
    texts = [text.decode("utf-8", "replace") for _, text in records if text is not None]
    if not texts:
        raise UserError(f"file={command.file}: has no texts under key={command.key}")
    overlaps = overlaps_with_run(command.folder, texts, command.n)
    if overlaps is None:
        raise UserError(
            f"{command.folder}: is no run folder, so its training corpus isn't known. Give a run of llm_jax"
        )
    shared = sorted(
        (number for number, overlap in enumerate(overlaps) if overlap.covered),
        key=lambda number: -overlaps[number].share,
    )
    for number in shared[:SHOWN]:
        overlap = overlaps[number]
        print(
            f"text {number + 1:>5}  {overlap.share:6.1%} of its {overlap.tokens:,} tokens, "
            f"first in {overlap.where}"
        )
    if len(shared) > SHOWN:
        print(f"and {len(shared) - SHOWN:,} more")
    short = sum(not overlap.checked for overlap in overlaps)
    print(
        f"{len(shared):,} of {len(texts):,} texts share {command.n} tokens in a row with the training corpus"
        + (f"; {short:,} are shorter than that" if short else "")
    )
    if command.out:
        items = [{**overlap._asdict(), "share": overlap.share} for overlap in overlaps]
        write_json(command.out, {"n": command.n, "texts": len(texts), "shared": len(shared), "items": items})
        print(f"written: {command.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
