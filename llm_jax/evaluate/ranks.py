"""Ranks as ranges: which places a model may have among others, as far as its paired comparisons show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llm_jax.evaluate.statistics import Difference

LEVEL = 0.05
"""Some model's rank is outside of its range in at most this share of evaluations."""


class RankRange(NamedTuple):
    """The places that a model may have, from 1."""

    best: int
    worst: int

    def __str__(self) -> str:
        return f"{self.best}" if self.best == self.worst else f"{self.best}–{self.worst}"


def rank_ranges(
    differences: Sequence[Sequence[Difference | None]], higher_is_better: bool = True
) -> list[RankRange]:
    """The range of each model's rank.

    differences[i][j]: the score of model i minus that of j; None for i = j, and where they can't be compared.
    A model's best rank is 1 plus the models that are shown to be better, its worst the number of models minus
    those shown to be worse. All comparisons are tested together, by Holm (1979): with a probability of at
    least 95% all that are shown are right, and all ranks are in their ranges (Mogstad, Romano, Shaikh and
    Wilhelm 2024). So a range may be wider than single comparisons suggest.
    """
    compared = [
        (i, j, difference)
        for i, row in enumerate(differences)
        for j, difference in enumerate(row)
        if i < j and difference is not None
    ]
    best, worst = [1] * len(differences), [len(differences)] * len(differences)
    shown = holm([difference.p for _, _, difference in compared])
    for (i, j, difference), is_shown in zip(compared, shown, strict=True):
        if is_shown:
            better, other = (i, j) if (difference.value > 0) == higher_is_better else (j, i)
            best[other] += 1
            worst[better] -= 1
    return [RankRange(*ends) for ends in zip(best, worst, strict=True)]


def holm(p: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several hypotheses are rejected, so that with probability 1 - level no true one is (Holm
    1979).

    >>> holm([0.01, 0.04, 0.03])
    [True, False, False]
    """
    rejected = [False] * len(p)
    for place, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[index] > level / (len(p) - place):
            break
        rejected[index] = True
    return rejected


def verdict(difference: Difference, higher_is_better: bool = True, form: str = ".1%") -> str:
    """A comparison in words: how much better or worse the first model is, or that no difference is shown.

    >>> verdict(Difference(0.021, 0.008, (0.005, 0.037), 0.01, 1000))
    'better by 2.1% (0.5% to 3.7%)'
    >>> verdict(Difference(0.01, 0.01, (-0.01, 0.03), 0.32, 1000))
    'no difference shown (−1.0% to 3.0%)'
    """
    low, high = difference.ci95
    if not difference.shown:
        return f"no difference shown ({low:{form}} to {high:{form}})".replace("-", "−")
    better = (difference.value > 0) == higher_is_better
    if difference.value < 0:
        low, high = -high, -low
    size = abs(difference.value)
    return f"{'better' if better else 'worse'} by {size:{form}} ({low:{form}} to {high:{form}})"
