"""Where the verb stands: second in main clauses, last in subordinate ones; separable verbs come apart."""

from __future__ import annotations

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, crossed
from llm_jax.evaluate.suites.german.lexicon import MEN, NAMES, WOMEN_NAMES
from llm_jax.evaluate.suites.german.subjects import one, someone
from llm_jax.evaluate.suites.words import phrases, rows

ACTS = tuple(
    (verb, " ".join(rest))
    for verb, *rest in rows("""
    liest ein Buch
    kauft ein Brot
    schreibt einen Brief
    trinkt eine Tasse Tee
    isst einen Apfel
    sucht den Schlüssel
    arbeitet im Garten
    lernt Spanisch
    spielt Klavier
    putzt das Fenster
    repariert das Fahrrad
    kocht eine Suppe
    verkauft das Auto
    wartet auf den Bus
    denkt an den Urlaub
    fährt nach Hause
    geht zur Arbeit
    hört laute Musik
    malt ein Bild
    besucht die Tante
    vergisst den Termin
    sitzt am Fenster
    hilft der Nachbarin
    schläft auf dem Sofa
    """)
)
"""(verb, the rest of its phrase)"""
PREPOSITIONS = ("im", "am", "an", "auf", "nach", "zur")
OBJECT_ACTS = tuple(act for act in ACTS if not act[1].startswith(tuple(f"{word} " for word in PREPOSITIONS)))
"""Those with an object: a phrase with a preposition may stand behind the last verb ("bis er sitzt am
Fenster")."""

STATES = phrases(
    """bleibt ruhig; ist müde; lacht; ist zufrieden; hat gute Laune; sagt nichts; macht eine Pause;
schaut aus dem Fenster; hat keine Zeit; kommt später; lächelt; wirkt nervös; bleibt zu Hause""",
    ";",
)
SUBORDINATING = phrases("da, wenn, solange, falls, sobald, bis, bevor, sofern")
"""Not weil, obwohl and während, behind which the verb is second in speech."""
COORDINATING = phrases("denn, aber, und, doch")

SITUATIONS = phrases("""es regnet, die Sonne scheint, das Essen ist fertig, der Bus kommt nicht, der
Laden ist zu, es ist schon spät, die Straße ist leer, das Radio läuft, die Schule ist aus, es schneit,
der Strom ist weg, die Tür steht offen, das Telefon klingelt""")
ADVERBS = phrases("""trotzdem, deshalb, dann, dennoch, daher, danach, jetzt, deswegen, inzwischen,
außerdem, anschließend, plötzlich""")

SEPARABLE = tuple(
    (stem, particle, " ".join(middle))
    for stem, particle, *middle in rows("""
    steht auf früh
    kommt an pünktlich
    ruft an die Mutter
    macht auf das Fenster
    räumt auf das Zimmer
    kauft ein im Supermarkt
    fängt an morgen
    hört auf sofort
    lädt ein die Freunde
    sieht fern jeden Abend
    nimmt teil am Kurs
    gibt zurück das Buch
    bereitet vor das Essen
    zieht an den Mantel
    schläft ein schnell
    zieht um nach Köln
    steigt ein in den Bus
    schaltet aus das Licht
    liest vor die Geschichte
    stellt vor die Gäste
    bringt mit den Hund
    geht aus heute Abend
    probiert an das Kleid
    wäscht ab das Geschirr
    denkt nach über die Frage
    lehnt ab das Angebot
    schlägt vor einen Ausflug
    gibt auf nie
    """)
)
OPINIONS = phrases("""ich glaube, ich denke, wir hoffen, man erzählt, ich meine, ich fürchte, wir
wissen, alle sagen, er behauptet, sie schreibt, ich nehme an, wir vermuten, man hört""")


def verb_last_in_subordinate_clauses(draws: Draws) -> Crossed:
    """The verb is last after da, wenn, bevor, and second after denn, aber, und."""
    name, state, (verb, rest) = draws.one_of(NAMES), draws.one_of(STATES), draws.one_of(OBJECT_ACTS)
    pronoun = "sie" if name in WOMEN_NAMES else "er"
    return crossed(
        f"{name} {state}, {draws.one_of(SUBORDINATING)} {pronoun} _.",
        f"{name} {state}, {draws.one_of(COORDINATING)} {pronoun} _.",
        f"{rest} {verb}",
        f"{verb} {rest}",
    )


def verb_second(draws: Draws) -> Crossed:
    """The verb comes before the subject after an adverb, and after the subject behind denn, aber, und."""
    situation, (verb, rest) = draws.one_of(SITUATIONS), draws.one_of(ACTS)
    # in the nominative: "der Laden ist zu, aber verkauft Emma das Auto" sells her the car
    subject = one(draws, draws.one_of(MEN))
    return crossed(
        f"{situation}, {draws.one_of(ADVERBS)} _ {rest}.",
        f"{situation}, {draws.one_of(COORDINATING[:3])} _ {rest}.",
        f"{verb} {subject}",
        f"{subject} {verb}",
    )


def separable_verbs(draws: Draws) -> Crossed:
    """A separable verb is one word at the end of a clause with dass, and in two parts without it."""
    opinion, (stem, particle, middle) = draws.one_of(OPINIONS), draws.one_of(SEPARABLE)
    subject = someone(draws)
    return crossed(
        f"{opinion}, dass {subject} _.",
        f"{opinion}, {subject} _.",
        f"{middle} {particle}{stem}",
        f"{stem} {middle} {particle}",
    )
