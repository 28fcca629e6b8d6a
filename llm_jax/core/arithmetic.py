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


FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)
"""The smallest normal float32 above 0, and the largest. What is smaller may count as 0 on a processor, and
what is larger is infinite."""


def fits_float32(value: float) -> bool:
    """Whether a number is 0 or, but for rounding, the same in float32.

    >>> fits_float32(1e-30), fits_float32(1e-40), fits_float32(-1e39), fits_float32(0.0)
    (True, False, False, True)
    """
    return value == 0 or FLOAT32[0] <= abs(value) <= FLOAT32[1]
