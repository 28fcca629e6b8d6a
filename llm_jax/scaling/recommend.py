"""What to train next: the optimal size and tokens for a compute budget, from a fit.json: python -m llm_jax.scaling.recommend ...

  python -m llm_jax.scaling.recommend fit=runs/scaling/isoflop_cpu/fit.json flops=1e21
  python -m llm_jax.scaling.recommend fit=FIT.json gpus=64 hours=24 hardware=h100 mfu=0.45

fit=FIT.json      what llm_jax.scaling.fit wrote, with method=parametric, isoflop or envelope
flops=C           the budget in FLOPs, by the fit's own convention; or
gpus=N hours=H    the budget in time, with
hardware=NAME     a device of llm_jax/layout/hardware.toml (its bfloat16 peak), and
mfu=X             the part of that peak that training reaches (measure it: a run's summary has it)
json=PATH         writes it as JSON

  --help          this text

It prints N* and D* with 95 % intervals, the sizes whose loss is within 1 % of the best, and what smaller models, trained for longer
to the same loss, cost and save. A fit without a loss (isoflop, envelope) has N* and D* only.
Exit codes: 0 done, 2 a mistake in what was asked (one line says what).
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from llm_jax.core.command import output_file, read_arguments, run_command
from llm_jax.core.errors import UserError, nearest
from llm_jax.core.tables import make_console, show, table
from llm_jax.scaling.fit.bootstrap import LEVEL
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT, NAMES, Law

FLAT = 0.01
"""Losses within this part of the best are called flat."""
SMALLER = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Sizes, as parts of N*, whose over-training is priced."""
FLOPS_TO_SERVE = 2.0
"""FLOPs of a weight and a token that is generated: the forward pass."""
FAR = 10.0
"""Budgets of more than this many times the largest run are far from what was measured."""
KEYS = ("fit", "flops", "gpus", "hours", "hardware", "mfu", "json")


@dataclass(frozen=True)
class Smaller:
    """A model below the optimal size, trained until it reaches the optimum's loss."""

    parameters: float
    tokens: float
    flops: float
    """Training, 6 N D."""
    more_training: float
    """Training FLOPs over those of the optimum."""
    less_serving: float
    """FLOPs of a generated token over those of the optimum."""
    break_even_tokens: float
    """Tokens to be generated until the training is paid back; 0 for the optimum."""


@dataclass(frozen=True)
class Recommendation:
    """The best use of a budget, as a fit sees it."""

    flops: float
    parameters: float
    tokens: float
    parameters_95: tuple[float, float] | None
    """None where the fit has no resamples."""
    tokens_95: tuple[float, float] | None
    loss: float | None
    """None for fits without a loss."""
    loss_95: tuple[float, float] | None
    flat: tuple[float, float] | None
    """Sizes between which the loss at this budget is within 1 % of the best."""
    smaller: tuple[Smaller, ...]
    extrapolation: float
    """The budget over the compute of the largest run that was fitted."""
    convention: str
    """Of N and FLOPs, as in the fit."""
    warnings: tuple[str, ...]


