"""Items in which every answer is right once and wrong once: what no model can guess from the words alone.

    context 1   "Der Lehrer _ im Garten."      lacht (right)    lachen (wrong)
    context 2   "Die Lehrer _ im Garten."      lacht (wrong)    lachen (right)

A model whose score of a sentence is a sum over its words, whatever their frequencies and lengths, prefers the
same alternative in both contexts, so it is right in just one of the two. With k contexts and k alternatives
it is right in one of k. This is why a unigram model has exactly the chance's score on all suites, and an
untrained model about that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.tasks.task import Item

CROSSINGS = 250
"""Of each phenomenon: with two contexts each, 500 items."""
ATTEMPTS = 60
"""Draws for each crossing, before a phenomenon is said to have too few."""
SLOT = "_"
"""Where the alternative goes in a context of `sentence_items`."""


class Crossed(NamedTuple):
    """Contexts and alternatives: alternatives[i] is right in contexts[i], and wrong in all others."""

    contexts: tuple[str, ...]
    alternatives: tuple[str, ...]


Phenomenon = Callable[[Draws], Crossed]
"""Draws one crossing. Its docstring says in one sentence what is tested."""


def crossed(first: str, second: str, fits_first: str, fits_second: str) -> Crossed:
    """The usual crossing: two contexts and what fits each."""
    return Crossed((first, second), (fits_first, fits_second))


def crossings(name: str, phenomenon: Phenomenon, seed: int, count: int = CROSSINGS) -> Iterator[Crossed]:
    """Crossings of a phenomenon, no context twice with its right alternative: a function of name and seed.

    Raises ValueError where the phenomenon has fewer than `count` of them.
    """
    seen: set[tuple[str, str]] = set()
    made = 0
    for attempt in range(count * ATTEMPTS):
        drawn = phenomenon(Draws(f"{name} {seed} {attempt}"))
        right = set(zip(drawn.contexts, drawn.alternatives, strict=True))
        if len(set(drawn.alternatives)) < len(drawn.alternatives) or seen & right:
            continue
        seen |= right
        made += 1
        yield drawn
        if made == count:
            return
    raise ValueError(f"{name}: has only {made} crossings, fewer than the {count} asked for")


def sentence_items(name: str, drawn: Iterable[Crossed]) -> Iterator[Item]:
    """An item for each context: whole sentences to compare, one of them right. The sentences of a crossing
    have the same `source`."""
    for number, crossing in enumerate(drawn):
        for gold, context in enumerate(crossing.contexts):
            yield Item(
                id=item_id(name, number, gold),
                context="",
                choices=tuple(sentence(context, alternative) for alternative in crossing.alternatives),
                gold=gold,
                source=f"{name}/{number:04d}",
            )


def answer_items(name: str, drawn: Iterable[Crossed]) -> Iterator[Item]:
    """An item for each context, with the alternatives as its answers: the answers of a crossing are those of
    all its contexts, in the same order. The items of a crossing have the same `source`."""
    for number, crossing in enumerate(drawn):
        for gold, context in enumerate(crossing.contexts):
            yield Item(
                id=item_id(name, number, gold),
                context=context,
                choices=crossing.alternatives,
                gold=gold,
                source=f"{name}/{number:04d}",
            )


def item_id(name: str, number: int, gold: int) -> str:
    """The id of an item: crossing and context.

    >>> item_id("german_verb_case", 12, 1)
    'german_verb_case/0012b'
    """
    return f"{name}/{number:04d}{'abcdefghijklmnop'[gold]}"


def sentence(context: str, alternative: str) -> str:
    """A context with its slot filled, and a capital letter at the beginning.

    >>> sentence("dort steht _ Tisch.", "der")
    'Dort steht der Tisch.'
    """
    filled = context.replace(SLOT, alternative)
    return filled[0].upper() + filled[1:]


def version_of(items: Iterable[Item]) -> str:
    """The version of generated items: the first 12 hex digits of the sha256 of all that a model sees of them,
    with the right answers."""
    digest = hashlib.sha256()
    for item in items:
        seen = (item.id, item.context, item.choices, item.gold, item.source)
        digest.update(json.dumps(seen, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:12]
