"""Whole numbers below a million in German and English words."""

from __future__ import annotations

from llm_jax.evaluate.suites.words import phrases

GERMAN_SMALL = phrases(
    """null, eins, zwei, drei, vier, fünf, sechs, sieben, acht, neun, zehn, elf, zwölf, dreizehn, vierzehn,
    fünfzehn, sechzehn, siebzehn, achtzehn, neunzehn"""
)
GERMAN_TENS = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
ENGLISH_SMALL = phrases(
    """zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen,
    fifteen, sixteen, seventeen, eighteen, nineteen"""
)
ENGLISH_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
GERMAN_ORDINALS = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}
ENGLISH_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


def german_number(number: int) -> str:
    """A number in German words, as one word.

    >>> german_number(21), german_number(347), german_number(1_001), german_number(86_016)
    ('einundzwanzig', 'dreihundertsiebenundvierzig', 'eintausendeins', 'sechsundachtzigtausendsechzehn')
    """
    if number >= 1000:
        thousands, rest = divmod(number, 1000)
        return f"{before_noun(german_number(thousands))}tausend{german_number(rest) if rest else ''}"
    if number >= 100:
        hundreds, rest = divmod(number, 100)
        return f"{before_noun(GERMAN_SMALL[hundreds])}hundert{german_number(rest) if rest else ''}"
    if number < 20:
        return GERMAN_SMALL[number]
    tens, ones = divmod(number, 10)
    word = GERMAN_TENS[tens - 2]
    return f"{before_noun(GERMAN_SMALL[ones])}und{word}" if ones else word


def before_noun(word: str) -> str:
    """A German number word as it stands before a noun or inside a longer number: without the s of eins."""
    return word.removesuffix("s") if word.endswith("eins") else word


def english_number(number: int) -> str:
    """A number in English words, with hyphens and "and" as in British use.

    >>> english_number(21), english_number(347), english_number(86_016)
    ('twenty-one', 'three hundred and forty-seven', 'eighty-six thousand and sixteen')
    """
    if number >= 1000:
        thousands, rest = divmod(number, 1000)
        joint = " and " if 0 < rest < 100 else " "
        return f"{english_number(thousands)} thousand{joint + english_number(rest) if rest else ''}"
    if number >= 100:
        hundreds, rest = divmod(number, 100)
        return f"{ENGLISH_SMALL[hundreds]} hundred{f' and {english_number(rest)}' if rest else ''}"
    if number < 20:
        return ENGLISH_SMALL[number]
    tens, ones = divmod(number, 10)
    return ENGLISH_TENS[tens - 2] + (f"-{ENGLISH_SMALL[ones]}" if ones else "")


def german_ordinal(number: int) -> str:
    """The ordinal of a number from 1 to 99, as after an article: "der dritte".

    >>> german_ordinal(3), german_ordinal(12), german_ordinal(21)
    ('dritte', 'zwölfte', 'einundzwanzigste')
    """
    return GERMAN_ORDINALS.get(number) or german_number(number) + ("te" if number < 20 else "ste")


def english_ordinal(number: int) -> str:
    """The ordinal of a number from 1 to 99.

    >>> english_ordinal(3), english_ordinal(12), english_ordinal(21), english_ordinal(40)
    ('third', 'twelfth', 'twenty-first', 'fortieth')
    """
    *before, last = english_number(number).split("-")
    if last in ENGLISH_ORDINALS:
        ordinal = ENGLISH_ORDINALS[last]
    else:
        ordinal = last.removesuffix("y") + "ieth" if last.endswith("y") else f"{last}th"
    return "-".join([*before, ordinal])


def ordinal_digits(number: int) -> str:
    """An English ordinal in digits.

    >>> [ordinal_digits(number) for number in (1, 2, 3, 11, 22, 40)]
    ['1st', '2nd', '3rd', '11th', '22nd', '40th']
    """
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
