"""What the commands of this package are asked for: folders, key=value, and where a model is to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_jax.command import read_arguments
from llm_jax.errors import UserError, nearest
from llm_jax.layout.layout import Layout
from llm_jax.layout.presets import preset


@dataclass(frozen=True)
class Asked:
    """A command line, read."""

    paths: list[Path]
    values: dict[str, str]
    layout: Layout | None
    mesh: dict[str, int]

    def number(self, key: str) -> int | None:
        """The value of a key that is a whole number (1e9 is one); None where it isn't given."""
        return None if key not in self.values else whole_number(key, self.values[key])


def read_asked(arguments: list[str], folders: Sequence[str], keys: Sequence[str], need: Sequence[str] = ()) -> Asked:
    """Reads a command line of some folders in order and key=value pairs. Raises UserError for anything else, or what is missing."""
    paths = [a for a in arguments if not a.startswith("-") and "=" not in a]
    _, pairs = read_arguments([a for a in arguments if a not in paths], ())
    if len(paths) != len(folders):
        missing = folders[len(paths) :]
        raise UserError(f"{missing[0]} is missing (--help says what it is)" if missing else f"{paths[-1]}: is one folder too many")
    values: dict[str, str] = {}
    mesh: dict[str, int] = {}
    for key, value in pairs:
        if key in values:
            raise UserError(f"{key}= is given twice")
        if key.startswith("mesh."):
            mesh[key.removeprefix("mesh.")] = whole_number(key, value)
        elif key in (*keys, "layout"):
            values[key] = value
        else:
            raise UserError(f"{key}={value}: there is no key {key!r}; {nearest(key, (*keys, 'layout', 'mesh.AXIS'))}")
    for key in need:
        if not values.get(key):
            raise UserError(f"{key}= is missing (--help says what it is)")
    if mesh and "layout" not in values:
        raise UserError(f"mesh.{next(iter(mesh))}={next(iter(mesh.values()))}: is of a layout; give layout=NAME")
    return Asked([Path(path).expanduser() for path in paths], values, preset(values["layout"]) if "layout" in values else None, mesh)


def whole_number(key: str, value: str) -> int:
    """A whole number of a command line, which may be written as 5e9."""
    try:
        number = float(value)
        if number == int(number) and (number >= 0 or key.startswith("mesh.")):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{key}={value}: must be a whole number")
