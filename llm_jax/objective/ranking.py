"""How many pairs of answers are in the right order, and how many in none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

ROUNDING = 1e-5
"""Rewards that differ by less are equal: where the policy is its reference, the sums of both differ by this
much if different programs computed them."""


def order_of_pairs(chosen: jax.Array, rejected: jax.Array) -> dict[str, jax.Array]:
    """From the rewards of pairs, in their shape, float32: `accuracy`, 1 where the chosen answer has the
    larger one; `ties`, 1 where both are equal up to rounding.

    The accuracy knows no rounding, and an exact tie counts as wrong in it, as in TRL. All pairs are tied
    where the policy is its reference and where the head of a reward model is new.
    """
    return {
        "accuracy": (chosen > rejected).astype(jnp.float32),
        "ties": (jnp.abs(chosen - rejected) < ROUNDING).astype(jnp.float32),
    }


def tied(metrics: Mapping[str, float], prefix: str = "") -> str:
    """What follows an accuracy in a log line where it isn't the whole truth; empty without ties.

    >>> tied({"accuracy": 0.0, "ties": 1.0})
    ' (all tied)'
    >>> tied({"eval_accuracy": 0.5, "eval_ties": 0.25}, "eval_")
    ' (25.0% tied)'
    """
    ties = metrics.get(f"{prefix}ties") or 0.0
    if ties > 0.9995:  # a mean in float32
        return " (all tied)"
    return f" ({ties:.1%} tied)" if ties else ""


def with_ties(parts: Sequence[str], metrics: Mapping[str, float]) -> list[str]:
    """The parts of a progress line, with the ties after the accuracy."""
    return [part + tied(metrics) * part.startswith("accuracy") for part in parts]
