"""Numbers and lists as text, for lines, tables, figures and reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

POWERS_FROM = 1e15
"""FLOPs are written as powers of ten from here on."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(number: float) -> str:
    """A number with a letter for its thousands, to three digits.

    >>> short(13_812_345), short(999_700), short(2.1e21)
    ('13.8M', '1M', '2.1Z')
    """
    for limit, unit in (
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if abs(number) >= 0.9995 * limit:  # what three digits round to the limit
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def number(value: Any, form: str = ".5g") -> str:
    """A float in the given form, None as nothing, and all else as it is.

    >>> number(0.123456789), number(None), number(12), number(0.256, ".1%")
    ('0.12346', '', '12', '25.6%')
    """
    return "" if value is None else f"{value:{form}}" if isinstance(value, float) else str(value)


def parameter_count(n: float) -> str:
    """A number of parameters, in 1e9 or 1e6.

    >>> parameter_count(8.03e9), parameter_count(13_812_345)
    ('8.03 B', '13.8 M')
    """
    return f"{n / 1e9:.3g} B" if n >= 1e9 else f"{n / 1e6:.3g} M"


def byte_size(n: float) -> str:
    """A number of bytes, in 1e9 or 1e6.

    >>> byte_size(12.3e9), byte_size(4096)
    ('12.30 GB', '0.00 MB')
    """
    return f"{n / 1e9:,.2f} GB" if n >= 1e7 else f"{n / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    """A short time, in seconds or milliseconds.

    >>> duration(1.5), duration(0.0123)
    ('1.50 s', '12.30 ms')
    """
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.2f} ms"


def clock(seconds: float) -> str:
    """A longer time, as a clock has it; a negative one is none.

    >>> clock(3723), clock(123.4), clock(-1)
    ('1:02:03', '02:03', '00:00')
    """
    text = str(timedelta(seconds=round(max(0.0, seconds))))
    return text[2:] if text.startswith("0:") else text


def hours(seconds: float | None) -> str:
    """A time in hours; "?" where it isn't known.

    >>> hours(36_000), hours(360), hours(None)
    ('10.0', '0.100', '?')
    """
    if seconds is None:
        return "?"
    return f"{seconds / 3600:,.1f}" if seconds >= 36_000 else f"{seconds / 3600:.3f}"


def format_flops(flops: float, unit: str = " FLOPs", powers: bool = False) -> str:
    """FLOPs, with a letter up to a quadrillion and as a power of ten beyond (`powers`: always).

    >>> format_flops(2.5e11), format_flops(3e19), format_flops(5.76e23, unit="")
    ('250G FLOPs', '3×10¹⁹ FLOPs', '5.76×10²³')
    """
    if flops < POWERS_FROM and not powers:
        return short(flops) + unit
    exponent = math.floor(math.log10(flops) + 1e-9)
    digits = f"{flops / 10**exponent:.3g}"
    return ("" if digits == "1" else f"{digits}×") + f"10{str(exponent).translate(SUPERSCRIPTS)}{unit}"


def flops_span(low: float, high: float) -> str:
    """A range of FLOPs, both ends written alike.

    >>> flops_span(5e14, 2e15), flops_span(5e12, 2e14)
    ('5×10¹⁴ to 2×10¹⁵ FLOPs', '5T to 200T FLOPs')
    """
    return span(low, high, lambda flops: format_flops(flops, "", powers=high >= POWERS_FROM)) + " FLOPs"


def signed_percent(part: float, digits: int = 2) -> str:
    """A part as a percentage with its sign.

    >>> signed_percent(-0.00102), signed_percent(0.0259, 1)
    ('−0.10 %', '+2.6 %')
    """
    return f"{100 * part:+.{digits}f} %".replace("-", "−")


def factor(times: float) -> str:
    """A ratio, to three digits.

    >>> factor(9272.3), factor(2.512), factor(0.4561)
    ('9,270', '2.51', '0.456')
    """
    if times < 100:
        return f"{times:.3g}"
    return f"{round(times, 2 - math.floor(math.log10(times))):,.0f}"


def interval(ends: Any, digits: int = 3) -> str:
    """An interval, with so many decimals.

    >>> interval((0.4512, 0.5234))
    '0.451 to 0.523'
    """
    low, high = ends
    return f"{low:.{digits}f} to {high:.{digits}f}"


def span(low: float, high: float, form: Callable[[float], str] = short) -> str:
    """A range; one number where its ends are written alike.

    >>> span(2e6, 3e9), span(1e8, 1.0001e8)
    ('2M to 3G', '100M')
    """
    first, last = form(low), form(high)
    return first if first == last else f"{first} to {last}"


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "run"), counted(3, "run")
    ('1 run', '3 runs')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def format_loss(value: float | None) -> str:
    """A loss or a score with four decimals; "not finite" for None, JSON's NaN and infinity.

    >>> format_loss(4.52154), format_loss(None)
    ('4.5215', 'not finite')
    """
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4f}"
