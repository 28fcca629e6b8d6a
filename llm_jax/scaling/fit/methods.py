"""The fitting methods by name, with the columns that each needs and the options that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from llm_jax.core.config_tree import coerced
from llm_jax.core.errors import UserError, nearest
from llm_jax.scaling.fit.accuracy_link import accuracy
from llm_jax.scaling.fit.approach1 import envelope
from llm_jax.scaling.fit.approach2 import isoflop
from llm_jax.scaling.fit.approach3 import parametric
from llm_jax.scaling.fit.compute import compute_law
from llm_jax.scaling.fit.overtrained import overtraining
from llm_jax.scaling.fit.repeated import repetition


@dataclass(frozen=True)
class Method:
    """A fitting method: its function and the columns of the table that are the function's first arguments."""

    fit: Callable[..., Any]
    purpose: str
    """A line for --help."""
    needs: tuple[str, ...]
    """Columns that the table must have."""
    may: tuple[str, ...] = ()
    """Columns that the method uses where the table has them."""
    spare: tuple[str, ...] = ("name",)
    """Columns that the method uses where the table has them without a gap."""

    def options(self) -> dict[str, Any]:
        """The method's options and their defaults."""
        arguments = inspect.signature(self.fit).parameters
        return {
            name: p.default
            for name, p in arguments.items()
            if name not in (*self.needs, *self.may, *self.spare, "convention")
        }


METHODS = {
    "parametric": Method(
        parametric,
        "approach 3: E + A/N^alpha + B/D^beta through all runs",
        ("parameters", "tokens", "loss"),
        ("flops",),
    ),
    "isoflop": Method(
        isoflop,
        "approach 2: the best size at each of several budgets",
        ("flops", "parameters", "loss"),
        ("tokens",),
        ("name", "seeds"),
    ),
    "envelope": Method(
        envelope,
        "approach 1: the best size along training curves",
        ("run", "flops", "parameters", "loss"),
        spare=(),
    ),
    "compute": Method(
        compute_law,
        "E + K C^-gamma through the best runs",
        ("flops", "loss"),
        spare=("name", "parameters", "tokens"),
    ),
    "overtraining": Method(
        overtraining,
        "Gadre et al.: E + (a M^eta + b M^-eta) C^-eta, M = D/N",
        ("parameters", "tokens", "loss"),
    ),
    "repetition": Method(
        repetition,
        "Muennighoff et al.: the value of repeated tokens",
        ("parameters", "tokens", "unique_tokens", "loss"),
    ),
    "accuracy": Method(accuracy, "a task's accuracy as a sigmoid of loss", ("loss", "accuracy")),
}


def read_option(method: str, key: str, value: str) -> Any:
    """An option's value from the command line. Raises UserError for an unknown key, or a value of the wrong
    type."""
    known = METHODS[method].options()
    if key not in known:
        raise UserError(f"{key}={value}: there is no key {key!r} with method={method}; {nearest(key, known)}")
    return coerced(key, value, get_type_hints(METHODS[method].fit)[key])
