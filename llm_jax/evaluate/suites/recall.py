"""Copying and recall over a distance: which of two lists was it?

    List of Anna: river stone
    List of Paul: moon clock
    (other sentences, `distance` characters)
    List of Anna:          river stone (right)    moon clock (wrong)

`recall` asks by a name; `copying` by the word with which the list began, which must have been seen before
(an induction head does this; Olsson et al. 2022). Both lists are in the context, and each is asked for once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, crossed
from llm_jax.evaluate.suites.english.lexicon import NAMES, PAST, WHERE
from llm_jax.evaluate.suites.words import phrases

DISTANCES = (0, 128, 512, 2048)
"""Characters of other text between list and question, rounded up to whole sentences."""
LENGTHS = (1, 2, 4, 8, 16)
"""Words to be recalled."""
CROSSINGS_PER_CELL = 25
"""Two items each: 50 for each distance and length."""

LIST_WORDS = phrases("""river, stone, moon, clock, sugar, tiger, cloud, bread, piano, sword, glass,
ocean, tower, wheel, grape, crown, flame, horse, knife, lemon, melon, nurse, olive, paper, queen, robot,
snake, train, uncle, violin, wagon, zebra, anchor, bridge, camel, desert, engine, feather, guitar,
hammer, island, jacket, kettle, ladder, marble, nettle, onion, pepper, quilt, rabbit, salmon, turtle,
valley, whistle, barrel, carrot, dragon, eagle, falcon, ginger, honey, ivory, jungle, lantern, mountain,
needle, oyster, pigeon, ribbon, saddle, temple, vinegar""")
"""None is in the sentences between."""
DID = phrases("""walked for an hour, told a long story, slept very badly, wrote to an old friend, lost
an umbrella, waited for the bus, cooked for everybody, was late again, forgot to call, learned to dance,
came home early""")


class RecallCell(NamedTuple):
    """A place on the map."""

    distance: int
    """Characters."""
    length: int
    """Words."""

    @property
    def name(self) -> str:
        """As in results: "distance 128, length 4"."""
        return f"distance {self.distance}, length {self.length}"


def recall(draws: Draws, cell: RecallCell) -> Crossed:
    """The list of a person."""
    first, second = two_lists(draws, cell.length)
    one = draws.one_of(NAMES)
    other = draws.one_of([name for name in NAMES if name != one])
    told = f"List of {one}: {first}\nList of {other}: {second}\n{between(draws, cell.distance)}"
    return crossed(f"{told}List of {one}:", f"{told}List of {other}:", f" {first}", f" {second}")


def copying(draws: Draws, cell: RecallCell) -> Crossed:
    """The rest of a list, from its first word on."""
    first, second = two_lists(draws, cell.length + 1)
    told = f"{first}.\n{second}.\n{between(draws, cell.distance)}"
    (cue_one, _, rest_one), (cue_two, _, rest_two) = first.partition(" "), second.partition(" ")
    return crossed(f"{told}{cue_one}", f"{told}{cue_two}", f" {rest_one}.", f" {rest_two}.")


def two_lists(draws: Draws, length: int) -> tuple[str, str]:
    """Two lists of words, none of which comes twice."""
    words = list(LIST_WORDS)
    chosen = [words.pop(draws.below(len(words))) for _ in range(2 * length)]
    return " ".join(chosen[:length]), " ".join(chosen[length:])


def between(draws: Draws, characters: int) -> str:
    """Sentences of at least so many characters, in one line; nothing for 0."""
    text = ""
    while len(text) < characters:
        when = draws.one_of(PAST)
        text += (
            f"{when[0].upper()}{when[1:]} {draws.one_of(NAMES)} {draws.one_of(DID)} {draws.one_of(WHERE)}. "
        )
    return text.rstrip() + "\n" if text else ""


def recall_map(
    name: str,
    draw: Callable[[Draws, RecallCell], Crossed],
    seed: int,
    count: int = CROSSINGS_PER_CELL,
    distances: tuple[int, ...] = DISTANCES,
    lengths: tuple[int, ...] = LENGTHS,
) -> Iterator[tuple[RecallCell, Crossed]]:
    """`count` crossings for each distance and length, in rounds over all cells, so that the first few hundred
    have some of each."""
    for number in range(count):
        for distance in distances:
            for length in lengths:
                cell = RecallCell(distance, length)
                yield cell, draw(Draws(f"{name} {seed} {number} {distance} {length}"), cell)
