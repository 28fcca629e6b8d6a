"""The minimum of each IsoFLOP curve: budgets, runs that lie off their budget's curve, and curves without a
minimum."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.format import counted
from llm_jax.scaling.fit import bootstrap as boot
from llm_jax.scaling.fit.curves import CURVES

LEAST_ERROR = 0.33
"""The error of log N* is at least this part of the distance between sizes (Porian et al. 2024,
`min_std_factor`)."""
SAME_BUDGET = 1.25
"""Runs sorted by FLOPs belong to one budget if neighbours differ by less than this factor."""
SAME_NUMBER = 1e-6
"""FLOPs that differ by less than this part are one number."""
DEEP = 5.0
"""A curve is deeper than this many times the noise of its losses and any second rise, or has no minimum."""
OFF_CURVE = 10.0
"""A run is off its curve if it is farther from the curve of the others than so many times the noise, ..."""
OFF_USUAL = 8.0
"""... than so many times the median of all runs near minima, ..."""
OFF_LOCAL = 0.6
"""... and than this part of the range of the losses of its four neighbours."""


@dataclass(frozen=True)
class Minimum:
    """The loss curve of one budget and its minimum. Logarithms are natural."""

    flops: float
    """FLOPs of the budget: the geometric mean of its runs'."""
    sizes: int
    """Number of different model sizes that were trained."""
    parameters: float | None
    """N*; None if the budget is left out."""
    tokens: float | None
    """D*; None if the budget is left out."""
    loss: float | None
    """The curve's loss at N*, nats a token; None if the budget is left out."""
    log_error: float | None
    """Standard error of log N*; None if the budget is left out."""
    on_edge: bool
    """Whether the lowest loss is at the smallest or largest size, so that the minimum lies outside of the
    sizes."""
    left_out: str
    """Why the budget is not in the fit; empty if it is."""
    curve_parameters: np.ndarray = field(repr=False)
    """N [m] of the curve's points."""
    curve_loss: np.ndarray = field(repr=False)
    """Loss [m] of the curve's points."""


@dataclass(frozen=True)
class Budget:
    """A run of each size of one budget, arrays [sizes] by rising size."""

    flops: float
    """The geometric mean of the runs' FLOPs."""
    log_n: np.ndarray
    log_d: np.ndarray
    loss: np.ndarray
    rows: np.ndarray
    """The number of each run in the table."""

    def without(self, at: int) -> Budget:
        """The budget without its run `at`."""
        kept = np.arange(len(self.loss)) != at
        return replace(
            self,
            log_n=self.log_n[kept],
            log_d=self.log_d[kept],
            loss=self.loss[kept],
            rows=self.rows[kept],
        )


