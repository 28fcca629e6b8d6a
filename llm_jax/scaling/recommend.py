"""The command `python -m llm_jax.scaling.recommend`: the compute-optimal size and tokens for a budget, from a
fit.json."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from llm_jax.core.arguments import argument, read_command
from llm_jax.core.command import output_file, run_command
from llm_jax.core.errors import UserError
from llm_jax.core.files import text_of
from llm_jax.core.tables import make_console, show, table
from llm_jax.layout.hardware import hardware, hardware_names
from llm_jax.scaling.fit.bootstrap import LEVEL
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT, NAMES, Law
from llm_jax.scaling.fit.result import to_plain, write_json

FLAT = 0.01
"""Sizes whose loss is within this part of the best count as near-optimal."""
SMALLER = (1.0, 0.7, 0.5, 0.35, 0.25)
"""The sizes, as parts of N*, whose cost of over-training is listed."""
FLOPS_TO_SERVE = 2.0
"""FLOPs per weight and generated token: the forward pass."""
FAR = 10.0
"""A budget beyond the fitted runs by more than this factor gets a warning."""


@dataclass(frozen=True)
class Smaller:
    """A model below the optimal size, trained until it reaches the optimum's loss."""

    parameters: float
    tokens: float
    flops: float
    """Training FLOPs, 6 N D."""
    more_training: float
    """Training FLOPs over those of the optimum."""
    less_serving: float
    """FLOPs of a generated token over those of the optimum."""
    break_even_tokens: float
    """Generated tokens after which the extra training is paid back; 0 for the optimum."""


@dataclass(frozen=True)
class Recommendation:
    """The compute-optimal use of a budget by a fit."""

    flops: float
    parameters: float
    tokens: float
    parameters_95: tuple[float, float] | None
    """None where the fit has no resamples."""
    tokens_95: tuple[float, float] | None
    loss: float | None
    """Loss at the optimum, nats a token; None for fits without a loss."""
    loss_95: tuple[float, float] | None
    flat: tuple[float, float] | None
    """Sizes between which the loss at this budget is within 1 % of the best."""
    smaller: tuple[Smaller, ...]
    extrapolation: float
    """The budget over the compute of the largest run that was fitted."""
    convention: str
    """The fit's convention of N and FLOPs."""
    warnings: tuple[str, ...]


def recommend(fit: dict[str, Any], flops: float) -> Recommendation:
    """The recommendation for a budget of `flops`, from a fit's JSON (`to_json()`, or a fit.json that was
    read).

    Raises UserError for a method that gives no sizes.
    """
    method = fit.get("method")
    warnings, scatter = [], 0.0
    if method == "parametric":
        law, draws = (
            Law(*(fit["parameters"][name] for name in NAMES)),
            np.asarray(fit["draws"], float).reshape(-1, 5),
        )
        parameters, tokens = law.optimal(flops)
        many = Law(*draws.T)
        stars = many.optimal(flops)
        losses = many.loss(*stars)
        loss: float | None = float(law.loss(parameters, tokens))
        flat: tuple[float, float] | None = near_optimal_sizes(law, flops)
        smaller = tuple(smaller_model(law, flops, part) for part in SMALLER)
    elif method in ("isoflop", "envelope"):
        p, draws = fit["parameters"], np.asarray(fit["draws"], float).reshape(-1, 4)
        parameters, tokens = p["N_coefficient"] * flops ** p["a"], p["D_coefficient"] * flops ** p["b"]
        stars = (
            np.exp(draws[:, 0] + draws[:, 1] * np.log(flops)),
            np.exp(draws[:, 2] + draws[:, 3] * np.log(flops)),
        )
        losses, loss, flat, smaller = np.zeros(0), None, None, ()
        if method == "isoflop":
            scatter = log_half_interval_of_minima(fit, flops)
    else:
        raise UserError(
            f"fit: method={method} gives no sizes. Use the fit.json of method=parametric, isoflop or "
            "envelope."
        )
    widen = float(fit["settings"]["widening"])
    smallest, fitted = fitted_flops(fit)
    if flops < smallest / FAR:
        warnings.append(
            f"{smallest / flops:.3g} times less compute than the smallest run that was fitted: the "
            "intervals do not cover a change of the "
            "law below it"
        )
    if flops > FAR * fitted:
        warnings.append(
            f"{flops / fitted:.3g} times the compute of the largest run that was fitted: the intervals do "
            "not cover a change of the law beyond it"
        )
    return Recommendation(
        flops=flops,
        parameters=float(parameters),
        tokens=float(tokens),
        parameters_95=widen_interval(parameters, interval_95(parameters, stars[0], widen), scatter),
        tokens_95=widen_interval(tokens, interval_95(tokens, stars[1], widen), scatter),
        loss=loss,
        loss_95=interval_95(loss, losses, widen) if loss else None,
        flat=flat,
        smaller=smaller,
        extrapolation=flops / fitted,
        convention=fit["settings"]["convention"],
        warnings=(*warnings, *fit.get("warnings", [])),
    )


