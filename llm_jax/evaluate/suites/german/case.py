"""Prepositions, verbs and positions govern the case of a noun phrase."""

from __future__ import annotations

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, crossed
from llm_jax.evaluate.suites.german.articles import SINGULAR, article
from llm_jax.evaluate.suites.german.lexicon import (
    INTRANSITIVE,
    MEN,
    NAMES,
    PERSONS,
    PLACES,
    THINGS,
    TRULY,
    WEAK_NOUNS,
    WHEN,
    WHERE,
)
from llm_jax.evaluate.suites.german.subjects import someone, word_for_several
from llm_jax.evaluate.suites.words import phrases, rows

DONE_WITH_OTHERS = tuple(
    (participle, tuple(dative.split(",")), tuple(accusative.split(",")))
    for participle, dative, accusative in rows("""
    gearbeitet mit,bei für,gegen
    gespielt mit,bei gegen,für
    gesungen mit,bei,nach für
    gekämpft mit gegen,für,um
    getanzt mit,nach für
    gekocht mit,bei,nach für
    gelernt mit,von,bei für
    gestritten mit um
    gesprochen mit,von,nach für,gegen
    gestimmt mit für,gegen
    geübt mit,bei für
    geweint mit,bei um
    """)
)
"""(participle, prepositions with the dative, those with the accusative) that make sense together. Not ohne:
with a dative it is old, and heard in Austria."""

HELPED = phrases("""geholfen, gedankt, vertraut, gratuliert, gedroht, misstraut, gehorcht, zugehört,
zugestimmt, widersprochen, geschmeichelt, geschadet, zugezwinkert, nachgetrauert, gedient, zugesehen,
beigestanden, nachgewinkt""")
"""Participles of verbs with a dative, that form the perfect with haben and take no accusative besides or
instead, as glauben, verzeihen, winken and applaudieren do."""
SEEN = phrases("""gekannt, gesehen, besucht, gesucht, geliebt, gefragt, gelobt, bewundert, begrüßt,
beobachtet, getroffen, verstanden, vermisst, geweckt, verfolgt, eingeladen, unterstützt, fotografiert,
beleidigt""")
"""Participles of verbs with an accusative, and never a dative (anrufen has one in the south)."""
HELPS = phrases("""hilft, dankt, vertraut, gratuliert, misstraut, gehorcht, widerspricht, droht,
schmeichelt, dient, schadet""")
SEES = phrases("""kennt, sieht, besucht, sucht, liebt, fragt, lobt, bewundert, begrüßt, beobachtet,
versteht, vermisst, unterstützt, trifft""")
ASKED = (("_ hat", "?"), ("weißt du, _", " hat?"), ("ich weiß nicht, _", " hat."), ("sag mir, _", " hat."))
BELONGS = (("gehört", ""), ("gehört", " allein"), ("gefällt", ""), ("gefällt", " nicht"))
OWNED = tuple(
    (f"{article_} {thing}", " ".join(state))
    for article_, thing, *state in rows("""
    Der Hut ist neu
    Die Brille ist kaputt
    Das Haus steht leer
    Die Wohnung liegt im Zentrum
    Der Koffer ist schwer
    Das Auto ist schmutzig
    Der Brief liegt auf dem Tisch
    Der Garten ist groß
    Das Fahrrad steht im Hof
    Die Tasche ist leer
    Der Hund schläft
    Die Uhr geht falsch
    Das Zimmer ist kalt
    Der Mantel ist warm
    Der Laden ist geschlossen
    Die Jacke riecht gut
    Das Bild hängt im Flur
    """)
)


def preposition_case(draws: Draws) -> Crossed:
    """The article after a preposition with the dative, and after one with the accusative."""
    participle, with_dative, with_accusative = draws.one_of(DONE_WITH_OTHERS)
    noun, word, name, when = (draws.one_of(of) for of in (PERSONS, SINGULAR, NAMES, WHEN))
    return crossed(
        f"{name} hat {when} {draws.one_of(with_dative)} _ {noun.singular} {participle}.",
        f"{name} hat {when} {draws.one_of(with_accusative)} _ {noun.singular} {participle}.",
        article(word, noun.gender, "dative"),
        article(word, noun.gender, "accusative"),
    )


def dative_plural(draws: Draws) -> Crossed:
    """The -n of a plural noun after a preposition with the dative, and none with the accusative."""
    participle, with_dative, with_accusative = draws.one_of(DONE_WITH_OTHERS)
    noun = draws.one_of([noun for noun in PERSONS if noun.plural != noun.dative_plural])
    word, name, when = word_for_several(draws, noun), draws.one_of(NAMES), draws.one_of(WHEN)
    dative = f"{draws.one_of(with_dative)} {article(word, 'plural', 'dative')}"
    accusative = f"{draws.one_of(with_accusative)} {article(word, 'plural', 'accusative')}"
    return crossed(
        f"{name} hat {when} {dative} _ {participle}.",
        f"{name} hat {when} {accusative} _ {participle}.",
        noun.dative_plural,
        noun.plural,
    )


