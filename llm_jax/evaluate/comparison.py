"""Two models on the same items of a task: the paired difference of their scores, and the items that make it.
Imports no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llm_jax.evaluate import statistics
from llm_jax.evaluate.samples import Sample
from llm_jax.evaluate.statistics import Difference, pass_at_k
from llm_jax.evaluate.task_scores import bits_and_bytes, clusters_of, normalized, right_by
from llm_jax.evaluate.tasks.task import Kind

BITS_PER_BYTE = "bits_per_byte"
RESAMPLES = 1000
"""Bootstrap resamples of a difference of bits per byte; a page has one for every pair of its models."""


class Disagreement(NamedTuple):
    """An item on which two models differ."""

    id: str
    first: float
    """The value of the item for the first model: 1 where it is right, or its bits per byte."""
    second: float
    margin: float
    """By how much the models differ: in the lead of the right choice over the best wrong one, or in bits per
    byte. Larger: more worth looking at."""


def compare(first: Sequence[Sample], second: Sequence[Sample], kind: Kind, metric: str) -> Difference | None:
    """The score of a first model minus that of a second, on the items that both were asked; None where there
    are none."""
    one, two = common(first, second)
    if not one:
        return None
    clusters = clusters_of(one)
    if metric == BITS_PER_BYTE:
        (a, b), (c, d) = (zip(*map(bits_and_bytes, samples), strict=True) for samples in (one, two))
        return statistics.paired_ratio((a, b), (c, d), clusters, resamples=RESAMPLES)
    values = [[value_of(sample, kind, metric) for sample in samples] for samples in (one, two)]
    return statistics.paired(values[0], values[1], clusters)


def common(first: Sequence[Sample], second: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples of the items that both have, in the order of the first."""
    other = {sample["id"]: sample for sample in second}
    one = [sample for sample in first if sample["id"] in other]
    return one, [other[sample["id"]] for sample in one]


def value_of(sample: Sample, kind: Kind, metric: str) -> float:
    """What one sample adds to a score: the part of it that is right, or its bits per byte."""
    if metric == BITS_PER_BYTE:
        bits, size = bits_and_bytes(sample)
        return bits / size
    if metric.startswith("pass@"):
        return pass_at_k(sample["samples"], sample["passed"], int(metric.removeprefix("pass@")))
    return right_by(sample, metric) if kind in ("choice", "pair") else float(sample["right"])  # type: ignore[arg-type]


def lead(sample: Sample, kind: Kind, metric: str) -> float:
    """How clearly a model gives the right answer: in a choice the normalized log-probability of the right one
    minus that of the best other one; the value of the sample elsewhere."""
    if kind not in ("choice", "pair") or metric == BITS_PER_BYTE:
        return value_of(sample, kind, metric)
    values = [normalized(choice, metric) for choice in sample["choices"]]  # type: ignore[arg-type]
    gold = values.pop(sample["gold"])
    return gold - max(values)


def disagreements(
    first: Sequence[Sample], second: Sequence[Sample], kind: Kind, metric: str
) -> list[Disagreement]:
    """The items on which two models' values differ, the clearest first."""
    found = []
    for one, two in zip(*common(first, second), strict=True):
        a, b = value_of(one, kind, metric), value_of(two, kind, metric)
        if a != b:
            margin = abs(lead(one, kind, metric) - lead(two, kind, metric))
            found.append(Disagreement(str(one["id"]), a, b, margin))
    return sorted(found, key=lambda item: -item.margin)