def interval_95(estimate: float, draws: np.ndarray, widen: float) -> tuple[float, float] | None:
    """The 95 % interval of a positive estimate from its resamples [k], by quantiles of logarithms; None
    without resamples."""
    if len(draws) == 0:
        return None
    low, high = np.quantile(np.log(draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    middle = math.log(estimate) if widen != 1.0 else 0.0
    low, high = (middle + widen * (end - middle) for end in (low, high)) if widen != 1.0 else (low, high)
    return math.exp(low), math.exp(high)


def log_half_interval_of_minima(fit: dict[str, Any], flops: float) -> float:
    """Half of the 95 % interval of log N*, from the scatter of the minima of approach 2 about their line.

    Resamples cover the noise of seeds only, but budgets may differ by more. It holds for log D* too, since D*
    = C/(6 N*).
    """
    at = np.array([1.0, math.log(flops)])
    variance = float(at @ np.asarray(fit["covariance"], float) @ at)
    return float(stats.t.ppf((1 + LEVEL) / 2, fit["settings"]["budgets_used"] - 2)) * math.sqrt(
        max(variance, 0.0)
    )


def widen_interval(
    estimate: float, interval: tuple[float, float] | None, half: float
) -> tuple[float, float] | None:
    """The interval, widened to at least `half` in the logarithm on both sides of the estimate."""
    return interval and (
        min(interval[0], estimate * math.exp(-half)),
        max(interval[1], estimate * math.exp(half)),
    )


def fitted_flops(fit: dict[str, Any]) -> tuple[float, float]:
    """The FLOPs of the smallest and the largest run in the fit."""
    points = fit.get("points") or fit["frontier"]
    used = points.get("used", [True] * len(points["flops"]))
    flops = [c for c, there in zip(points["flops"], used, strict=True) if there]
    return min(flops), max(flops)


def near_optimal_sizes(law: Law, flops: float) -> tuple[float, float]:
    """The smallest and largest size whose loss at 6 N D = flops is within 1 % of the best.

    >>> low, high = near_optimal_sizes(Law(1.69, 406.4, 410.7, 0.34, 0.28), 5.76e23)
    >>> print(f"{low:.3g} {high:.3g}")
    9.01e+09 1.19e+11
    """
    best, _ = law.optimal(flops)
    worst = (1 + FLAT) * law.loss(*law.optimal(flops))

    def is_worse(log_part: float) -> bool:
        n = best * math.exp(log_part)
        return bool(law.loss(n, flops / FLOPS_A_WEIGHT / n) > worst)

    found = []
    for sign in (-1.0, 1.0):
        near, far = 0.0, sign
        while not is_worse(far) and abs(far) < 40:  # loss falls towards the optimum from both sides: bisect
            near, far = far, 2 * far
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (near, middle) if is_worse(middle) else (middle, far)
        found.append(float(best * math.exp(near)))
    return found[0], found[1]


def smaller_model(law: Law, flops: float, part: float) -> Smaller:
    """The model of size part x N* with the tokens that train it to the optimum's loss; infinite where it
    can't reach it."""
    best, best_tokens = law.optimal(flops)
    n = part * best
    left = law.loss(best, best_tokens) - law.E - law.A / n**law.alpha
    tokens = (law.B / left) ** (1 / law.beta) if left > 0 else math.inf
    spent = FLOPS_A_WEIGHT * n * tokens
    saved = FLOPS_TO_SERVE * (best - n)
    return Smaller(
        parameters=float(n),
        tokens=float(tokens),
        flops=float(spent),
        more_training=float(spent / flops),
        less_serving=part,
        break_even_tokens=0.0 if saved <= 0 else float((spent - flops) / saved),
    )


def read_fit(path: Path) -> dict[str, Any]:
    """The content of a fit.json. Raises UserError for a file that isn't one."""
    if not path.is_file():
        raise UserError(
            f"fit={path}: there is no such file"
            + (f"; did you mean {path / 'fit.json'}?" if path.is_dir() else "")
        )
    try:
        fit = json.loads(text_of(path.read_bytes(), f"fit={path}"))
    except ValueError as error:
        raise UserError(f"fit={path}: is not JSON ({error})") from error
    if not isinstance(fit, dict) or not {"method", "parameters", "settings", "draws"} <= set(fit):
        raise UserError(
            f"fit={path}: is not a file that llm_jax.scaling.fit writes. Give the path of a fit.json."
        )
    return fit


@dataclass(frozen=True, kw_only=True)
class RecommendCommand:
    """Recommends the compute-optimal size and tokens for a budget: python -m llm_jax.scaling.recommend
    fit=FIT.json flops=C

      python -m llm_jax.scaling.recommend fit=runs/scaling/isoflop_cpu/fit.json flops=1e21
      python -m llm_jax.scaling.recommend fit=FIT.json gpus=64 hours=24 hardware=h100 mfu=0.45

    Prints N* and D* with 95 % intervals, the sizes whose loss is within 1 % of the best, and the cost and
    savings of smaller models that are trained for longer to the same loss. A fit without a loss (isoflop,
    envelope) gives N* and D* only.

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """

    fit: Path = argument(shown="FIT.json")
    """The path of a file that llm_jax.scaling.fit wrote with method=parametric, isoflop or envelope."""
    flops: float | None = argument(None, shown="C", above=0)
    """The budget in FLOPs, by the fit's convention."""
    gpus: float | None = argument(None, shown="N", above=0)
    """Instead, a budget in time: how many devices."""
    hours: float | None = argument(None, shown="H", above=0)
    """For how many hours."""
    hardware: str = argument("", shown="NAME", choices=hardware_names)
    """Which devices (llm_jax/layout/hardware.toml has their bfloat16 peak)."""
    mfu: float | None = argument(None, above=0, most=1)
    """The part of the peak that training reaches (see mfu in the summary.json of a run)."""
    json: Path | None = argument(None, shown="FILE", read=output_file)
    """Writes the recommendation as JSON."""

    def check(self) -> None:
        """Raises UserError unless there is one whole budget."""
        in_time = {key: getattr(self, key) for key in ("gpus", "hours", "hardware", "mfu")}
        given = [key for key, value in in_time.items() if value]
        if self.flops and given:
            raise UserError(
                f"{given[0]}={in_time[given[0]]}: flops= is given too. Give one budget: flops=, or gpus= "
                "hours= hardware= mfu=."
            )
        if not self.flops and not given:
            raise UserError("flops=C is missing. Give it, or gpus= hours= hardware= mfu=.")
        for key, value in in_time.items():
            if not self.flops and not value:
                raise UserError(f"{key}= is missing: a budget in time needs gpus= hours= hardware= mfu=")

    @property
    def budget(self) -> float:
        """The budget in FLOPs."""
        if self.flops:
            return self.flops
        assert self.gpus
        assert self.hours
        assert self.mfu
        return self.gpus * self.hours * 3600 * self.mfu * hardware(self.hardware).peak_flops["bfloat16"]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(recommend_command, arguments)


def recommend_command(arguments: list[str]) -> int:
    """Runs the command line; raises UserError for a mistake in it."""
    command = read_command(arguments, RecommendCommand)
    if command is None:
        return 0
    found = recommend(read_fit(command.fit), command.budget)
    show_recommendation(found)
    if command.json:
        write_json(to_plain(found), command.json)
    return 0


def show_recommendation(found: Recommendation) -> None:
    """Prints a recommendation as tables, with its warnings."""
    console = make_console()
    rows = table("", ">best", ">from", ">to")

    def row(name: str, value: float, interval: tuple[float, float] | None, form: str) -> None:
        rows.add_row(
            name, format(value, form), *((format(end, form) for end in interval) if interval else ("", ""))
        )

    row("parameters N*", found.parameters, found.parameters_95, ".4g")
    row("tokens D*", found.tokens, found.tokens_95, ".4g")
    row("tokens a parameter", found.tokens / found.parameters, None, ".4g")
    if found.loss:
        row("loss, nats a token", found.loss, found.loss_95, ".4f")
    if found.flat:
        row("N with a loss within 1 %", found.parameters, found.flat, ".4g")
    show(
        console,
        f"{found.flops:.4g} FLOPs ({found.extrapolation:.3g} times the largest run fitted); N and FLOPs: "
        f"{found.convention}; 95 % intervals",
        rows,
    )
    if found.smaller:
        rows = table(
            ">N",
            ">part of N*",
            ">tokens",
            ">training FLOPs",
            ">times the optimum's",
            ">FLOPs a token served",
            ">pays back after tokens",
        )
        for s in found.smaller:
            rows.add_row(
                f"{s.parameters:.3g}", f"{s.less_serving:.0%}", f"{s.tokens:.3g}", f"{s.flops:.3g}",
                f"{s.more_training:.2f}",
                f"{FLOPS_TO_SERVE * s.parameters:.3g}",
                f"{s.break_even_tokens:.3g}" if s.break_even_tokens else "",
            )  # fmt: skip
        show(console, "Smaller models trained to the same loss", rows)
    console.print()
    for warning in found.warnings:
        console.print(f"warning: {warning}")


if __name__ == "__main__":
    sys.exit(main())