def budget_numbers(flops: np.ndarray) -> np.ndarray:
    """The number [n] of each run's budget, counted from the smallest. Raises UserError where the FLOPs form
    no separate budgets.

    Runs form a budget if their FLOPs are one number, or if neighbours differ by less than 25 %.

    >>> budget_numbers(np.array([1e18, 3e18, 1.02e18])).tolist()
    [0, 1, 0]
    >>> budget_numbers(np.array([1e18, 1e18, 1e18, 1.2e18, 1.2e18, 1.2e18])).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    order = np.argsort(flops, kind="stable")
    steps = np.diff(np.log(flops[order]))
    exact = np.concatenate([[0], np.cumsum(steps > SAME_NUMBER)])
    near = np.concatenate([[0], np.cumsum(steps > np.log(SAME_BUDGET))])
    for i in range(near[-1] + 1):
        own = exact[near == i]
        repeated = np.bincount(own - own[0]) >= 3
        if repeated.sum() < repeated.size or repeated.size == 1:
            exact[near == i] = own[0]  # one budget, whose runs miss its FLOPs by their whole steps
    numbers = np.empty(len(flops), int)
    numbers[order] = np.unique(exact, return_inverse=True)[1]
    for i in range(numbers.max() + 1):
        own = flops[numbers == i]
        if own.max() > SAME_BUDGET * own.min():
            raise UserError(
                f"flops: {len(own)} runs from {own.min():.3g} to {own.max():.3g} FLOPs run into each "
                "other, so they are no IsoFLOP budgets. "
                "Use method=parametric, or give each run its budget's FLOPs."
            )
    return numbers


def make_budget(table: dict[str, np.ndarray], own: np.ndarray, average: bool = False) -> Budget:
    """The budget of the runs `own` [n], bool; where several runs have one size, the one of lowest loss, with
    the mean loss of all of them if `average`."""
    rows, losses = [], []
    for size in np.unique(table["parameters"][own]):
        same = np.flatnonzero(own & (table["parameters"] == size))
        rows.append(same[table["loss"][same].argmin()])
        losses.append(table["loss"][same].mean() if average else table["loss"][same].min())
    flops = float(np.exp(np.log(table["flops"][own]).mean()))
    return Budget(
        flops,
        np.log(table["parameters"][rows]),
        np.log(table["tokens"][rows]),
        np.array(losses),
        np.array(rows),
    )


def leave_out_outliers(budgets: list[Budget], noise: float) -> tuple[list[Budget], list[tuple[int, float]]]:
    """The budgets without the runs that lie off the curve of their budget's other runs; and these runs, each
    as its number in the table with the loss of that curve at its size.

    Only runs near a minimum count: they decide where it is, while the far ends of measured curves bend.
    """
    usual = np.concatenate([abs(off[near]) for off, near in map(off_curve, budgets)] or [np.zeros(0)])
    least = max(OFF_CURVE * noise, OFF_USUAL * float(np.median(usual)) if usual.size else 0.0)
    kept, out = [], []
    for budget in budgets:
        for _ in range(max(1, len(budget.loss) // 4)):
            off, near = off_curve(budget)
            far = np.where(
                near & (abs(off) > np.maximum(least, OFF_LOCAL * range_around(budget))), abs(off), 0
            )
            if not far.any():
                break
            worst = int(far.argmax())
            out.append((int(budget.rows[worst]), float(budget.loss[worst] - off[worst])))
            budget = budget.without(worst)
        kept.append(budget)
    return kept, out


def off_curve(budget: Budget) -> tuple[np.ndarray, np.ndarray]:
    """How far each run [sizes] is above the curve of the others, and whether it is near the minimum of its
    budget.

    The curve of the others has no value beyond its ends: a run there counts where it is lower than a
    minimum that the others have between them. Fewer than four sizes tell nothing.
    """
    x, loss, n = budget.log_n, budget.loss, len(budget.loss)
    off, near = np.zeros(n), np.zeros(n, bool)
    if n < 4:
        return off, near
    for i in range(n):
        others = budget.without(i)
        curve = CURVES["akima"](others.log_n, others.loss[None])
        lowest = int(others.loss.argmin())
        inside = 0 < lowest < n - 2
        if 0 < i < n - 1:
            off[i] = loss[i] - curve.loss(x[i : i + 1])[0, 0]
            near[i] = abs(i - lowest) <= 2 or abs(i - loss.argmin()) <= 2
        elif inside and loss[i] < others.loss[lowest] < others.loss[0 if i == 0 else -1]:
            off[i], near[i] = loss[i] - others.loss[0 if i == 0 else -1], True
    return off, near


def range_around(budget: Budget) -> np.ndarray:
    """The range [sizes] of the losses of each run's neighbours, two on each side, without its own."""
    around = [np.delete(budget.loss[max(i - 2, 0) : i + 3], min(i, 2)) for i in range(len(budget.loss))]
    return np.array([np.ptp(losses) if losses.size else 0.0 for losses in around])


def second_rise(loss: np.ndarray) -> float:
    """The height by which losses [n] by rising size rise and then fall again: 0 with one minimum.

    >>> print(f"{second_rise(np.array([3.2, 3.1, 3.2])):.3f}")
    0.000
    >>> print(f"{second_rise(np.array([3.00, 3.02, 3.01, 3.03])):.3f}")
    0.010
    """
    left, right = np.minimum.accumulate(loss), np.minimum.accumulate(loss[::-1])[::-1]
    return float((loss - np.maximum(left, right)).max())


