"""Auxiliaries and verbs govern the form of the verb below them; reflexive verbs have their pronoun."""

from __future__ import annotations

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, crossed
from llm_jax.evaluate.suites.german.lexicon import NAMES, PERSONS, SOMETIME
from llm_jax.evaluate.suites.german.subjects import many, one
from llm_jax.evaluate.suites.words import phrases, rows

ACTS = tuple(
    (infinitive, participle, " ".join(object_))
    for infinitive, participle, *object_ in rows("""
    singen gesungen ein Lied
    lesen gelesen das Buch
    schreiben geschrieben einen Brief
    kaufen gekauft ein Brot
    trinken getrunken den Tee
    essen gegessen einen Apfel
    sehen gesehen den Film
    suchen gesucht die Brille
    finden gefunden den Schlüssel
    kochen gekocht eine Suppe
    malen gemalt ein Bild
    öffnen geöffnet das Fenster
    schließen geschlossen die Tür
    nehmen genommen den Bus
    waschen gewaschen das Hemd
    tragen getragen den Koffer
    werfen geworfen den Ball
    bauen gebaut ein Haus
    schneiden geschnitten das Gemüse
    lernen gelernt das Gedicht
    holen geholt die Zeitung
    spielen gespielt Klavier
    fangen gefangen einen Fisch
    brechen gebrochen das Eis
    """)
)
MODALS = phrases("kann, soll, darf, muss, sollte, konnte, musste, durfte")
"""Not those of wanting, which may have a participle ("sie will das Fenster geöffnet")."""
WITH_ZU = phrases(
    """versucht; hofft; plant; beschließt; beginnt; verspricht; vergisst; hat Lust;
hat keine Zeit; hat Angst; hat die Absicht; weigert sich; freut sich darauf; hat vor""",
    ";",
)

MOVED = phrases("""gestern angekommen, nach Hause gegangen, zu spät gekommen, nach Berlin gereist, früh
aufgestanden, sofort eingeschlafen, plötzlich verschwunden, in der Nacht aufgewacht, zu Hause geblieben,
vom Pferd gefallen, aus dem Bett gesprungen, nach Köln umgezogen, ins Wasser gefallen, auf den Berg
gestiegen, allein abgereist, schnell müde geworden, über einen Stein gestolpert, am Bahnhof
ausgestiegen, in den Zug eingestiegen, über die Straße gelaufen, krank geworden, mit dem Bus
weggefahren""")
"""What forms the perfect with sein."""
STAYED = phrases("""gestern gearbeitet, lange geschlafen, laut gelacht, vor Freude geweint, auf den Bus
gewartet, nicht geantwortet, den ganzen Abend geschwiegen, von Italien geträumt, die ganze Nacht
gehustet, lange gezögert, laut gejubelt, mit der Nachbarin gestritten, beim Essen gelächelt, vor
Müdigkeit gegähnt, dreimal geniest, heftig geschimpft, leise geflüstert, an die Ferien gedacht, über die
Reise gesprochen, im Garten gefaulenzt, kaum geredet, bei der Arbeit gesungen""")
"""What forms the perfect with haben."""

PERSON_FORMS = ("ich", "du", "er", "wir", "ihr", "sie")
REFLEXIVE = {"ich": "mich", "du": "dich", "er": "sich", "wir": "uns", "ihr": "euch", "sie": "sich"}
AUXILIARIES = tuple(
    zip(sein, haben, strict=True)
    for sein, haben in (
        (phrases("bin, bist, ist, sind, seid, sind"), phrases("habe, hast, hat, haben, habt, haben")),
        (
            phrases("war, warst, war, waren, wart, waren"),
            phrases("hatte, hattest, hatte, hatten, hattet, hatten"),
        ),
    )
)
BE_AND_HAVE = tuple(dict(zip(PERSON_FORMS, pairs, strict=True)) for pairs in AUXILIARIES)
"""Present and past: person → (form of sein, form of haben)."""

