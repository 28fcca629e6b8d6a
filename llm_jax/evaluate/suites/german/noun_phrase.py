"""Articles, adjectives and relative pronouns agree with their noun; than and as with their adjective."""

from __future__ import annotations

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, crossed
from llm_jax.evaluate.suites.german.articles import SINGULAR, article
from llm_jax.evaluate.suites.german.lexicon import ADJECTIVES, NAMES, PERSONS, THINGS
from llm_jax.evaluate.suites.german.subjects import many
from llm_jax.evaluate.suites.words import phrases, rows

ROOMS = phrases("""im Flur, in der Ecke, im Keller, vor der Tür, in meinem Zimmer, hinter dem Vorhang,
im Büro, neben dem Bett, unter der Treppe, am Eingang, in der Garage, auf dem Dachboden, im
Wohnzimmer""")
FRAMES = phrases(
    """wem gehört _ NOUN?; wo ist _ NOUN?; hier ist _ NOUN.; das ist doch _ NOUN.; _ NOUN ist kaputt.;
_ NOUN gefällt mir nicht.; _ NOUN war ein Geschenk.; plötzlich war _ NOUN weg.; _ NOUN kostet viel Geld.;
leider fehlt _ NOUN.; warum ist _ NOUN nass?; _ NOUN passt nicht in den Wagen.""",
    ";",
)
"""Places for a noun in the nominative."""

FOOD = tuple(
    (gender, noun)
    for gender, noun in rows("""
    n Brot
    m Wein
    m Käse
    n Wasser
    n Öl
    n Mehl
    n Salz
    m Reis
    m Honig
    n Fleisch
    n Gemüse
    m Zucker
    m Essig
    n Obst
    m Fisch
    m Speck
    """)
)
FOOD_ADJECTIVES = phrases("frisch, gut, billig, kalt, italienisch, deutsch, spanisch, einfach, rein")

HABITS = phrases("""im Garten arbeitet, nebenan wohnt, so laut lacht, jeden Tag singt, am Fenster sitzt,
an der Kasse steht, immer zu spät kommt, gern tanzt, nie pünktlich ist, dort drüben wartet, gut kochen
kann, in Berlin lebt, den Bus verpasst hat, gestern angerufen hat, drei Sprachen spricht, alles
vergisst""")
KNOWN = phrases(
    "ich kenne, wir suchen, ich mag, wir treffen heute, ich besuche, wir begrüßen, ich sehe, wir fragen"
)

COMPARED = tuple(
    (adjective, comparative)
    for adjective, comparative in rows("""
    groß größer
    alt älter
    klein kleiner
    schnell schneller
    klug klüger
    stark stärker
    jung jünger
    freundlich freundlicher
    fleißig fleißiger
    reich reicher
    mutig mutiger
    nett netter
    ruhig ruhiger
    glücklich glücklicher
    vorsichtig vorsichtiger
    höflich höflicher
    geduldig geduldiger
    arm ärmer
    laut lauter
    müde müder
    """)
)


def article_gender(draws: Draws) -> Crossed:
    """The article of a noun, before it, where only the noun decides the gender."""
    first = draws.one_of(THINGS)
    second = draws.one_of([thing for thing in THINGS if thing.gender != first.gender])
    word = draws.one_of(SINGULAR)  # ein, mein: those of m and n are the same, which `crossings` leaves out
    frame = draws.one_of((*FRAMES, "ROOM _ NOUN."))
    contexts = []
    for thing in (first, second):
        room = f"{draws.one_of(ROOMS)} {thing.posture}"
        contexts.append(frame.replace("ROOM", room).replace("NOUN", thing.singular, 1))
    alternatives = (article(word, thing.gender, "nominative") for thing in (first, second))
    return crossed(*contexts, *alternatives)


def adjective_endings(draws: Draws) -> Crossed:
    """The ending of an adjective after an article that shows gender and case, and where none does."""
    adjective, thing = draws.one_of(ADJECTIVES), draws.one_of(THINGS)
    room, posture = draws.one_of(ROOMS), thing.posture
    own = article(draws.one_of(("ein", "mein", "dein", "unser", "kein", "ihr", "sein")), "m", "nominative")
    kind = draws.below(4)
    if kind == 0:  # mit frischem Brot, mit dem frischen Brot
        (gender, food), adjective = draws.one_of(FOOD), draws.one_of(FOOD_ADJECTIVES)
        start = f"{draws.one_of(NAMES)} {draws.one_of(('kocht', 'backt'))} {draws.one_of(OFTEN)} mit"
        known = article(draws.one_of(("der", "dies")), gender, "dative")
        return crossed(f"{start} _ {food}.", f"{start} {known} _ {food}.", adjective + "em", adjective + "en")
    if kind == 1:  # alte Tische, die alten Tische
        stand = {"steht": "stehen", "liegt": "liegen"}[posture]
        known = article(draws.one_of(("der", "dies", "mein", "unser")), "plural", "nominative")
        start = f"{room} {stand}"
        return crossed(
            f"{start} _ {thing.plural}.",
            f"{start} {known} _ {thing.plural}.",
            adjective + "e",
            adjective + "en",
        )
    thing = draws.one_of(
        [thing for thing in THINGS if thing.gender != "f"]
    )  # ein alter Tisch, der alte Tisch
    known = article(draws.one_of(("der", "dies", "jen")), thing.gender, "nominative")
    start = f"{room} {thing.posture}"
    return crossed(
        f"{start} {own} _ {thing.singular}.",
        f"{start} {known} _ {thing.singular}.",
        adjective + {"m": "er", "n": "es"}[thing.gender],
        adjective + "e",
    )


OFTEN = phrases("immer, oft, gern, heute, nur, meistens, nie, manchmal, am liebsten")


def relative_pronoun_gender(draws: Draws) -> Crossed:
    """The gender of a relative pronoun, that of the noun before it."""
    persons = [person for person in PERSONS if person.singular != "Mädchen"]
    first = draws.one_of(persons)
    second = draws.one_of([person for person in persons if person.gender != first.gender])
    known, habit, word = draws.one_of(KNOWN), draws.one_of(HABITS), draws.one_of(SINGULAR)
    contexts = (
        f"{known} {article(word, person.gender, 'accusative')} {person.singular}, _ {habit}."
        for person in (first, second)
    )
    alternatives = (article("der", person.gender, "nominative") for person in (first, second))
    return crossed(*contexts, *alternatives)


def comparison_words(draws: Draws) -> Crossed:
    """Als after a comparative, wie after genauso and the adjective."""
    adjective, comparative = draws.one_of(COMPARED)
    noun = draws.one_of(PERSONS)
    subject = f"{article(draws.one_of(SINGULAR), noun.gender, 'nominative')} {noun.singular}"
    # several, as one could be a role ("glücklicher als Vater"); so and ebenso had als in older German
    standard = many(draws, draws.one_of([person for person in PERSONS if person != noun]))
    more, same = (
        draws.one_of(("viel ", "noch ", "etwas ", "", "nicht ")),
        draws.one_of(("genauso", "fast genauso", "mindestens genauso", "bestimmt genauso")),
    )
    return crossed(
        f"{subject} ist {more}{comparative} _ {standard}.", f"{subject} ist {same} {adjective} _ {standard}.",
        "als", "wie",
    )  # fmt: skip
