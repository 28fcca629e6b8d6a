"""Arithmetic that many rooms need."""

from __future__ import annotations

import math
from typing import Any


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not less than n.

    >>> round_up(5, 4), round_up(8, 4)
    (8, 8)
    """
    return -(-n // multiple) * multiple


def finite(value: Any) -> Any:
    """The value as JSON can hold it: None for a float that is not finite.

    >>> finite(float("nan")), finite(1.5), finite("nan")
    (None, 1.5, 'nan')
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value
