"""Articles, and the words that are declined like them."""

from __future__ import annotations

CASES = ("nominative", "genitive", "dative", "accusative")
DEFINITE = {
    "m": ("der", "des", "dem", "den"),
    "f": ("die", "der", "der", "die"),
    "n": ("das", "des", "dem", "das"),
    "plural": ("die", "der", "den", "die"),
}
STRONG = {
    "m": ("er", "es", "em", "en"),
    "f": ("e", "er", "er", "e"),
    "n": ("es", "es", "em", "es"),
    "plural": ("e", "er", "en", "e"),
}
"""Endings of dieser, jeder, jener; "ein" and the possessives lack those of the masculine nominative and
the neuter nominative and accusative."""
LIKE_DIESER = ("dies", "jed", "jen")
LIKE_EIN = ("ein", "mein", "dein", "sein", "ihr", "unser", "kein")

SINGULAR = ("der", "dies", "ein", "mein", "dein", "unser")
"""Words for one person or thing, in any sentence."""
BOTH = ("der", "dies", "mein", "dein", "unser")
"""Words that have a plural."""


def article(word: str, gender: str, case: str) -> str:
    """A form of an article: word is "der", or one of `LIKE_DIESER` and `LIKE_EIN`.

    >>> article("der", "m", "dative"), article("dies", "f", "genitive"), article("mein", "n", "accusative")
    ('dem', 'dieser', 'mein')
    """
    column = CASES.index(case)
    if word == "der":
        return DEFINITE[gender][column]
    bare = word in LIKE_EIN and (gender, case) in (
        ("m", "nominative"),
        ("n", "nominative"),
        ("n", "accusative"),
    )
    return word if bare else word + STRONG[gender][column]