STARTS = phrases("""natürlich, leider, vielleicht, trotzdem, deshalb, offenbar, wahrscheinlich, tatsächlich,
zum Glück, bestimmt, außerdem""")
REFLEXIVE_VERBS = tuple(
    (dict(zip(PERSON_FORMS, words[:6], strict=True)), " ".join(words[6:]))
    for words in rows("""
    beeile beeilst beeilt beeilen beeilt beeilen _ auf dem Weg zur Schule
    schäme schämst schämt schämen schämt schämen _ für den Fehler
    irre irrst irrt irren irrt irren _ in diesem Punkt
    erkälte erkältest erkältet erkälten erkältet erkälten _ jeden Winter
    verspäte verspätest verspätet verspäten verspätet verspäten _ fast immer
    sehne sehnst sehnt sehnen sehnt sehnen _ nach dem Meer
    bücke bückst bückt bücken bückt bücken _ nach dem Schlüssel
    kenne kennst kennt kennen kennt kennen _ in dieser Stadt gut aus
    begnüge begnügst begnügt begnügen begnügt begnügen _ mit einem Apfel
    weigere weigerst weigert weigern weigert weigern _ schon wieder
    verliebe verliebst verliebt verlieben verliebt verlieben _ immer wieder
    erhole erholst erholt erholen erholt erholen _ am Meer
    verirre verirrst verirrt verirren verirrt verirren _ im Wald
    benehme benimmst benimmt benehmen benehmt benehmen _ heute seltsam
    verbeuge verbeugst verbeugt verbeugen verbeugt verbeugen _ vor dem König
    räuspere räusperst räuspert räuspern räuspert räuspern _ vor der Rede
    gedulde geduldest geduldet gedulden geduldet gedulden _ noch ein wenig
    sehe siehst sieht sehen seht sehen _ im Laden um
    verlaufe verläufst verläuft verlaufen verlauft verlaufen _ in der Altstadt
    entschließe entschließt entschließt entschließen entschließt entschließen _ zu einer Reise
    """)
)
"""Verbs that have no object but a reflexive pronoun: person → form; the pronoun's place and what follows."""


def participle_or_infinitive(draws: Draws) -> Crossed:
    """The infinitive with a modal verb, the participle with haben."""
    name, when, (infinitive, participle, object_) = (draws.one_of(of) for of in (NAMES, SOMETIME, ACTS))
    return crossed(
        f"{name} {draws.one_of(MODALS)} {when} {object_} _.",
        f"{name} {draws.one_of(('hat', 'hatte'))} {when} {object_} _.",
        infinitive,
        participle,
    )


def infinitive_with_zu(draws: Draws) -> Crossed:
    """The bare infinitive with a modal verb, the one with zu after other verbs."""
    name, (infinitive, _, object_) = draws.one_of(NAMES), draws.one_of(ACTS)
    return crossed(
        f"{name} {draws.one_of(MODALS)} {draws.one_of(SOMETIME)} {object_} _.",
        f"{name} {draws.one_of(WITH_ZU)}, {object_} _.",
        infinitive,
        f"zu {infinitive}",
    )


def perfect_auxiliary(draws: Draws) -> Crossed:
    """The perfect is formed with sein for motion and change, else with haben."""
    noun, person = draws.one_of(PERSONS), draws.one_of(PERSON_FORMS)
    subject = {"er": one(draws, noun), "sie": many(draws, noun)}.get(person, person)
    return crossed(
        f"{subject} _ {draws.one_of(MOVED)}.",
        f"{subject} _ {draws.one_of(STAYED)}.",
        *draws.one_of(BE_AND_HAVE)[person],
    )


def reflexive_pronouns(draws: Draws) -> Crossed:
    """A reflexive pronoun has the person of the subject."""
    forms, rest = draws.one_of(REFLEXIVE_VERBS)
    first = draws.one_of(PERSON_FORMS)
    second = draws.one_of([person for person in PERSON_FORMS if REFLEXIVE[person] != REFLEXIVE[first]])
    start = draws.one_of(("", *STARTS))
    contexts = []
    for person in (first, second):
        subject, form = draws.one_of(NAMES) if person == "er" else person, forms[person]
        contexts.append(f"{start} {form} {subject} {rest}." if start else f"{subject} {form} {rest}.")
    return Crossed(tuple(contexts), (REFLEXIVE[first], REFLEXIVE[second]))
