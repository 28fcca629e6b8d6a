"""The rows of a leaderboard: models with what they cost and their evaluations. Imports no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_jax.evaluate.samples import Sample
from llm_jax.evaluate.tasks.task import Task

IGNORED_PARTS = ("/", ".", "..", "runs", "default")
"""Parts of a path that are no part of a model's name, unless nothing else is left."""


@dataclass(frozen=True)
class Evaluation:
    """A task's result and its samples, of one model."""

    result: Mapping[str, Any]
    """The JSON object that `python -m llm_jax.evaluate` writes."""
    samples: Sequence[Sample]


@dataclass(frozen=True)
class RankedModel:
    """A row: a run at a checkpoint, or a Hugging Face folder."""

    name: str
    """Unique on the page."""
    path: Path
    step: int
    """Steps of training; 0 for a loaded model."""
    parameters: int
    flops_per_token: float
    """FLOPs of reading one token, without attention: 2 for each parameter that it is multiplied with."""
    train_flops: float | None
    """FLOPs of its training; None where they aren't known."""
    evaluations: Mapping[str, Evaluation]
    """By task."""
    family: str = ""
    """The same for runs that differ only in their seed; empty for other models."""


@dataclass(frozen=True)
class Leaderboard:
    """Everything that a page is made of: models, and the tasks that they were asked, in their order."""

    models: Sequence[RankedModel]
    tasks: Mapping[str, Task]
    groups: Mapping[str, Sequence[str]]
    """Groups and those of their tasks that were asked."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Task → what names it on a command line, where that isn't its name: the file that it is in."""
    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Task → the keys with which `python -m llm_jax.inspect` opens its items as they were scored, where they
    depend on more than the task: data, corpus, shots, seed."""


def short_names(folders: Sequence[tuple[Path, int | None]]) -> list[str]:
    """A name for each (folder, step): the last part of the path that says something, with those above it
    where folders are called the same, and the step if one is given.

    >>> short_names([(Path("runs/quickstart/default"), None), (Path("runs/quickstart/wide"), 20)])
    ['quickstart', 'wide@20']
    >>> short_names([(Path("a/x"), None), (Path("b/x"), None)])
    ['a/x', 'b/x']
    >>> short_names([(Path("q"), None), (Path("runs/q"), None)])
    ['q', 'runs/q']
    """
    parts = [said_parts(path) for path, _ in folders]
    names = []
    for own, (_, step) in zip(parts, folders, strict=True):
        length = next(
            (k for k in range(1, len(own)) if all(o == own or o[-k:] != own[-k:] for o in parts)), len(own)
        )
        names.append("/".join(own[-length:]) + (f"@{step}" if step is not None else ""))
    if len(set(names)) < len(names):  # they differ in parts that say nothing
        names = [f"{path}@{step}" if step is not None else str(path) for path, step in folders]
    return names


def said_parts(path: Path) -> list[str]:
    """The parts of a folder's path that name it."""
    return [part for part in path.parts if part not in IGNORED_PARTS] or [path.resolve().name]