def two_way_prepositions(draws: Draws) -> Crossed:
    """Dative for where a thing is, accusative for where it is put."""
    thing = draws.one_of([thing for thing in THINGS if thing.small])
    gender, place, prepositions = draws.one_of(PLACES)
    if thing.posture == "steht":  # auf den Tisch stehen: to be fond of it
        prepositions = tuple(preposition for preposition in prepositions if preposition != "auf")
    preposition, name, word = draws.one_of(prepositions), draws.one_of(NAMES), draws.one_of(SINGULAR)
    stands, put = {"steht": ("gestanden", "gestellt"), "liegt": ("gelegen", "gelegt")}[thing.posture]
    subject = f"{article('der', thing.gender, 'nominative')} {thing.singular}"
    object_ = f"{article('der', thing.gender, 'accusative')} {thing.singular}"
    contexts = draws.one_of(
        (
            (
                f"{subject} hat lange {preposition} _ {place} {stands}.",
                f"{name} hat {object_} {preposition} _ {place} {put}.",
            ),
            (
                f"{subject} {thing.posture} {preposition} _ {place}.",
                f"{name} {put.removeprefix('ge')} {object_} {preposition} _ {place}.",
            ),
        )
    )
    return Crossed(contexts, (article(word, gender, "dative"), article(word, gender, "accusative")))


def verb_case(draws: Draws) -> Crossed:
    """The article of an object after a verb with the dative, and after one with the accusative."""
    # of women and children the accusative is the nominative too, and could be the subject behind its object:
    # "Karl hat oft die Freundin geholfen", as a name has no case
    noun, word, name = draws.one_of(MEN), draws.one_of(SINGULAR), draws.one_of(NAMES)
    if draws.below(2):
        when = draws.one_of(WHEN)
        before, dative, accusative = f"{name} hat {when} _ {noun.singular}", HELPED, SEEN
        contexts = (f"{before} {draws.one_of(dative)}.", f"{before} {draws.one_of(accusative)}.")
    else:
        after = f"_ {noun.singular} {draws.one_of(TRULY)}."
        contexts = (f"{name} {draws.one_of(HELPS)} {after}", f"{name} {draws.one_of(SEES)} {after}")
    return crossed(*contexts, article(word, "m", "dative"), article(word, "m", "accusative"))


def question_word_case(draws: Draws) -> Crossed:
    """Wem before a verb with the dative, wen before one with the accusative."""
    subject, when = someone(draws), draws.one_of(WHEN)
    before, end = draws.one_of(ASKED)
    dative, accusative = draws.one_of(HELPED), draws.one_of(SEEN)
    start = f"{before} {subject} {when}"
    return crossed(f"{start} {dative}{end}", f"{start} {accusative}{end}", "wem", "wen")


def genitive_ending(draws: Draws) -> Crossed:
    """The -s of a genitive, and none in the dative."""
    noun = draws.one_of([noun for noun in PERSONS if noun.gender != "f"])
    word, (thing, state) = draws.one_of((*SINGULAR, "ihr", "sein")), draws.one_of(OWNED)
    verb, rest = draws.one_of(BELONGS)
    return crossed(
        f"{thing} {article(word, noun.gender, 'genitive')} _ {state}.",
        f"{thing} {verb} {article(word, noun.gender, 'dative')} _{rest}.",
        noun.genitive,
        noun.singular,
    )


def weak_nouns(draws: Draws) -> Crossed:
    """The -n of a weak noun as an object, and none as a subject."""
    nominative, oblique = draws.one_of(WEAK_NOUNS)
    word, name, where = draws.one_of(SINGULAR), draws.one_of(NAMES), draws.one_of(WHERE)
    verb, case = draws.one_of(((draws.one_of(SEES), "accusative"), (draws.one_of(HELPS), "dative")))
    return crossed(
        f"{article(word, 'm', 'nominative')} _ {draws.one_of(INTRANSITIVE).singular} {where}.",
        f"{name} {verb} {article(word, 'm', case)} _ {draws.one_of(TRULY)}.",
        nominative,
        oblique,
    )


def relative_pronoun_case(draws: Draws) -> Crossed:
    """The case of a relative pronoun in its own clause."""
    outer, where = draws.one_of(INTRANSITIVE).singular, draws.one_of(WHERE)
    other, word = draws.one_of(MEN), draws.one_of(SINGULAR[1:])  # der, den would be a pronoun's own form
    subject = f"{article(word, 'm', 'nominative')} {other.singular}"
    if draws.below(2):
        noun = draws.one_of(MEN)
        object_ = f"{article(word, 'm', 'accusative')} {other.singular}"
        sees = draws.one_of(SEES)
        inner = (f"{object_} {sees}", f"{subject} {sees}")
        cases = ("nominative", "accusative")
    else:
        noun = draws.one_of(PERSONS)
        inner = (f"{subject} {draws.one_of(HELPS)}", f"{subject} {draws.one_of(SEES)}")
        cases = ("dative", "accusative")
    head = f"{article('der', noun.gender, 'nominative')} {noun.singular}"
    return crossed(
        *(f"{head}, _ {clause}, {outer} {where}." for clause in inner),
        *(article("der", noun.gender, case) for case in cases),
    )
