"""Verifiers: whether an answer to a record is right.

A record says by itself how its answers are verified: `"verify": "exact"`. Others have no verifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llm_jax.core.errors import check_choice
from llm_jax.data.tasks import is_right

VERIFIERS: dict[str, Callable[[str, str], bool]] = {"exact": is_right}
"""By name: (expected answer, answer) → whether it is right."""


def verdict(record: Mapping[str, Any], answer: str) -> bool | None:
    """Whether an answer to a record is right; None where the record has no verifier, or no right answer.

    Raises UserError for a verifier that there is not.

    >>> verdict({"prompt": "1 + 1", "completion": "2", "verify": "exact"}, " 2")
    True
    """
    name = record.get("verify")
    if name is None or record.get("label") in (False, 0):
        return None
    check_choice("verify", name, VERIFIERS)
    return VERIFIERS[name](expected_answer(record), answer)


def expected_answer(record: Mapping[str, Any]) -> str:
    """The right answer of a record: its completion, its chosen answer, or its conversation's last turn."""
    answer = next(record[key] for key in ("completion", "chosen", "messages") if record.get(key) is not None)
    return answer if isinstance(answer, str) else str(answer[-1]["content"])