def find_minimum(
    budget: Budget,
    curve: str,
    per_interval: int,
    noise: float,
    count: int,
    resampling: str,
    rng: np.random.Generator,
) -> tuple[Minimum, np.ndarray]:
    """A budget's minimum, and log N* and log D* [k, 2] of its resamples (k of `count`: those with a minimum
    inside of the sizes)."""
    x, loss, n = budget.log_n, budget.loss, len(budget.log_n)

    def left_out(why: str, on_edge: bool = False) -> tuple[Minimum, np.ndarray]:
        return Minimum(budget.flops, n, None, None, None, None, on_edge, why, np.exp(x), loss), np.zeros(
            (0, 2)
        )

    if n < 3:
        return left_out(f"{counted(n, 'size')}, a minimum needs at least three")
    at = np.linspace(x[0], x[-1], (n - 1) * per_interval)
    drawn = CURVES[curve](x, loss[None])
    smooth, (star,) = drawn.loss(at)[0], drawn.minima()
    depth, again = float(np.ptp(loss)), second_rise(loss)
    if depth < DEEP * noise and (at[1] <= star <= at[-2] or depth < noise):
        return left_out(
            f"the losses of its {n} sizes are {depth:.2g} apart, less than {DEEP:g} times their noise, "
            f"{noise:.2g}: vary the sizes more"
        )
    if depth < DEEP * again:
        return left_out(
            f"the losses of its {n} sizes rise and fall again by {again:.2g}, where they are {depth:.2g} "
            "apart in all: no curve with one minimum"
        )
    if not at[1] <= star <= at[-2]:
        side = "smallest" if star < at[1] else "largest"
        return left_out(
            f"minimum on the edge, at the {side} size of {n}: train "
            f"{'smaller' if side == 'smallest' else 'larger'} ones",
            True,
        )
    fallen, least = float(drawn.loss(np.array([star]))[0, 0]), least_loss(x, loss, star)
    missed = float(np.sqrt(np.mean((drawn.loss(x)[0] - loss) ** 2)))
    if fallen < least - DEEP * max(noise, missed):
        return left_out(
            f"its curve falls to a loss of {fallen:.4f}, where the runs allow {least:.4f} or more"
        )
    if resampling == "residual":
        fitted = np.interp(x, at, smooth)
        noisy = fitted + boot.resampled_residuals(
            loss - fitted, np.ones(n, bool), 3, count, int(rng.integers(2**31))
        )
    else:
        noisy = loss + noise * rng.standard_normal((count, n))
    stars = CURVES[curve](x, noisy).minima()
    stars = stars[(stars >= at[1]) & (stars <= at[-2])]
    if len(stars) < count // 2:
        return left_out(f"with noise of {noise:.2g} in loss most minima are on an edge", True)
    error = max(float(stars.std()), LEAST_ERROR * per_interval * (at[1] - at[0])) * count / len(stars)
    star = float(np.median(stars))
    log_d = np.interp(np.concatenate([[star], stars]), x, budget.log_d)
    minimum = Minimum(
        flops=budget.flops,
        sizes=n,
        parameters=float(np.exp(star)),
        tokens=float(np.exp(log_d[0])),
        loss=float(drawn.loss(np.array([star]))[0, 0]),
        log_error=error,
        on_edge=False,
        left_out="",
        curve_parameters=np.exp(at),
        curve_loss=smooth,
    )
    return minimum, np.stack([stars, log_d[1:]], -1)


def least_loss(x: np.ndarray, loss: np.ndarray, at: float) -> float:
    """The lowest loss that a curve through losses [n] at log sizes x [n] may have at a size between them.

    A curve that bends upwards is above the lines through the two runs on its left and on its right.

    >>> least_loss(np.arange(4.0), np.array([4.0, 3.0, 3.0, 4.0]), 1.5)
    2.5
    """
    slopes = np.diff(loss) / np.diff(x)
    i = int(np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2))
    left = loss[i] + slopes[i - 1] * (at - x[i]) if i > 0 else -np.inf
    right = loss[i + 1] + slopes[i + 1] * (at - x[i + 1]) if i + 2 < len(x) else -np.inf
    return float(max(left, right))
