"""The command line of a command that uses models: folders, key=value pairs, and where and how the models are opened.

python -m llm_jax.COMMAND FOLDER ... key=value ... layout=NAME mesh.AXIS=N dtype=NAME step=N
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_jax.core.arguments import argument, is_path
from llm_jax.core.command import read_arguments
from llm_jax.core.errors import UserError, nearest, require

if TYPE_CHECKING:
    from llm_jax.layout.layout import Layout


def preset_names() -> tuple[str, ...]:
    """The names of the layouts that `layout=` takes."""
    from llm_jax.layout.presets import PRESETS  # imports JAX, which is set up first

    return tuple(PRESETS)


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Where and how a command opens a model: keys that all commands that use one share. The model is on one device without them."""

    layout: str = argument("", shown="NAME", choices=preset_names)
    """The layout that places the model on the devices (docs/layouts.md); on one device, if not given."""
    mesh: dict[str, int] = argument({}, entry="AXIS", least=-1)
    """The size of one of the layout's mesh axes; -1: all devices that the others leave."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The dtype of weights and computation; as the model was trained, if not given."""
    step: int | None = argument(None, least=0)
    """The checkpoint of this step; the newest, if not given."""

    def check(self) -> None:
        """Raises UserError for mesh sizes without a layout."""
        for axis, size in self.mesh.items():
            require(bool(self.layout), f"mesh.{axis}", size, "given together with a layout; add layout=NAME")

    def options(self) -> dict[str, Any]:
        """The arguments of `open_model`."""
        from llm_jax.layout.presets import preset  # imports JAX, which is set up first

        return {"layout": preset(self.layout) if self.layout else None, "mesh": self.mesh, "dtype": self.dtype, "step": self.step}


OPENING = ("layout", "dtype", "step")
"""Keys of how a model is opened, beside mesh.AXIS."""


@dataclass(frozen=True)
class Asked:
    """A command line, read."""

    paths: list[Path]
    values: dict[str, str]
    """Of the command's own keys that are there once."""
    pairs: list[tuple[str, str]]
    """Keys that may be there several times, and those that `others` took, in order."""
    layout: Layout | None
    mesh: dict[str, int]
    dtype: str | None
    step: int | None

    @property
    def opening(self) -> dict[str, Any]:
        """How a model is opened: arguments of `open_model`."""
        return {"layout": self.layout, "mesh": self.mesh, "dtype": self.dtype, "step": self.step}

    def whole(self, key: str, least: int = 0) -> int | None:
        """The value of a key that is a whole number, at least `least`; None where it isn't given."""
        return whole_number(key, self.values[key], least) if key in self.values else None


def read_asked(
    arguments: list[str],
    folders: Sequence[str],
    keys: Sequence[str] = (),
    repeated: Sequence[str] = (),
    others: Callable[[str], bool] = lambda key: False,
    need: Sequence[str] = (),
    opening: Sequence[str] = OPENING,
) -> Asked | None:
    """Reads a command line of some folders, in order, and key=value pairs; None where it only asks for help.

    keys: of the command, once each; `repeated`: any number of times; `need`: those that must be there. `others`: whether a key is one that
    somebody else knows. opening: which keys of OPENING there are. Raises UserError for anything else.
    """
    from llm_jax.layout.presets import preset

    own = (*keys, *opening)
    paths = [a for a in arguments if is_path(a, (*own, *repeated))]
    flags, given = read_arguments([a for a in arguments if a not in paths], ("--help", "-h"))
    if flags or not arguments:
        return None
    if len(paths) != len(folders):
        missing = folders[len(paths) :]
        raise UserError(f"{missing[0]} is missing (--help says what it is)" if missing else f"{paths[-1]}: is one folder too many")
    values: dict[str, str] = {}
    mesh: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    for key, value in given:
        if key in repeated or others(key):
            pairs.append((key, value))
        elif key.startswith("mesh."):
            mesh[key.removeprefix("mesh.")] = whole_number(key, value, -1)
        elif key not in own:
            raise UserError(f"{key}={value}: there is no key {key!r}; {nearest(key, (*own, *repeated, 'mesh.AXIS'))}")
        elif key in values:
            raise UserError(f"{key}={value}: is given twice")
        else:
            values[key] = value
    for key in need:
        if not values.get(key):
            raise UserError(f"{key}= is missing (--help says what it is)")
    if mesh and "layout" not in values:
        axis, size = next(iter(mesh.items()))
        raise UserError(f"mesh.{axis}={size}: is of a layout; give layout=NAME too")
    layout, dtype, step = (values.pop(key, None) if key in opening else None for key in OPENING)
    return Asked(
        paths=[Path(path).expanduser() for path in paths],
        values=values,
        pairs=pairs,
        layout=preset(layout) if layout is not None else None,
        mesh=mesh,
        dtype=dtype,
        step=whole_number("step", step) if step is not None else None,
    )


def whole_number(key: str, value: str, least: int = 0) -> int:
    """A whole number of a command line, at least `least`; 5e9 is one. Raises UserError for anything else."""
    try:
        number = float(value)
        whole = int(value) if value.lstrip("+-").isdigit() else int(number)
    except (ValueError, OverflowError):
        number, whole = 0.5, 0
    require(number == whole and whole >= least, key, value, f"a whole number, at least {least}")
    return whole
