"""English words with the forms that the templates need, written for this project."""

from __future__ import annotations

from typing import NamedTuple

from llm_jax.evaluate.suites.words import phrases, rows


class EnglishNoun(NamedTuple):
    """A noun in both numbers."""

    singular: str
    plural: str


class EnglishVerb(NamedTuple):
    """The third person in the present."""

    singular: str
    plural: str


class EnglishAct(NamedTuple):
    """A verb with an object, in the forms that differ."""

    base: str
    past: str
    participle: str
    gerund: str
    object: str


def nouns(table: str) -> tuple[EnglishNoun, ...]:
    """A noun a line, singular and plural."""
    return tuple(EnglishNoun(*row) for row in rows(table))


PERSONS = nouns("""
    teacher teachers
    doctor doctors
    farmer farmers
    student students
    girl girls
    boy boys
    woman women
    man men
    child children
    friend friends
    painter painters
    judge judges
    gardener gardeners
    cook cooks
    son sons
    daughter daughters
    brother brothers
    sister sisters
    uncle uncles
    aunt aunts
    singer singers
    driver drivers
    guest guests
    nurse nurses
    lawyer lawyers
    waiter waiters
    cousin cousins
    soldier soldiers
    writer writers
    tailor tailors
    """)
WOMEN = nouns("""
    girl girls
    woman women
    mother mothers
    daughter daughters
    sister sisters
    aunt aunts
    queen queens
    princess princesses
    grandmother grandmothers
    niece nieces
    actress actresses
    lady ladies
    """)
MEN = nouns("""
    boy boys
    man men
    father fathers
    son sons
    brother brothers
    uncle uncles
    king kings
    prince princes
    grandfather grandfathers
    nephew nephews
    monk monks
    gentleman gentlemen
    """)
THINGS = nouns("""
    book books
    lamp lamps
    bottle bottles
    letter letters
    key keys
    coat coats
    hat hats
    ball balls
    chair chairs
    table tables
    basket baskets
    box boxes
    knife knives
    shirt shirts
    dress dresses
    cup cups
    plate plates
    radio radios
    picture pictures
    map maps
    bag bags
    clock clocks
    blanket blankets
    candle candles
    card cards
    pillow pillows
    spoon spoons
    stamp stamps
    """)
WITH_AN = phrases("""apple, egg, orange, umbrella, onion, elephant, island, engine, oven, envelope,
honest man, heir, airport, arrow, eagle, olive, insect, office, actor, artist, owl, alligator""")
WITH_A = phrases("""table, lemon, house, university, unicorn, bottle, dog, one-way street, European
city, bicycle, hammer, letter, uniform, violin, chair, cat, bridge, horse, rabbit, castle, doctor,
user""")
MASS = phrases("""water, rice, milk, sugar, bread, sand, coffee, salt, soup, flour, oil, juice, cheese,
furniture, luggage, butter, paper, glue, tea, jam, meat, wool""")

INTRANSITIVE = tuple(
    EnglishVerb(*row)
    for row in rows("""
    laughs laugh
    sleeps sleep
    works work
    waits wait
    sings sing
    dances dance
    swims swim
    smiles smile
    listens listen
    cries cry
    talks talk
    plays play
    shouts shout
    paints paint
    sits sit
    stands stand
    shivers shiver
    yawns yawn
    coughs cough
    hesitates hesitate
    """)
)
"""Not read, whose past has the form of the plural."""
TRANSITIVE = tuple(
    EnglishVerb(*row)
    for row in rows("""
    likes like
    knows know
    follows follow
    visits visit
    loves love
    praises praise
    admires admire
    greets greet
    respects respect
    misses miss
    understands understand
    meets meet
    envies envy
    trusts trust
    """)
)
"""Not see, watch and help, which may have a verb behind their object ("that the cooks see sit")."""
ACTS = tuple(
    EnglishAct(base, past, participle, gerund, " ".join(object_))
    for base, past, participle, gerund, *object_ in rows("""
    write wrote written writing the letter
    eat ate eaten eating the apple
    take took taken taking the bus
    see saw seen seeing the film
    break broke broken breaking the window
    give gave given giving a speech
    drive drove driven driving the truck
    choose chose chosen choosing the color
    steal stole stolen stealing the bicycle
    draw drew drawn drawing a map
    wear wore worn wearing the hat
    throw threw thrown throwing the ball
    sing sang sung singing a song
    drink drank drunk drinking the milk
    speak spoke spoken speaking Spanish
    ride rode ridden riding the horse
    fly flew flown flying the kite
    shake shook shaken shaking the tree
    """)
)
"""Verbs whose past differs from the participle."""
PAST_OR_PARTICIPLE = tuple(act for act in ACTS if act.base not in ("sing", "drink"))
"""Those whose past is never the participle too: dictionaries have "sung" and "drank" for both."""

WOMEN_NAMES = phrases("Anna, Lucy, Mary, Clara, Julia, Sophie, Emma, Laura, Helen, Sarah, Alice, Martha")
MEN_NAMES = phrases("Paul, Jack, John, Tim, Peter, Luke, Henry, Oscar, James, Robert, Adam, Simon")
NAMES = WOMEN_NAMES + MEN_NAMES

WHERE = phrases("""in the garden, in the kitchen, on the street, at the window, behind the house, at
school, in the park, by the lake, at the market, near the church, in the hall, under the tree, at the
door, on the bus""")
HOW_OFTEN = phrases("""every evening, every day, all the time, again and again, from time to time, on
Mondays, in the morning, after lunch, most of the day, at night, on weekends, before breakfast""")
PAST = phrases("""yesterday, last week, last month, last year, last Monday, last summer, two days ago, a
week ago, last night, a year ago""")
FUTURE = phrases("""tomorrow, next week, next month, next year, next Monday, next summer, tomorrow
morning, tomorrow evening, the day after tomorrow, next winter""")
