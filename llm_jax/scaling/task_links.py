"""From loss to tasks: what the runs of a table say about the task scores that go with a loss, and forecasts.

Two links for each task, both fitted to runs: the bits per byte of the right answers against held-out loss,
`B = K L^kappa` (`fit.task_bits`), and accuracy against these bits, a sigmoid from chance to 1
(`fit.accuracy_link`). Bits move before accuracy does: where all runs are at chance, the first link forecasts
and the second says why it can't.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.evaluate.in_training import BITS, CHANCE, PREFIX
from llm_jax.scaling.fit.accuracy_link import accuracy, sigmoid_link
from llm_jax.scaling.fit.fit_law import LawFit
from llm_jax.scaling.fit.task_bits import power_of_loss, task_bits

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = {"bits_per_byte": "bits per byte of the right answers", "accuracy": "accuracy"}
"""What is forecast of a task, in the order of the links → its name for people."""
DRAWS = 4000
"""Random draws behind the interval of a forecast."""
LEAST_RISE = 0.02
"""Where no run is so much above chance, a sigmoid through their scatter could rise anywhere."""
LEAST_RUNS = 4
"""Fewer runs have no scatter around a link to speak of."""


@dataclass(frozen=True)
class TaskLinks:
    """The two links of a task, or why there is none."""

    task: str
    chance: float
    bits: LawFit | None = None
    """Bits per byte of the right answers against loss."""
    score: LawFit | None = None
    """Accuracy against bits per byte; its column "loss" has the bits."""
    refused: dict[str, str] = field(default_factory=dict)
    """Quantity → why it has no link."""


@dataclass(frozen=True)
class Forecast:
    """What the links say about a run of some loss."""

    predicted: float
    interval_95: tuple[float, float]
    """Of the figure that one run will measure: law and links from resamples, and the runs' scatter around
    the links."""


def task_columns(columns: Iterable[Any]) -> list[str]:
    """The columns of a table that hold scores of tasks, their bits and chances, in the table's order."""
    return [str(name) for name in columns if str(name).startswith(PREFIX)]


def task_names(columns: Iterable[Any]) -> list[str]:
    """The tasks of a table: those with a column of bits per byte.

    >>> task_names(["loss", "task_cloze", "task_cloze_bits_per_byte", "task_cloze_chance"])
    ['cloze']
    """
    return [
        name.removeprefix(PREFIX).removesuffix(BITS) for name in task_columns(columns) if name.endswith(BITS)
    ]


def score_column(task: str, quantity: str) -> str:
    """The column of a table with a quantity of a task.

    >>> score_column("cloze", "accuracy"), score_column("cloze", "bits_per_byte")
    ('task_cloze', 'task_cloze_bits_per_byte')
    """
    return PREFIX + task + (BITS if quantity == "bits_per_byte" else "")


def link_tasks(scores: pd.DataFrame, loss: Any, names: Any) -> list[TaskLinks]:
    """Fits the links of every task to n finished runs.

    `scores`: the `task_columns` of the runs; `loss` [n]: nats a token, `names` [n]: of the runs, for
    warnings.
    """
    return [
        link_task(
            task,
            np.asarray(loss, np.float64),
            column_or_nan(scores, score_column(task, "bits_per_byte")),
            column_or_nan(scores, score_column(task, "accuracy")),
            column_or_nan(scores, f"{PREFIX}{task}{CHANCE}"),
            np.asarray(names),
        )
        for task in task_names(scores.columns)
    ]


def column_or_nan(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column of a table as float64 [n], NaN where the table has none."""
    return np.asarray(table[name], np.float64) if name in table else np.full(len(table), np.nan)


def link_task(
    task: str, loss: np.ndarray, bits: np.ndarray, score: np.ndarray, chance: np.ndarray, names: np.ndarray
) -> TaskLinks:
    """The links of a task, from the n runs that have its scores (others are NaN)."""
    there = np.isfinite(loss) & np.isfinite(bits)
    known = chance[np.isfinite(chance)]
    floor = float(np.median(known)) if len(known) else 0.0
    links: dict[str, LawFit] = {}
    refused: dict[str, str] = {}
    if there.sum() < LEAST_RUNS:
        why = f"{there.sum()} runs have scores of it, and a forecast needs at least {LEAST_RUNS}"
        return TaskLinks(task, floor, refused=dict.fromkeys(QUANTITIES, why))
    try:
        links["bits"] = task_bits(loss[there], bits[there], name=names[there])
    except UserError as error:
        refused["bits_per_byte"] = str(error)
    there &= np.isfinite(score)
    if not len(known) or not there.any():
        refused["accuracy"] = "the task has no accuracy"
    elif (score[there] < floor + LEAST_RISE).all():
        refused["accuracy"] = f"no run is {LEAST_RISE:g} above chance ({floor:.3g})"
    else:
        try:
            links["score"] = accuracy(bits[there], score[there], name=names[there], chance=floor, ceiling=1.0)
        except UserError as error:
            refused["accuracy"] = str(error)
    return TaskLinks(task, floor, **links, refused=refused)


def forecast(links: TaskLinks, loss: float, losses: np.ndarray) -> dict[str, Forecast]:
    """Quantity → its forecast for a run, where there is a link.

    loss: the run's, in nats; losses [k]: draws of what it may be, from the law's uncertainty.
    """
    found: dict[str, Forecast] = {}
    if links.bits is None:
        return found
    rng = np.random.default_rng(0)
    bits = power_of_loss(links.bits.parameters, loss)
    drawn = rng.choice(losses[np.isfinite(losses) & (losses > 0)], DRAWS)
    drawn = power_of_loss(drawn_parameters(links.bits, rng), drawn) * np.exp(
        scatter(links.bits, rng, log=True)
    )
    found["bits_per_byte"] = Forecast(float(bits), ends(drawn))
    if links.score is not None:
        given = {"low": links.chance, "high": 1.0}
        score = sigmoid_link({**given, **links.score.parameters}, bits)
        many = sigmoid_link({**given, **drawn_parameters(links.score, rng)}, drawn)
        many = np.clip(many + scatter(links.score, rng), 0.0, 1.0)
        found["accuracy"] = Forecast(float(score), ends(many))
    return found


def drawn_parameters(fit: LawFit, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Name → values [DRAWS] of a fit's parameters, drawn together from its resamples."""
    rows = rng.integers(len(fit.draws), size=DRAWS)
    return dict(zip(fit.parameters, fit.draws[rows].T, strict=True))


def scatter(fit: LawFit, rng: np.random.Generator, log: bool = False) -> np.ndarray:
    """[DRAWS] residuals of the runs around a link, drawn with replacement and scaled by the root of
    n/(n - P), since a fit of P parameters is nearer to its n runs than the true law is."""
    used = fit.points["used"]
    target = fit.points["bits_per_byte" if log else "accuracy"][used]
    predicted = fit.points["predicted"][used]
    residuals = np.log(target / predicted) if log else target - predicted
    residuals = residuals - residuals.mean()
    runs = len(residuals)
    return rng.choice(residuals, DRAWS) * np.sqrt(runs / max(runs - len(fit.parameters), 1))


def ends(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of draws."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)
