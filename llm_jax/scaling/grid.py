"""A grid of runs: overrides of one experiment, an algebra for lists of overrides, and the points that they
become.

Overrides are plain dicts, dotted key → value: {"model.embed": 128, "optimizer.learning_rate": 3e-3}. `over`
makes lists of them, and `product`, `zipped`, `chain` and `filtered` combine lists; `designs.py` has whole
designs. Keys that begin with "point." are notes about a point, not settings: they are written into the table
of runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm_jax.core.config_tree import all_keys, with_values
from llm_jax.core.errors import UserError, check_choice, closest, nearest, require
from llm_jax.core.format import short
from llm_jax.experiment import Experiment, check_parts, folder_of, override, resolved, with_vocabulary
from llm_jax.layout.hardware import hardware
from llm_jax.model import accounting
from llm_jax.run.run_folder import configuration_hash
from llm_jax.scaling.fit.methods import METHODS
from llm_jax.train.optimizer import warmup_fault

Overrides = dict[str, Any]
Row = dict[str, Any]
"""A row of the table of runs, of a run that ended: column of `collect.COLUMNS` → value."""
Design = Callable[[Experiment, list[Row]], list[Overrides]]
"""design(base with the command line's overrides, rows of the runs that ended) → all points. It is called
again when these points have run, and may then add points; it must return the earlier points again."""
Rule = Callable[[Experiment], Overrides]
"""rule(experiment of a point) → more overrides: a learning rate from its size, a warm-up from its tokens."""

NOTES = ("point.name", "point.budget", "point.convention")
OF_DESIGNS = ("train.steps", "train.batch_size", "train.sequence_length")
"""Keys from which a design computes a point's tokens: no rule may set them afterwards."""


def over(key: str, values: Iterable[Any]) -> list[Overrides]:
    """Overrides of one key, one for each value.

    >>> over("train.seed", range(2))
    [{'train.seed': 0}, {'train.seed': 1}]
    """
    return [{key: value} for value in values]


def product(*parts: Iterable[Overrides]) -> list[Overrides]:
    """All combinations of one override of each part; the last part varies fastest.

    >>> product(over("a", "xy"), over("b", [1, 2]))
    [{'a': 'x', 'b': 1}, {'a': 'x', 'b': 2}, {'a': 'y', 'b': 1}, {'a': 'y', 'b': 2}]
    """
    return [_merge(chosen) for chosen in itertools.product(*parts)]


def zipped(*parts: Iterable[Overrides]) -> list[Overrides]:
    """The first overrides of all parts merged, then the second, and so on; the parts must be equally long.

    >>> zipped(over("a", "xy"), over("b", [1, 2]))
    [{'a': 'x', 'b': 1}, {'a': 'y', 'b': 2}]
    """
    listed = [list(part) for part in parts]
    if len({len(part) for part in listed}) > 1:
        raise UserError(
            f"zipped: parts of {', '.join(str(len(part)) for part in listed)} overrides, but they must "
            "have equally many."
        )
    return [_merge(chosen) for chosen in zip(*listed, strict=True)]


def chain(*parts: Iterable[Overrides]) -> list[Overrides]:
    """The overrides of the first part, then those of the second, and so on."""
    return [dict(overrides) for part in parts for overrides in part]


def filtered(parts: Iterable[Overrides], keep: Callable[[Overrides], bool]) -> list[Overrides]:
    """The overrides for which `keep` returns True."""
    return [overrides for overrides in parts if keep(overrides)]


def _merge(chosen: Iterable[Overrides]) -> Overrides:
    joined: Overrides = {}
    for overrides in chosen:
        for key in overrides:
            if key in joined:
                raise UserError(
                    f"{key}: is set by two parts of a product or zip, to {joined[key]} and to "
                    f"{overrides[key]}. Leave it out of one."
                )
        joined |= overrides
    return joined


@dataclass(frozen=True)
class GridConfig:
    """How a grid is run: the keys grid.* of a command line."""

    points: str = ""
    """Points to run, by their numbers in the table of --dry-run: "3:7" is 3, 4, 5 and 6, "5" is one point;
    empty: all."""
    executor: Literal["one_by_one", "vmap"] = "one_by_one"
    """one_by_one: runs points one after another in this process; vmap: runs points of one shape in one
    program."""
    at_once: int = 8
    """executor=vmap: the most runs in one program. They differ in seed, schedule, weight decay and initial
    scale only, and are spread over the mesh's devices (layout=single mesh.data=-1), each run whole on one
    device. On a CPU a few per device are fastest."""
    retry: bool = False
    """Whether diverged runs are run again (failed runs always are)."""
    mfu: float = 0.4
    """Model FLOPs utilisation, the part of the devices' peak FLOP/s, behind --dry-run's hours."""
    hardware: str = ""
    """Hardware behind --dry-run's hours: h100, h200, ... (layout/hardware.toml); empty: this machine."""
    devices: int = 1
    """hardware=NAME: devices that each run has."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(
            re.fullmatch(r"|\d+|\d*:\d*", self.points) is not None,
            "grid.points",
            self.points,
            "a range as 3:7, 3: or :7, or one number",
        )
        require(self.at_once >= 1, "grid.at_once", self.at_once, "at least 1")
        require(0 < self.mfu <= 1, "grid.mfu", self.mfu, "above 0 and at most 1")
        require(self.devices >= 1, "grid.devices", self.devices, "at least 1")
        if self.hardware:
            hardware(self.hardware)

    def selected_numbers(self, count: int) -> range:
        """The numbers of the points to run, of `count` points. Raises UserError where there are none."""
        if not self.points:
            return range(count)
        first, colon, end = self.points.partition(":")
        chosen = range(
            int(first or 0), min(int(end or count), count) if colon else min(int(first) + 1, count)
        )
        if not chosen:
            raise UserError(
                f"grid.points={self.points}: selects none of the {count} points, which are numbered 0 to "
                f"{count - 1}"
            )
        return chosen


@dataclass(frozen=True)
class Grid:
    """Many runs of one experiment. experiment() of an experiment file may return a Grid."""

    base: Experiment
    """The experiment that all points override. `base.run_dir` is the grid's folder."""
    design: Design | Sequence[Overrides]
    """The points: a list of overrides, or a design that makes them."""
    rules: tuple[Rule, ...] = ()
    """Applied to each point, one rule after another."""
    held_out: Sequence[Overrides] | Design = ()
    """Larger runs whose losses are predicted from all others before they are trained."""
    method: str = ""
    """The method that fits the runs at the end: isoflop, parametric, ...; empty: none."""
    convention: str = "6nd_with_head"
    """The convention of N and FLOPs in the fit and in --dry-run's table (docs/scaling.md)."""
    trunks: bool = False
    """schedule=wsd: of points that differ only in train.steps the longest is trained from the start, and the
    others branch off from its checkpoint where their decay begins. They are bit-identical to runs trained
    from scratch, at less cost (`shared_prefix.py`)."""
    settings: GridConfig = field(default_factory=GridConfig)
    made: dict[str, Point] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Points by their overrides: a cache, since `points` is called after every run."""

    def check(self) -> None:
        """Raises UserError for settings that are out of range or exclude each other."""
        self.settings.check()
        accounting.columns(self.convention)
        if self.method:
            check_choice("method", self.method, METHODS)
        if self.trunks and self.base.optimizer.schedule != "wsd":
            raise UserError(
                f"optimizer.schedule={self.base.optimizer.schedule}: a grid with trunks needs a schedule "
                "whose decay begins late. Use "
                "optimizer.schedule=wsd."
            )

    def points(self, table: list[Row]) -> list[Point]:
        """All points, given the rows of runs that ended: the design's first, held-out ones last, each
        configuration once.

        A point with an invalid configuration has an `error` in place of an experiment. Raises UserError if
        all points have.
        """
        found: dict[str, Point] = {}
        for part, held_out in ((self.design, False), (self.held_out, True)):
            for overrides in self.listed(part, table):
                key = f"{held_out} {sorted(overrides.items())}"
                point = self.made[key] = self.made.get(key) or make_point(self, overrides, held_out)
                if found.setdefault(point.hash, point).held_out != held_out:
                    raise UserError(
                        f"grid {self.base.name}: {point.name} is held out and also a point of the design. "
                        "Leave it out of one of them."
                    )
        points = [dataclasses.replace(point, number=number) for number, point in enumerate(found.values())]
        if not points:
            raise UserError(f"grid {self.base.name}: has no points")
        if all(point.error for point in points):
            raise UserError(points[0].error)
        return points

    def listed(self, part: Design | Sequence[Overrides], table: list[Row]) -> list[Overrides]:
        """The overrides of a part of the grid. Raises UserError unless they are a list of dicts."""
        made = call_experiment_code(part, self.base, table) if callable(part) else part
        if not isinstance(made, list | tuple) or not all(isinstance(overrides, dict) for overrides in made):
            raise UserError(
                f"grid {self.base.name}: a design must be a list of overrides such as {{'train.seed': "
                f"1}}, or a function that returns one, "
                f"not {made!r:.80}"
            )
        return list(made)

    def merged(self) -> list[str]:
        """Names of points that are merged with an earlier one, since both train the same configuration."""
        first: dict[str, Point] = {}
        return [
            point.name for point in self.made.values() if first.setdefault(point.hash, point) is not point
        ]


@dataclass(frozen=True)
class Point:
    """One run of a grid: its overrides, and the experiment that they make, or the error."""

    name: str
    overrides: Overrides
    hash: str
    experiment: Experiment | None
    """Resolved, with vocabulary and run folder; None where there is an error."""
    error: str = ""
    """Why the point can't be run; empty if it can."""
    budget: float | None = None
    """The point's budget in FLOPs by `convention`; None without one."""
    convention: str = ""
    held_out: bool = False
    number: int = 0
    """The point's number, as in grid.points."""
    inherited: float = 0.0
    """FLOPs of the trunk's steps that a branch starts from."""

    @property
    def folder(self) -> str:
        """The name of the run folder below points/."""
        return f"{self.name}-{self.hash}"

    @property
    def tokens(self) -> int:
        """Tokens that the point is trained on; 0 with an error."""
        return self.experiment.train.steps * tokens_per_step(self.experiment) if self.experiment else 0

    @property
    def cost(self) -> float:
        """FLOPs of training from the first step, counted exactly by layer."""
        e = self.experiment
        return (
            accounting.cost_per_token(e.model, e.train.sequence_length, "exact") * self.tokens if e else 0.0
        )

    @property
    def own_cost(self) -> float:
        """FLOPs of training without those inherited from a trunk."""
        return self.cost - self.inherited


def call_experiment_code(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a design or rule. An exception in one of an experiment file is raised as UserError with
    its file and line."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        module = sys.modules.get(function.__module__)
        if module is None or function.__module__.startswith("llm_jax."):
            raise
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == module.__file__
        ]
        raise UserError(
            f"{module.__file__}:{lines[-1] if lines else '?'}: {type(error).__name__}: {error}"
        ) from error


def make_point(grid: Grid, overrides: Overrides, held_out: bool) -> Point:
    """The point of these overrides, with the grid's rules applied. Raises UserError for a mistake in a note
    or a rule."""
    notes = {key: value for key, value in overrides.items() if key.startswith("point.")}
    for key in notes:
        if key not in NOTES:
            raise UserError(f"{key}={notes[key]}: there is no note {key!r}; {nearest(key, NOTES)}")
    settings = {key: value for key, value in overrides.items() if key not in notes}
    budget, convention = notes.get("point.budget"), notes.get("point.convention", "")
    name = as_folder_name(notes.get("point.name") or name_from_overrides(settings))
    about: dict[str, Any] = {"name": name, "budget": budget, "convention": convention, "held_out": held_out}
    try:
        experiment = with_vocabulary(resolved(override(grid.base, list(settings.items()))))
        for rule in grid.rules:
            more = call_experiment_code(rule, experiment)
            if wrong := next((key for key in more if key in OF_DESIGNS or key in settings), None):
                raise UserError(
                    f"grid {grid.base.name}: a rule sets {wrong}, which the design sets. Remove it from "
                    "one of them."
                )
            settings |= more
            experiment = with_vocabulary(resolved(override(grid.base, list(settings.items()))))
    except UserError as error:
        return Point(overrides=settings, hash=name, experiment=None, error=str(error), **about)
    point = Point(overrides=settings, hash=configuration_hash(experiment), experiment=experiment, **about)
    folder = Path(folder_of(grid.base)) / "points" / point.folder
    return dataclasses.replace(point, experiment=dataclasses.replace(experiment, run_dir=str(folder)))


def warmup_line(points: Sequence[Point]) -> str:
    """A line about the points whose warm-up doesn't fit into their steps; "" if all fit."""
    faults = {
        f"point {p.number} {p.name}": fault
        for p in points
        if p.experiment and (fault := warmup_fault(p.experiment.optimizer, p.experiment.train.steps))
    }
    if not faults:
        return ""
    name, fault = next(iter(faults.items()))
    return (
        f"{len(faults)} of {len(points)} points have a warm-up that does not fit: that of {name} is {fault}. "
        "Without optimizer.warmup_steps, or with the rule warmup_fraction(0.1), all fit"
    )


def tokens_per_step(experiment: Experiment) -> int:
    """Tokens of a batch, over all microbatches."""
    return experiment.train.batch_size * experiment.train.sequence_length


def name_from_overrides(settings: Overrides) -> str:
    """A point's name from its overrides, with the last parts of the keys: "embed128-learning_rate0.003"."""
    return (
        "-".join(
            f"{key.rsplit('.', 1)[-1]}{short(v) if isinstance(v, float) and v >= 1000 else v}"
            for key, v in settings.items()
        )
        or "base"
    )


def as_folder_name(name: str) -> str:
    """A name as a folder's: at most 80 characters, none of which needs quoting in a shell."""
    return re.sub(r"[^\w.+-]+", "_", name)[:80]


def with_command_line(grid: Grid, pairs: list[tuple[str, str]]) -> Grid:
    """The grid with a command line's overrides: grid.* are its settings, all other keys override its base.

    Raises UserError for unknown keys, and for keys that the points of the grid set.
    """
    own = [(key, value) for key, value in pairs if key.startswith("grid.")]
    rest = [(key, value) for key, value in pairs if not key.startswith("grid.")]
    known = [f"grid.{f.name}" for f in dataclasses.fields(GridConfig)]
    for key, value in own:
        if key not in known:
            raise UserError(
                f"{key}={value}: there is no key {key!r}; did you mean '{closest(key, known) or known[0]}'?"
            )
    for key, value in rest:  # a key of grid.* without its prefix
        near = None if "." in key or key in all_keys(grid.base) else closest(f"grid.{key}", known)
        if near and near.removeprefix("grid.") == key:
            raise UserError(f"{key}={value}: there is no key {key!r}; did you mean '{near}'?")
    if ("grid.executor", "together") in own:
        raise UserError("grid.executor=together: this executor is named vmap now. Use grid.executor=vmap.")
    settings = with_values(GridKeys(grid.settings), own).grid
    quiet = dataclasses.replace(
        grid.base, sample=dataclasses.replace(grid.base.sample, tokens=0)
    )  # nobody reads the samples of many runs
    grid = dataclasses.replace(grid, base=override(quiet, rest), settings=settings)
    grid.check()
    check_parts(grid.base)
    taken = {key for point in grid.points([]) for key in point.overrides}
    for key, value in rest:
        if key in taken:
            raise UserError(f"{key}={value}: the grid sets {key} for each of its points. Leave it out.")
    return grid


@dataclass(frozen=True)
class GridKeys:
    """A tree of configuration with `GridConfig` at the key `grid`, so that its fields are set as `grid.*`."""

    grid: GridConfig
