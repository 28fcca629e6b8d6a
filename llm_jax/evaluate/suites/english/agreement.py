"""Verbs, determiners and reflexive pronouns have the number, person and gender of their noun."""

from __future__ import annotations

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, crossed
from llm_jax.evaluate.suites.english.lexicon import (
    HOW_OFTEN,
    INTRANSITIVE,
    MASS,
    MEN,
    MEN_NAMES,
    NAMES,
    PAST,
    PERSONS,
    THINGS,
    TRANSITIVE,
    WHERE,
    WITH_A,
    WITH_AN,
    WOMEN,
    WOMEN_NAMES,
)
from llm_jax.evaluate.suites.words import phrases, rows

OWNERS = ("the", "my", "our", "her", "his", "their")
SINGULAR = ("this", "that", "every", "one", "another", "each")
PLURAL = ("these", "those", "many", "several", "two", "three", "both", "few")
BOUGHT = phrases(
    "bought, found, sold, needed, lost, painted, described, repaired, kept, wanted, borrowed, noticed"
)
OPENING_ACTS = tuple(
    (singular, plural, " ".join(rest))
    for singular, plural, *rest in rows("""
    opens open the window
    drinks drink a cup of tea
    reads read the newspaper
    takes take the key
    closes close the door
    buys buy some bread
    writes write a letter
    leaves leave the house
    eats eat an apple
    looks look for the key
    hears hear a noise
    comes come home late
    """)
)
THEN = tuple(
    (singular, plural)
    for singular, plural in (
        phrase.split("/")
        for phrase in phrases("""sings/sing, sits/sit,
hesitates/hesitate, speaks/speak, weeps/weep, prays/pray, argues/argue, complains/complain, relaxes/relax,
kneels/kneel, listens/listen, falls asleep/fall asleep, begins to cry/begin to cry,
begins to laugh/begin to laugh, gets angry/get angry, has breakfast/have breakfast""")
    )
)
"""Verbs that are no nouns: "she takes the key and paints" takes two things."""
HURT = phrases("""hurt, blamed, praised, saw, saved, hated, admired, introduced, painted, described,
defended, protected, helped, entertained, watched, embarrassed""")
REMEMBERED = phrases(
    "remembered, heard, noticed, understood, believed, forgot, knew, mentioned, discovered, feared, saw"
)
"""Go with a person, and with a clause without that."""
PREDICATES = phrases("""looked tired, had a cold, lived here, slept badly, sang well, stayed at home, came
late, lost the key, knew the way, wrote a letter, fell asleep, broke a leg, felt sad""")
"""Not what a passive participle may begin, too ("she saw them worked hard")."""
PRONOUNS = (("him", "he"), ("her", "she"), ("them", "they"), ("us", "we"), ("me", "I"))

TAGGED = tuple(
    (f"{auxiliary}n't", " ".join(rest).replace("+", auxiliary))
    for auxiliary, *rest in rows("""
    is + very tired
    is + at home now
    is + waiting outside
    does always works hard
    does lives near the lake
    does likes music
    has + read the book
    has + seen the film
    has + been to Rome
    was + late yesterday
    was + sleeping at noon
    did bought the house
    did wrote a letter
    has + lost the key
    was + ill last week
    does speaks Spanish
    did fell asleep
    """)
)
"""(negated auxiliary of the tag, what is said of the subject). No modal verbs: "she should stay, couldn't
she?" may be a question of its own."""


def subject_verb_agreement(draws: Draws) -> Crossed:
    """The verb right after its subject."""
    noun, owner, where = draws.one_of(PERSONS), draws.one_of(OWNERS), draws.one_of(WHERE)
    return crossed(
        f"{owner} {noun.singular} _ {where}.",
        f"{owner} {noun.plural} _ {where}.",
        *draws.one_of(INTRANSITIVE),
    )


def agreement_across_prepositional_phrase(draws: Draws) -> Crossed:
    """The verb after a prepositional phrase whose noun has the other number."""
    noun, owner, when = (draws.one_of(of) for of in (PERSONS, OWNERS, HOW_OFTEN))
    other = draws.one_of([person for person in PERSONS if person != noun])
    near = draws.one_of(("near", "behind", "next to", "in front of", "beside"))  # with: "... are" is heard
    return crossed(
        f"{owner} {noun.singular} {near} the {other.plural} _ {when}.",
        f"{owner} {noun.plural} {near} the {other.singular} _ {when}.",
        *draws.one_of(INTRANSITIVE),
    )


def agreement_across_relative_clause(draws: Draws) -> Crossed:
    """The verb after a relative clause whose subject and verb have the other number."""
    noun, owner, where = (draws.one_of(of) for of in (PERSONS, OWNERS, WHERE))
    other = draws.one_of([person for person in PERSONS if person != noun])
    inner = draws.one_of(TRANSITIVE)
    return crossed(
        f"{owner} {noun.singular} that the {other.plural} {inner.plural} _ {where}.",
        f"{owner} {noun.plural} that the {other.singular} {inner.singular} _ {where}.",
        *draws.one_of(INTRANSITIVE),
    )


def agreement_in_coordination(draws: Draws) -> Crossed:
    """The second of two verbs of one subject."""
    noun, owner, where = draws.one_of(PERSONS), draws.one_of(OWNERS), draws.one_of(WHERE)
    singular, plural, rest = draws.one_of(OPENING_ACTS)
    return crossed(
        f"{owner} {noun.singular} {singular} {rest} and _ {where}.",
        f"{owner} {noun.plural} {plural} {rest} and _ {where}.",
        *draws.one_of(THEN),
    )


