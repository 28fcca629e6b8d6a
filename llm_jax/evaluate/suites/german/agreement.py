"""The verb has the number of its subject, over what stands between them."""

from __future__ import annotations

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, crossed
from llm_jax.evaluate.suites.german.articles import article
from llm_jax.evaluate.suites.german.lexicon import (
    HOW_LONG,
    INTRANSITIVE,
    PERSONS,
    TRANSITIVE,
    WHERE,
)
from llm_jax.evaluate.suites.german.subjects import many, one
from llm_jax.evaluate.suites.words import rows

OPENING_ACTS = tuple(
    (singular, plural, " ".join(rest))
    for singular, plural, *rest in rows("""
    öffnet öffnen das Fenster
    trinkt trinken eine Tasse Tee
    liest lesen die Zeitung
    nimmt nehmen den Schlüssel
    schließt schließen die Tür
    kauft kaufen ein Brot
    schreibt schreiben einen Brief
    verlässt verlassen das Haus
    isst essen einen Apfel
    holt holen den Koffer
    sucht suchen die Brille
    zählt zählen das Geld
    kommt kommen nach Hause
    setzt setzen den Hut auf
    """)
)
"""Not hören, which may have an infinitive beside its object ("hört ein Geräusch und singen")."""


def subject_verb_agreement(draws: Draws) -> Crossed:
    """The verb right after its subject."""
    noun, verb, where = draws.one_of(PERSONS), draws.one_of(INTRANSITIVE), draws.one_of(WHERE)
    return crossed(f"{one(draws, noun)} _ {where}.", f"{many(draws, noun)} _ {where}.", *verb)


def agreement_across_prepositional_phrase(draws: Draws) -> Crossed:
    """The verb after a prepositional phrase whose noun has the other number."""
    noun = draws.one_of(PERSONS)
    other = draws.one_of([person for person in PERSONS if person != noun])
    preposition = draws.one_of(("neben", "hinter", "vor"))  # with mit, a plural verb is rare, but no mistake
    other_one = f"{article('der', other.gender, 'dative')} {other.singular}"
    when = draws.one_of(HOW_LONG)
    return crossed(
        f"{one(draws, noun)} {preposition} den {other.dative_plural} _ {when}.",
        f"{many(draws, noun)} {preposition} {other_one} _ {when}.",
        *draws.one_of(INTRANSITIVE),
    )


def agreement_across_relative_clause(draws: Draws) -> Crossed:
    """The verb after a relative clause whose subject and verb have the other number."""
    noun = draws.one_of(PERSONS)
    other = draws.one_of([person for person in PERSONS if person != noun])
    inner, outer, where = draws.one_of(TRANSITIVE), draws.one_of(INTRANSITIVE), draws.one_of(WHERE)
    relative = article("der", noun.gender, "accusative")
    inner_one = f"{article('der', other.gender, 'nominative')} {other.singular}"
    return crossed(
        f"{one(draws, noun)}, {relative} die {other.plural} {inner.plural}, _ {where}.",
        f"{many(draws, noun)}, die {inner_one} {inner.singular}, _ {where}.",
        *outer,
    )


def agreement_in_coordination(draws: Draws) -> Crossed:
    """The second of two verbs of one subject."""
    noun, where = draws.one_of(PERSONS), draws.one_of(WHERE)
    singular, plural, rest = draws.one_of(OPENING_ACTS)
    return crossed(
        f"{one(draws, noun)} {singular} {rest} und _ {where}.",
        f"{many(draws, noun)} {plural} {rest} und _ {where}.",
        *draws.one_of(INTRANSITIVE),
    )
