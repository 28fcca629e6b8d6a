"""The items on which two models differ, with their texts and what each model made of them: what a page shows
side by side. Imports no JAX."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_jax.evaluate.comparison import BITS_PER_BYTE, disagreements, value_of
from llm_jax.evaluate.samples import Sample
from llm_jax.evaluate.task_scores import normalized
from llm_jax.evaluate.tasks.task import Item, Kind
from llm_jax.leaderboard.board import primary_metric
from llm_jax.leaderboard.models import Leaderboard

LONGEST = 1500
"""Characters of a text that a page shows; of a context the last, of a choice or answer the first."""


@dataclass
class ShownItems:
    """What a page shows of a task."""

    metric: str
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Item id → its texts."""
    answers: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    """Of each model: item id → what it made of it."""
    pairs: dict[str, list[str]] = field(default_factory=dict)
    """ "I J" of two models → the ids of the items on which they differ most, the clearest first."""
    counts: dict[str, int] = field(default_factory=dict)
    """ "I J" → the items on which they differ."""


def shown_items(board: Leaderboard, most: int) -> dict[str, ShownItems]:
    """For each task the items on which some two models differ most, at most so many for each pair."""
    return {name: shown_of_task(board, name, most) for name in board.tasks}


def shown_of_task(board: Leaderboard, name: str, most: int) -> ShownItems:
    """What a page shows of one task."""
    kind, metric = board.tasks[name].kind, primary_metric(board, name)
    found = ShownItems(metric)
    asked = [model.evaluations.get(name) for model in board.models]
    for (i, first), (j, second) in itertools.combinations(enumerate(asked), 2):
        if first is not None and second is not None:
            different = disagreements(first.samples, second.samples, kind, metric)
            found.counts[f"{i} {j}"] = len(different)
            found.pairs[f"{i} {j}"] = [one.id for one in different[:most]]
    wanted = {one for ids in found.pairs.values() for one in ids}
    if wanted:
        found.items = {item.id: item_texts(item) for item in board.tasks[name].items() if item.id in wanted}
    for one in asked:
        samples = [] if one is None else [sample for sample in one.samples if sample["id"] in wanted]
        found.answers.append({str(sample["id"]): answer(sample, kind, metric) for sample in samples})
    return found


def item_texts(item: Item) -> dict[str, Any]:
    """The texts of an item, without its shots."""
    made: dict[str, Any] = {"context": last(item.context), "choices": [first(c) for c in item.choices]}
    if item.contexts:
        made["contexts"] = [last(context) for context in item.contexts]
    if item.gold is not None:
        made["gold"] = item.gold
    if item.text:
        made["text"] = first(item.text)
    return made


def answer(sample: Sample, kind: Kind, metric: str) -> dict[str, Any]:
    """What a model made of an item: the value of each choice as it is compared, or the text that it wrote."""
    made: dict[str, Any] = {"value": round(value_of(sample, kind, metric), 4)}
    if kind in ("choice", "pair") and metric != BITS_PER_BYTE:
        made["scores"] = [round(normalized(choice, metric), 4) for choice in sample["choices"]]  # type: ignore[arg-type]
    if sample.get("text") is not None:
        made["text"] = first(sample["text"])
    return made


def first(text: str) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def last(text: str) -> str:
    """The end of a text that is too long."""
    return text if len(text) <= LONGEST else "… " + text[-LONGEST:]


def as_data(shown: Mapping[str, ShownItems], tasks: Sequence[str]) -> dict[str, Any]:
    """What page.js reads of the items."""
    return {name: vars(shown[name]) for name in tasks if shown[name].pairs}
