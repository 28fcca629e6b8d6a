"""Small tables of words as the lexica write them."""

from __future__ import annotations


def rows(table: str) -> list[list[str]]:
    """The words of each line.

    >>> rows('''
    ...     Kind Kinder
    ...     Frau Frauen
    ... ''')
    [['Kind', 'Kinder'], ['Frau', 'Frauen']]
    """
    return [line.split() for line in table.strip().splitlines()]


def phrases(table: str, between: str = ",") -> tuple[str, ...]:
    """The phrases between commas, or what else is between them.

    >>> phrases("im Garten, am See")
    ('im Garten', 'am See')
    """
    return tuple(phrase.strip() for phrase in table.replace("\n", " ").split(between) if phrase.strip())
