"""Which word goes on, from documents of the reader's choice: a run's own held-out text, for instance.

The words of four places of one document are each other's answers, all about as frequent in the documents,
and with the same kind of first letter: frequency alone is right in one of four.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import item_id
from llm_jax.evaluate.tasks.task import Item

TOGETHER = 4
PER_DOCUMENT = 5
"""Crossings of one document at most."""
CONTEXT = (120, 600)
"""Least and most characters before the word."""
WORD = re.compile(r"(?<=\S )[^\W\d_]{3,}(?![\w'’-])")
"""A word of at least three letters after a space and something else."""


class ClozePlace(NamedTuple):
    """A word and where it begins in its document."""

    start: int
    word: str


def cloze_items(documents: Iterable[str], seed: int, count: int, name: str = "cloze") -> list[Item]:
    """At most `count` items, as many as the documents give: choices of a word, chance 1/4.

    Items of a document have the same `source`. The result depends on documents, their order, and seed.
    """
    texts = list(documents)
    places = [list(places_of(text)) for text in texts]
    frequency = Counter(place.word for found in places for place in found)
    items: list[Item] = []
    for number, (text, found) in enumerate(zip(texts, places, strict=True)):
        for crossing in crossings_of(found, frequency, Draws(f"{name} {seed} {number}")):
            if len(items) >= count:
                return items[:count]
            choices = tuple(f" {place.word}" for place in crossing)
            for gold, place in enumerate(crossing):
                items.append(
                    Item(
                        id=item_id(name, len(items) // TOGETHER, gold),
                        context=context_of(text, place.start),
                        choices=choices,
                        gold=gold,
                        source=f"document {number}",
                    )
                )
    return items[:count]


def places_of(text: str) -> Iterator[ClozePlace]:
    """The places of a document that have enough before them."""
    for match in WORD.finditer(text, min(CONTEXT[0], len(text))):
        yield ClozePlace(match.start(), match[0])


def crossings_of(
    places: list[ClozePlace], frequency: Counter[str], draws: Draws
) -> Iterator[tuple[ClozePlace, ...]]:
    """Groups of `TOGETHER` places with different words of one class, at most `PER_DOCUMENT`."""
    left = list(places)
    classes: dict[tuple[int, bool], list[ClozePlace]] = {}
    made = 0
    while left and made < PER_DOCUMENT:
        place = left.pop(draws.below(len(left)))
        kind = (frequency[place.word].bit_length(), place.word[0].isupper())
        group = classes.setdefault(kind, [])
        if all(place.word.lower() != other.word.lower() for other in group):
            group.append(place)
        if len(group) == TOGETHER:
            made += 1
            yield tuple(classes.pop(kind))


def context_of(text: str, start: int) -> str:
    """What stands before a place, from the beginning of a word on, without the space before the place."""
    begin = max(0, start - CONTEXT[1])
    if begin:
        space = re.search(r"\s", text[begin:start])
        begin += space.end() if space else 0
    return text[begin : start - 1]