def recommend(fit: dict[str, Any], flops: float) -> Recommendation:
    """What to train with `flops`, from a fit's JSON (`fit.to_json()`, or a fit.json that was read)."""
    method = fit.get("method")
    warnings, scatter = [], 0.0
    if method == "parametric":
        law, draws = Law(*(fit["parameters"][name] for name in NAMES)), np.asarray(fit["draws"], float).reshape(-1, 5)
        parameters, tokens = law.optimal(flops)
        many = Law(*draws.T)
        stars = many.optimal(flops)
        losses = many.loss(*stars)
        loss: float | None = float(law.loss(parameters, tokens))
        flat: tuple[float, float] | None = flat_region(law, flops)
        smaller = tuple(overtrained(law, flops, part) for part in SMALLER)
    elif method in ("isoflop", "envelope"):
        p, draws = fit["parameters"], np.asarray(fit["draws"], float).reshape(-1, 4)
        parameters, tokens = p["N_coefficient"] * flops ** p["a"], p["D_coefficient"] * flops ** p["b"]
        stars = (np.exp(draws[:, 0] + draws[:, 1] * np.log(flops)), np.exp(draws[:, 2] + draws[:, 3] * np.log(flops)))
        losses, loss, flat, smaller = np.zeros(0), None, None, ()
        if method == "isoflop":
            scatter = scatter_of_minima(fit, flops)
    else:
        raise UserError(f"fit: method={method} says nothing of sizes; use the fit.json of method=parametric, isoflop or envelope")
    widen = float(fit["settings"]["widening"])
    smallest, fitted = fitted_flops(fit)
    if flops < smallest / FAR:
        warnings.append(
            f"{smallest / flops:.3g} times less compute than the smallest run that was fitted: the intervals do not know where the law begins"
        )
    if flops > FAR * fitted:
        warnings.append(
            f"{flops / fitted:.3g} times the compute of the largest run that was fitted: the intervals do not know whether the law goes on"
        )
    return Recommendation(
        flops=flops,
        parameters=float(parameters),
        tokens=float(tokens),
        parameters_95=wider(parameters, ends(parameters, stars[0], widen), scatter),
        tokens_95=wider(tokens, ends(tokens, stars[1], widen), scatter),
        loss=loss,
        loss_95=ends(loss, losses, widen) if loss else None,
        flat=flat,
        smaller=smaller,
        extrapolation=flops / fitted,
        convention=fit["settings"]["convention"],
        warnings=(*warnings, *fit.get("warnings", [])),
    )


