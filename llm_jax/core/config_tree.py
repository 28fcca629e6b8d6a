"""Configurations as flat dotted keys, and what two of them differ in."""

from __future__ import annotations

from typing import Any


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + str(key)] = value
    return out


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two flat configurations differ in, as "key: old → new"."""
    keys = [*old, *(k for k in new if k not in old)]
    return [f"{k}: {shown(old.get(k))} → {shown(new.get(k))}" for k in keys if old.get(k) != new.get(k)]


def shown(value: Any) -> str:
    """A value in an error line."""
    return "unset" if value is None else str(value)
