"""Objectives of answers that are given the policy's log-probabilities, so that several share one forward pass."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax

from llm_jax.objective.logprobs import Hidden
from llm_jax.objective.preference import AnswerObjective

T = TypeVar("T", bound=AnswerObjective)


def with_logprobs(objective: T, hidden: Hidden, logp_BT: jax.Array) -> T:
    """The objective, in whose loss the policy's log-probabilities are these."""
    copied = dataclasses.replace(objective)
    object.__setattr__(copied, "policy_logp", lambda policy, batch: (hidden, logp_BT))
    return copied