def ends(estimate: float, draws: np.ndarray, widen: float) -> tuple[float, float] | None:
    """The 95 % interval of something positive from its resamples; None if there are none."""
    if len(draws) == 0:
        return None
    low, high = np.quantile(np.log(draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    middle = math.log(estimate) if widen != 1.0 else 0.0
    low, high = (middle + widen * (end - middle) for end in (low, high)) if widen != 1.0 else (low, high)
    return math.exp(low), math.exp(high)


def scatter_of_minima(fit: dict[str, Any], flops: float) -> float:
    """Half of the 95 % interval of log N* by how the minima of approach 2 lie about their line: budgets may differ by more than the noise
    of seeds, which the resamples know. It is that of log D* too, for D* is what N* leaves of the budget."""
    at = np.array([1.0, math.log(flops)])
    variance = float(at @ np.asarray(fit["covariance"], float) @ at)
    return float(stats.t.ppf((1 + LEVEL) / 2, fit["settings"]["budgets_used"] - 2)) * math.sqrt(max(variance, 0.0))


def wider(estimate: float, interval: tuple[float, float] | None, half: float) -> tuple[float, float] | None:
    """The interval, and at least `half` in the logarithm to both sides of the estimate."""
    return interval and (min(interval[0], estimate * math.exp(-half)), max(interval[1], estimate * math.exp(half)))


def fitted_flops(fit: dict[str, Any]) -> tuple[float, float]:
    """The compute of the smallest and of the largest run that was fitted."""
    points = fit.get("points") or fit["frontier"]
    return min(points["flops"]), max(points["flops"])


def flat_region(law: Law, flops: float) -> tuple[float, float]:
    """The sizes between which the loss, at 6 N D = flops, is within 1 % of the best.

    >>> low, high = flat_region(Law(1.69, 406.4, 410.7, 0.34, 0.28), 5.76e23)
    >>> print(f"{low:.3g} {high:.3g}")
    9.01e+09 1.19e+11
    """
    best, _ = law.optimal(flops)
    worst = (1 + FLAT) * law.loss(*law.optimal(flops))

    def too_much(log_part: float) -> bool:
        n = best * math.exp(log_part)
        return bool(law.loss(n, flops / FLOPS_A_WEIGHT / n) > worst)

    found = []
    for sign in (-1.0, 1.0):
        near, far = 0.0, sign
        while not too_much(far) and abs(far) < 40:  # loss falls towards the optimum from both sides: halve
            near, far = far, 2 * far
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (near, middle) if too_much(middle) else (middle, far)
        found.append(float(best * math.exp(near)))
    return found[0], found[1]


def overtrained(law: Law, flops: float, part: float) -> Smaller:
    """A model of that part of N*, and the tokens that take it to the optimum's loss; infinite where it never gets there."""
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


def budget(pairs: dict[str, str]) -> float:
    """The FLOPs of a command line. Raises UserError for what is missing, or no number above 0."""

    def positive(key: str) -> float:
        try:
            value = float(pairs[key])
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UserError(f"{key}={pairs[key]}: must be a number above 0")
        return value

    timed = [key for key in ("gpus", "hours", "hardware", "mfu") if key in pairs]
    if "flops" in pairs:
        if timed:
            raise UserError(f"{timed[0]}={pairs[timed[0]]}: flops= is given too; give one budget, flops= or gpus= hours= hardware= mfu=")
        return positive("flops")
    if not timed:
        raise UserError("flops=C is missing; or give gpus= hours= hardware= mfu=")
    for key in ("gpus", "hours", "hardware", "mfu"):
        if key not in pairs:
            raise UserError(f"{key}= is missing: a budget in time needs gpus= hours= hardware= mfu=")
    from llm_jax.layout.hardware import hardware

    mfu = positive("mfu")
    if mfu > 1:
        raise UserError(f"mfu={pairs['mfu']}: must be a part of the peak, at most 1 (0.45 for 45 %)")
    return positive("gpus") * positive("hours") * 3600 * mfu * hardware(pairs["hardware"]).peak_flops["bfloat16"]


def read_fit(path: Path) -> dict[str, Any]:
    """A fit.json. Raises UserError for a file that isn't one."""
    if not path.is_file():
        raise UserError(f"fit={path}: there is no such file" + (f"; did you mean {path / 'fit.json'}?" if path.is_dir() else ""))
    try:
        fit = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"fit={path}: is not JSON ({error})") from error
    if not isinstance(fit, dict) or not {"method", "parameters", "settings", "draws"} <= set(fit):
        raise UserError(f"fit={path}: is not what llm_jax.scaling.fit writes")
    return fit


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(command, arguments)


def command(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    flags, pairs = read_arguments(arguments, ("--help", "-h"))
    if not arguments or flags:
        print(__doc__)
        return 0
    for key, value in pairs:
        if key not in KEYS:
            raise UserError(f"{key}={value}: there is no key {key!r}; {nearest(key, KEYS)}")
    given = dict(pairs)
    if "fit" not in given:
        raise UserError("fit=FIT.json is missing (llm_jax.scaling.fit writes it)")
    out = output_file("json", given["json"]) if "json" in given else None
    made = recommend(read_fit(Path(given["fit"])), budget(given))
    show_recommendation(made)
    if out:
        from llm_jax.scaling.fit.result import to_plain, write_json

        write_json(to_plain(made), out)
    return 0


def show_recommendation(made: Recommendation) -> None:
    """Prints it as tables."""
    console = make_console()
    rows = table("", ">best", ">from", ">to")

    def row(name: str, value: float, interval: tuple[float, float] | None, form: str) -> None:
        rows.add_row(name, format(value, form), *((format(end, form) for end in interval) if interval else ("", "")))

    row("parameters N*", made.parameters, made.parameters_95, ".4g")
    row("tokens D*", made.tokens, made.tokens_95, ".4g")
    row("tokens a parameter", made.tokens / made.parameters, None, ".4g")
    if made.loss:
        row("loss, nats a token", made.loss, made.loss_95, ".4f")
    if made.flat:
        row("N with a loss within 1 %", made.parameters, made.flat, ".4g")
    show(
        console,
        f"{made.flops:.4g} FLOPs ({made.extrapolation:.3g} times the largest run fitted); N and FLOPs: {made.convention}; 95 % intervals",
        rows,
    )
    if made.smaller:
        rows = table(">N", ">part of N*", ">tokens", ">training FLOPs", ">times the optimum's", ">FLOPs a token served", ">pays back after tokens")
        for s in made.smaller:
            rows.add_row(
                f"{s.parameters:.3g}", f"{s.less_serving:.0%}", f"{s.tokens:.3g}", f"{s.flops:.3g}", f"{s.more_training:.2f}",
                f"{FLOPS_TO_SERVE * s.parameters:.3g}", f"{s.break_even_tokens:.3g}" if s.break_even_tokens else "",
            )  # fmt: skip
        show(console, "Smaller models trained to the same loss", rows)
    console.print()
    for warning in made.warnings:
        console.print(f"warning: {warning}")


if __name__ == "__main__":
    sys.exit(main())
