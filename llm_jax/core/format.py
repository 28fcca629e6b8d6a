"""Numbers as people read them."""

from __future__ import annotations


def short(number: float) -> str:
    """A number as people say it, to three digits.

    >>> short(13_812_345), short(999_700), short(2.1e21)
    ('13.8M', '1M', '2.1Z')
    """
    for limit, unit in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:  # what three digits round to the limit
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
