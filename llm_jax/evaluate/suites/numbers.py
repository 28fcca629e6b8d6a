"""Numbers, number words and sums in German and English, each answer right in one context, wrong in another.

The two numbers of a crossing have the same digits in another order wherever that is possible (47 and 74), so
nothing but the order tells them apart: "siebenundvierzig" has the seven first, "forty-seven" the forty.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, Phenomenon, crossed
from llm_jax.evaluate.suites.german.lexicon import NAMES
from llm_jax.evaluate.suites.number_words import (
    english_number,
    english_ordinal,
    german_number,
    german_ordinal,
    ordinal_digits,
)
from llm_jax.evaluate.suites.words import phrases

LANGUAGES = ("de", "en")
NUMBER = {"de": german_number, "en": english_number}
THINGS = {
    "de": ("Äpfel", "Bücher", "Stühle", "Briefe", "Karten", "Steine", "Nüsse", "Lampen", "Münzen", "Hefte"),
    "en": ("apples", "books", "chairs", "letters", "cards", "stones", "pens", "lamps", "coins", "maps"),
}


def two_digits(draws: Draws) -> int:
    """A number from 21 to 98 of two different digits, neither of them a zero or a leading one."""
    tens = 2 + draws.below(8)
    return 10 * tens + draws.one_of([digit for digit in range(2, 10) if digit != tens])


def swapped(number: int) -> int:
    """The number with its last two digits in the other order.

    >>> swapped(47), swapped(5_347)
    (74, 5374)
    """
    rest, (tens, ones) = number // 100, divmod(number % 100, 10)
    return 100 * rest + 10 * ones + tens


def long_number(draws: Draws) -> int:
    """A number of two to five digits whose last two differ, as in `two_digits`."""
    return two_digits(draws) + 100 * draws.below(draws.one_of((1, 10, 100, 1000)))


def words_to_digits(draws: Draws, language: str) -> Crossed:
    """The digits of a number in words."""
    number = long_number(draws)
    start, end = {"de": ("In Ziffern:", " ="), "en": ("In digits:", " =")}[language]
    contexts = (f"{start} {NUMBER[language](n)}{end}" for n in (number, swapped(number)))
    return Crossed(tuple(contexts), (f" {number}", f" {swapped(number)}"))


def digits_to_words(draws: Draws, language: str) -> Crossed:
    """The words of a number in digits."""
    number = long_number(draws)
    start = {"de": "In Worten:", "en": "In words:"}[language]
    words = (f" {NUMBER[language](n)}" for n in (number, swapped(number)))
    return crossed(f"{start} {number} =", f"{start} {swapped(number)} =", *words)


def comparison(draws: Draws, language: str) -> Crossed:
    """Which of two numbers is the larger one."""
    small, large = sorted({(number := long_number(draws)), swapped(number)})
    say = draws.one_of((str, NUMBER[language]))
    is_, more, less = {"de": ("ist", " größer", " kleiner"), "en": ("is", " greater", " less")}[language]
    question = {
        "de": "Ist {} größer oder kleiner als {}? {} {}",
        "en": "Is {} greater or less than {}? {} {}",
    }
    ask = question[language].format
    one, other = say(large), say(small)
    return crossed(ask(one, other, capital(one), is_), ask(other, one, capital(other), is_), more, less)


def capital(text: str) -> str:
    """A text with a capital letter at the beginning."""
    return text[0].upper() + text[1:]


def story(draws: Draws, language: str, first: int, second: int, sign: str) -> str:
    """A sum or difference as a formula, in words, or as a small story, to be answered with digits."""
    thing = draws.one_of(THINGS[language])
    say = NUMBER[language]
    taken = {"de": {"+": "plus", "-": "minus", "×": "mal"}, "en": {"+": "plus", "-": "minus", "×": "times"}}
    word = taken[language][sign]
    is_ = {"de": "ist", "en": "is"}[language]
    forms = [f"{first} {sign} {second} =", f"{capital(say(first))} {word} {say(second)} {is_}"]
    if sign == "+":
        forms.append(
            {
                "de": f"Anna hat {first} {thing} und bekommt {second} dazu. Zusammen hat sie",
                "en": f"Anna has {first} {thing} and gets {second} more. Together she has",
            }[language]
        )
    if sign == "-":
        forms.append(
            {
                "de": f"Anna hat {first} {thing} und verschenkt {second}. Übrig bleiben",
                "en": f"Anna has {first} {thing} and gives away {second}. What is left is",
            }[language]
        )
    return str(draws.one_of(forms))


def addition(draws: Draws, language: str) -> Crossed:
    """Sums of numbers below 100."""
    first, second = two_digits(draws), two_digits(draws)
    change = draws.one_of((1, 2, 10, -1, -2, -10))
    return sums(draws, language, "+", (first, second), (first, second + change))


def subtraction(draws: Draws, language: str) -> Crossed:
    """Differences, greater than zero, of numbers below 170."""
    small, difference, change = two_digits(draws), 11 + draws.below(60), draws.one_of((1, 2, 10))
    large = small + difference
    return sums(draws, language, "-", (large, small), (large, small + change))


def multiplication(draws: Draws, language: str) -> Crossed:
    """Products of a number below 13 and one below 100."""
    first, second = 2 + draws.below(11), 2 + draws.below(98)
    return sums(draws, language, "×", (first, second), (first, second + draws.one_of((1, 2, 10))))


def sums(draws: Draws, language: str, sign: str, *problems: tuple[int, int]) -> Crossed:
    """Two problems in the same words, with their answers."""
    value = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "×": lambda a, b: a * b}[sign]
    wording = draws.seed
    contexts = (story(Draws(f"{wording} story"), language, *problem, sign) for problem in problems)
    return crossed(*contexts, *(f" {value(*problem)}" for problem in problems))


def sequences(draws: Draws, language: str) -> Crossed:
    """The next number of a sequence with equal steps, in digits or words."""
    say = draws.one_of((str, NUMBER[language]))
    last, first_step = 40 + draws.below(50), 1 + draws.below(9)
    second_step = draws.one_of([step for step in range(1, 10) if step != first_step])
    contexts, answers = [], []
    for step in (first_step, second_step):
        terms = [last - step * back for back in (3, 2, 1, 0)]
        contexts.append(capital(", ".join(map(say, terms))) + ",")
        answers.append(f" {say(last + step)}")
    return crossed(*contexts, *answers)


def ordinals(draws: Draws, language: str) -> Crossed:
    """Ordinals in digits and words."""
    number = two_digits(draws)
    digits, words, start = {
        "de": (lambda n: f"{n}.", german_ordinal, "Der"),
        "en": (ordinal_digits, english_ordinal, "The"),
    }[language]
    place = draws.one_of({"de": PLACES_DE, "en": PLACES_EN}[language])
    contexts = (f"{start} {digits(n)} {place}:" for n in (number, swapped(number)))
    return crossed(*contexts, *(f" {start.lower()} {words(n)} {place}" for n in (number, swapped(number))))


PLACES_DE = phrases("""Platz, Versuch, Brief, Tag, Stock, Stuhl, Geburtstag, Besucher, Kunde, Gast, Satz,
Schritt, Abend, Band, Bus, Sieg""")
PLACES_EN = phrases("""
place, attempt, letter, day, floor, chair, birthday, visitor, guest, sentence, step, evening, volume, bus,
victory, page""")


def clock(draws: Draws, language: str) -> Crossed:
    """Times of day in words: "halb vier" is 3:30, "half past three" too."""
    hour = 2 + draws.below(10)
    say = NUMBER[language]
    # (how it is said, its minutes, whether the hour that is named is the next one)
    half = {"de": ("halb", 30, True), "en": ("half past", 30, False)}[language]
    others = {
        "de": (
            ("Viertel nach", 15, False), ("Viertel vor", 45, True), ("zehn nach", 10, False),
            ("zehn vor", 50, True), ("fünf nach", 5, False), ("fünf vor", 55, True),
            ("fünf vor halb", 25, True), ("fünf nach halb", 35, True), ("zwanzig nach", 20, False),
            ("zwanzig vor", 40, True),
        ),
        "en": (
            ("a quarter past", 15, False), ("a quarter to", 45, True), ("ten past", 10, False),
            ("ten to", 50, True), ("five past", 5, False), ("five to", 55, True),
            ("twenty past", 20, False), ("twenty to", 40, True),
        ),
    }[language]  # fmt: skip
    said, minutes, next_hour = draws.one_of((half, half, *others))
    frame = draws.one_of(
        {
            "de": (
                "NAME kommt erst um {}, also um",
                "Am Abend geht NAME um {} nach Hause, also um",
                "NAME kommt um {}, das ist",
            ),
            "en": (
                "NAME only comes at {}, that is at",
                "In the evening NAME goes home at {}, that is at",
                "NAME comes at {}, which means",
            ),
        }[language]
    ).replace("NAME", draws.one_of(NAMES))
    contexts = (frame.format(f"{said} {say(h)}") for h in (hour, hour + 1))
    times = (f" {h - next_hour}:{minutes:02d}" for h in (hour, hour + 1))
    return crossed(*contexts, *times)


def number_agreement(draws: Draws, language: str) -> Crossed:
    """The plural after a number, the singular after one."""
    many = 2 + draws.below(90)
    say = draws.one_of((str, NUMBER[language]))
    name = draws.one_of(NAMES)
    if language == "de":
        article, one, several = draws.one_of(COUNTED_DE)
        start = f"{name} {draws.one_of(('sieht', 'sucht', 'findet', 'malt', 'zählt', 'hat'))}"
        return crossed(f"{start} {article}", f"{start} {say(many)}", f" {one}", f" {several}")
    one, several = draws.one_of(COUNTED_EN)
    start = f"{name} {draws.one_of(('sees', 'wants', 'finds', 'paints', 'counts', 'has'))}"
    return crossed(f"{start} one", f"{start} {say(many)}", f" {one}", f" {several}")


COUNTED_DE = tuple(
    tuple(words.split())
    for words in (
        "einen Apfel Äpfel", "ein Buch Bücher", "einen Stuhl Stühle", "eine Lampe Lampen", "ein Haus Häuser",
        "einen Baum Bäume", "eine Katze Katzen", "einen Hund Hunde", "ein Kind Kinder", "eine Blume Blumen",
        "einen Vogel Vögel", "ein Glas Gläser", "eine Maus Mäuse", "ein Schiff Schiffe", "einen Ball Bälle",
    )
)  # fmt: skip
COUNTED_EN = tuple(
    tuple(words.split())
    for words in (
        "apple apples", "book books", "mouse mice", "child children", "box boxes", "tree trees", "cat cats",
        "foot feet", "man men", "woman women", "bird birds", "knife knives", "tooth teeth", "goose geese",
        "house houses",
    )
)  # fmt: skip


def in_language(phenomenon: object, language: str) -> Phenomenon:
    """A phenomenon of one language."""

    def draw(draws: Draws) -> Crossed:
        return phenomenon(draws, language)  # type: ignore[operator]

    draw.__doc__ = phenomenon.__doc__
    return draw


PHENOMENA: Mapping[str, Phenomenon] = {
    f"{language}_{phenomenon.__name__}": in_language(phenomenon, language)
    for language in LANGUAGES
    for phenomenon in (
        words_to_digits, digits_to_words, comparison, addition, subtraction, multiplication, sequences,
        ordinals, clock, number_agreement,
    )
}  # fmt: skip
"""Language and name → what draws its crossings."""
