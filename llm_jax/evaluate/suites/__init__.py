"""Generated tasks that come with the project: every item is a function of a seed, and needs no data.

    from llm_jax.evaluate.suites import SUITES
    items = SUITES["german_verb_case"].items(seed=1)

docs/suites.md is their card: how they are made, what was checked, and what they don't show.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from llm_jax.evaluate.suites import english, german, numbers, python_doctests, python_expressions, recall
from llm_jax.evaluate.suites.crossed import (
    CROSSINGS,
    Phenomenon,
    answer_items,
    crossings,
    sentence_items,
    version_of,
)
from llm_jax.evaluate.suites.words import phrases
from llm_jax.evaluate.tasks.task import Item, Kind, Task

SEED = 0
"""Of the tasks under `tasks=`."""
SHOTS = 16
"""Items that are not scored, for prompts with examples."""
REVISED: Mapping[str, int] = dict.fromkeys(
    phrases("""german_agreement_across_prepositional_phrase, german_agreement_in_coordination,
    german_article_gender, german_adjective_endings,
    german_comparison_words, german_preposition_case, german_two_way_prepositions, german_verb_case,
    german_question_word_case, german_relative_pronoun_case, german_dative_plural, german_weak_nouns,
    german_verb_second, german_verb_last_in_subordinate_clauses, german_participle_or_infinitive,
    german_infinitive_with_zu, german_perfect_auxiliary, german_reflexive_pronouns,
    english_subject_verb_agreement, english_agreement_across_prepositional_phrase,
    english_agreement_across_relative_clause, english_agreement_in_coordination, english_much_or_many,
    english_reflexive_gender, english_reflexive_number, english_pronoun_case, english_relative_animacy,
    english_tag_questions, english_past_or_participle, english_infinitive_or_gerund, english_filler_gap,
    english_embedded_question_order, english_comparison_words, english_adjective_or_adverb,
    english_transitivity"""),
    2,
)
"""Suite → `Task.version`, where its items are other ones than at first."""
PYTHON_CROSSINGS = 40
"""Of each kind of expression: 80 items."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """Items of one kind that a seed decides."""

    name: str
    language: str
    kind: Kind
    group: str
    """On the command line."""
    about: str
    make: Callable[[int], Iterable[Item]]
    """seed → items."""
    chance: float = 0.5
    shots: bool = False
    """Whether other items of the suite can stand before a question."""

    def items(self, seed: int = SEED) -> list[Item]:
        """All items of a seed, in an order in which the first few are of all kinds."""
        return list(self.make(seed))

    def version(self, seed: int = SEED) -> str:
        """A hash of all items of a seed."""
        return version_of(self.items(seed))

    def task(self) -> Task:
        """The suite as it is found by tasks=NAME."""
        return Task(
            name=self.name,
            language=self.language,
            kind=self.kind,
            items=self.items,
            version=REVISED.get(self.name, 1),
            metric="raw",
            chance=self.chance,
            groups=(self.group,),
            about=self.about,
            examples=self.examples if self.shots else None,
            separator="\n",
        )

    def examples(self) -> Sequence[Item]:
        """Items of another seed for prompts, none of whose questions is among the scored ones."""
        asked = {item.context for item in self.items()}
        new = [item for item in self.items(SEED + 1)[: 4 * SHOTS] if item.context not in asked]
        return [dataclasses.replace(item, id=f"shot {item.id}") for item in new[:SHOTS]]


def grammar(language: str, group: str, phenomena: Mapping[str, Phenomenon]) -> Iterator[Suite]:
    """A suite of sentence pairs for each phenomenon."""
    for name, phenomenon in phenomena.items():
        full = f"{group}_{name}"
        yield Suite(
            full, language, "pair", group, about(phenomenon), functools.partial(sentences, full, phenomenon)
        )


def sentences(name: str, phenomenon: Phenomenon, seed: int) -> Iterator[Item]:
    """500 pairs of sentences."""
    return sentence_items(name, crossings(name, phenomenon, seed))


def number_suites() -> Iterator[Suite]:
    """A suite for each kind of question about numbers and each language."""
    for name, phenomenon in numbers.PHENOMENA.items():
        full, language = f"numbers_{name}", name[:2]
        make = functools.partial(questions, full, phenomenon)
        yield Suite(full, language, "choice", "numbers", about(phenomenon), make, shots=True)


def questions(name: str, phenomenon: Phenomenon, seed: int) -> Iterator[Item]:
    """500 questions with two answers each."""
    return answer_items(name, crossings(name, phenomenon, seed))


def expressions(seed: int) -> Iterator[Item]:
    """Python expressions, each kind in turn."""
    made = [
        answer_items(f"python_{name}", crossings(f"python_{name}", phenomenon, seed, PYTHON_CROSSINGS))
        for name, phenomenon in python_expressions.PHENOMENA.items()
    ]
    for pairs in zip(*(pairwise(items) for items in made), strict=True):
        for pair in pairs:
            for item in pair:
                yield dataclasses.replace(item, group=item.id.partition("/")[0].removeprefix("python_"))


def pairwise(items: Iterator[Item]) -> Iterator[tuple[Item, Item]]:
    """The two items of each crossing."""
    return zip(items, items, strict=True)


def doctests(seed: int) -> Iterator[Item]:
    """The examples of the standard library."""
    return answer_items("python_doctests", python_doctests.doctests(seed))


def recalled(name: str, draw: Callable[..., recall.Crossed], seed: int) -> Iterator[Item]:
    """Items over all distances and lengths; each knows its place on the map."""
    cells = recall.recall_map(name, draw, seed)
    for number, (cell, crossing) in enumerate(cells):
        for item in answer_items(name, [crossing]):
            place = f"{name}/{number:04d}"
            yield dataclasses.replace(
                item, id=place + item.id[-1], source=place, group=cell.name, more=cell._asdict()
            )


def about(phenomenon: Phenomenon) -> str:
    """What a phenomenon tests, as its docstring says."""
    return (phenomenon.__doc__ or "").strip()


def all_suites() -> Iterator[Suite]:
    """Every suite, in the order of the docs."""
    yield from grammar("de", "german", german.PHENOMENA)
    yield from grammar("en", "english", english.PHENOMENA)
    yield from number_suites()
    yield Suite(
        "python_expressions",
        "code",
        "choice",
        "code",
        "What Python prints for a line.",
        expressions,
        shots=True,
    )
    yield Suite(
        "python_doctests", "code", "choice", "code",
        "The output of an example in the installed Python's standard library.", doctests,
        chance=1 / python_doctests.TOGETHER,
    )  # fmt: skip
    yield Suite(
        "copying", "", "choice", "recall", "The rest of a list of words that was read before.",
        functools.partial(recalled, "copying", recall.copying),
    )  # fmt: skip
    yield Suite(
        "recall_by_name", "", "choice", "recall", "The list of words of a person, which was read before.",
        functools.partial(recalled, "recall_by_name", recall.recall),
    )  # fmt: skip


SUITES: Mapping[str, Suite] = {suite.name: suite for suite in all_suites()}
TASKS: tuple[Task, ...] = tuple(suite.task() for suite in SUITES.values())
"""For the registry."""

__all__ = ["CROSSINGS", "REVISED", "SUITES", "TASKS", "Suite"]