def determiner_noun_number(draws: Draws) -> Crossed:
    """The number of a noun after this, every, many, two."""
    start = f"{draws.one_of(NAMES)} {draws.one_of(BOUGHT)}"
    when = draws.one_of(PAST)
    return crossed(
        f"{start} {draws.one_of(SINGULAR)} _ {when}.", f"{start} {draws.one_of(PLURAL)} _ {when}.",
        *draws.one_of(THINGS),
    )  # fmt: skip


def demonstrative_agreement(draws: Draws) -> Crossed:
    """This and that before a singular, these and those before a plural."""
    start, when = f"{draws.one_of(NAMES)} {draws.one_of(BOUGHT)}", draws.one_of(PAST)
    return crossed(
        f"{start} _ {draws.one_of(THINGS).singular} {when}.",
        f"{start} _ {draws.one_of(THINGS).plural} {when}.",
        *draws.one_of((("this", "these"), ("that", "those"))),
    )  # fmt: skip


def a_or_an(draws: Draws) -> Crossed:
    """An before the sound of a vowel, a before others, whatever the letter (an hour, a university)."""
    start, when = f"{draws.one_of(NAMES)} {draws.one_of(SAW_THINGS)} _", draws.one_of(PAST)
    return crossed(
        f"{start} {draws.one_of(WITH_A)} {when}.", f"{start} {draws.one_of(WITH_AN)} {when}.", "a", "an"
    )


SAW_THINGS = phrases(
    "saw, mentioned, described, remembered, needed, imagined, drew, wanted, noticed, dreamed of"
)


def much_or_many(draws: Draws) -> Crossed:
    """Much before what is not counted, many before what is."""
    name, act, when = draws.one_of(NAMES), draws.one_of(BOUGHT_BASE), draws.one_of(PAST)
    start, end = draws.one_of(
        (
            ("how _", f"did {name} {act} {when}?"),
            (f"{name} did not {act} _", f"{when}."),
            (f"{name} asked how _", f"we had {when}."),
            (f"{when} there was a shop with so _", f"that {name} was surprised."),
        )
    )
    return crossed(
        f"{start} {draws.one_of(MASS)} {end}", f"{start} {draws.one_of(THINGS).plural} {end}", "much", "many"
    )


BOUGHT_BASE = phrases("buy, find, sell, need, lose, see, keep, want, bring, carry")


def reflexive_gender(draws: Draws) -> Crossed:
    """Himself or herself, by the gender of the subject."""
    verb, when = draws.one_of(HURT), draws.one_of(PAST)
    owner = draws.one_of(("the", "my", "our"))
    he = draws.one_of((draws.one_of(MEN_NAMES), f"{owner} {draws.one_of(MEN).singular}"))
    she = draws.one_of((draws.one_of(WOMEN_NAMES), f"{owner} {draws.one_of(WOMEN).singular}"))
    return crossed(f"{he} {verb} _ {when}.", f"{she} {verb} _ {when}.", "himself", "herself")


def reflexive_number(draws: Draws) -> Crossed:
    """Themselves for several, himself or herself for one."""
    verb, when, owner = draws.one_of(HURT), draws.one_of(PAST), draws.one_of(("the", "our", "your"))
    group, own = draws.one_of(((MEN, "himself"), (WOMEN, "herself")))
    one, several = draws.one_of(group).singular, draws.one_of(group).plural
    return crossed(
        f"{owner} {one} {verb} _ {when}.", f"{owner} {several} {verb} _ {when}.", own, "themselves"
    )


def pronoun_case(draws: Draws) -> Crossed:
    """Him as the object of a verb, he as the subject of a clause behind the same verb."""
    name, verb, when = draws.one_of(NAMES), draws.one_of(REMEMBERED), draws.one_of(PAST)
    return crossed(
        f"{name} {verb} _ {when}.",
        f"{name} {verb} _ {draws.one_of(PREDICATES)} {when}.",
        *draws.one_of(PRONOUNS),
    )


def relative_animacy(draws: Draws) -> Crossed:
    """Who for persons, which for things."""
    start = draws.one_of(("here is", "we found", "I remember", "they mentioned", "nobody forgot", "I saw"))
    persons = [
        person.singular for person in PERSONS if person.singular != "child"
    ]  # the child which: is heard
    clause = draws.one_of(RELATIVE_CLAUSES)
    return crossed(
        f"{start} the {draws.one_of(persons)} _ {clause}.",
        f"{start} the {draws.one_of(THINGS).singular} _ {clause}.",
        "who",
        "which",
    )


RELATIVE_CLAUSES = phrases("""came from Berlin, was in the garden, disappeared last week, arrived
yesterday, was lost, fell into the river, had to stay here, belongs to this house, stood at the door, was
left behind, was not there, is still outside""")
"""Not what may be said of the whole sentence ("I saw the teacher, which surprised everybody")."""


def tag_questions(draws: Draws) -> Crossed:
    """The tag repeats the auxiliary of the sentence, or has a form of do."""
    pronoun, noun = draws.one_of((("he", draws.one_of(MEN)), ("she", draws.one_of(WOMEN))))
    first = draws.one_of(TAGGED)
    second = draws.one_of([tagged for tagged in TAGGED if tagged[0] != first[0]])
    owner = draws.one_of(("the", "my", "our", "your"))
    contexts = (f"{owner} {noun.singular} {said}, _ {pronoun}?" for _, said in (first, second))
    return Crossed(tuple(contexts), (first[0], second[0]))
