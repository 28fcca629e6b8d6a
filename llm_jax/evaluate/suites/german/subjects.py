"""Subjects in both numbers."""

from __future__ import annotations

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.german.articles import BOTH, article
from llm_jax.evaluate.suites.german.lexicon import NAMES, PERSONS, GermanNoun

ONE_EACH = ("Vater", "Mutter")
"""Persons of whom there is one: "meine Mütter" is rare."""


def word_for_several(draws: Draws, noun: GermanNoun) -> str:
    """An article for a plural: a word for `article`."""
    return str(draws.one_of(("der", "dies") if noun.singular in ONE_EACH else BOTH))


def one(draws: Draws, noun: GermanNoun) -> str:
    """A noun as a singular subject: "dieser Lehrer"."""
    return f"{article(draws.one_of(BOTH), noun.gender, 'nominative')} {noun.singular}"


def many(draws: Draws, noun: GermanNoun) -> str:
    """A noun as a plural subject: "meine Lehrer"."""
    return f"{article(word_for_several(draws, noun), 'plural', 'nominative')} {noun.plural}"


def someone(draws: Draws) -> str:
    """A name, or a singular subject."""
    return str(draws.one_of((draws.one_of(NAMES), one(draws, draws.one_of(PERSONS)))))
