"""Measures approach 3's solver against a loop of scipy.optimize.minimize.

  python tools/bench_fit.py [TABLE.csv]

The work is Hoffmann et al.'s 4,500 starts and 4,000 case resamples, each refitted from the best fit: 8,500
minimisations of Huber's loss (delta 1e-3) of the log-sum-exp law. Ours runs all of it, compilation included,
and then once more. scipy runs a sample of both, and its time is scaled up. Its objective is plain numpy with
derivatives by hand, as fast as we can write it, on one thread (more threads slow it down). TABLE.csv has the
columns "Model Size", "Training FLOP" and "loss", as Epoch AI's; without it runs are simulated.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # compilation is part of what is measured

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from llm_jax.scaling.fit import Law
from llm_jax.scaling.fit.approach3 import Problem, without_highest
from llm_jax.scaling.fit.bootstrap import resampled_weights
from llm_jax.scaling.fit.law_residuals import hoffmann_starts
from llm_jax.scaling.fit.result import columns

DELTA = 1e-3
REFITS = 4000
SCALE = 1e3
"""scipy's tolerances are absolute, and the objective is 1e-3: unscaled, it stops before the minimum."""
VARIANTS: dict[str, dict[str, Any]] = {
    "BFGS, no derivatives (its default)": {"method": "BFGS"},
    "BFGS, derivatives": {"method": "BFGS", "jac": True, "options": {"gtol": 1e-8}},
    "L-BFGS-B, derivatives": {"method": "L-BFGS-B", "jac": True, "options": {"ftol": 1e-12, "gtol": 1e-9}},
}


def points(path: str | None) -> dict[str, np.ndarray]:
    """The runs of a table, or 245 simulated ones with heavy-tailed residuals like Epoch AI's."""
    if path:
        t = pd.read_csv(path)
        return columns(
            parameters=t["Model Size"], tokens=t["Training FLOP"] / 6 / t["Model Size"], loss=t["loss"]
        )
    rng = np.random.default_rng(0)
    n, c = (
        np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), 245)),
        np.exp(rng.uniform(np.log(1e19), np.log(3e21), 245)),
    )
    loss = Law(1.82, 478, 2143, 0.347, 0.367).loss(n, c / 6 / n) * np.exp(0.004 * rng.standard_t(3, 245))
    return columns(parameters=n, tokens=c / 6 / n, loss=loss)


def objective(problem: Problem, weights: np.ndarray, slopes: bool):
    """The problem's objective for scipy, in numpy: theta [5] -> value, with `slopes` also its derivatives
    [5]."""
    kept = weights > 0
    x, y, target, w = (
        a[kept] for a in (problem.data["log_n"], problem.data["log_d"], problem.data["target"], weights)
    )

    def evaluate(theta: np.ndarray):
        e, a, b, alpha, beta = theta
        terms = np.stack([np.full_like(x, e), a - alpha * x, b - beta * y])
        highest = terms.max(0)
        parts = np.exp(terms - highest)
        whole = parts.sum(0)
        r = highest + np.log(whole) - target
        size = np.abs(r)
        near = np.minimum(size, DELTA)
        value = SCALE * (w * near * (size - near / 2)).sum()
        if not slopes:
            return value
        share = SCALE * w * np.clip(r, -DELTA, DELTA) * parts / whole
        return value, np.array([share[0].sum(), share[1].sum(), share[2].sum(), -share[1] @ x, -share[2] @ y])

    return evaluate


def main() -> None:
    """Runs the command line: prints the times of both and how many starts succeed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?", help="Epoch AI's svg_extracted_data.csv, or one like it")
    parser.add_argument("--sample", type=int, default=60, help="starts and refits that scipy does of each")
    options = parser.parse_args()
    problem = Problem(table := points(options.table), "log", DELTA, tied=False)
    used = without_highest(table["loss"], 5)
    weights = resampled_weights("case", used, REFITS, seed=0)
    starts = hoffmann_starts()

    def ours() -> tuple[float, np.ndarray, np.ndarray]:
        began = time.perf_counter()
        first = problem.from_starts(used)
        again = problem.fit(np.repeat(first.theta[first.best][None], REFITS, 0), weights)
        return time.perf_counter() - began, first.objective, again.objective

    cold, found, refitted = ours()
    warm, _, _ = ours()
    best = found.min()
    theta = problem.from_starts(used).theta[found.argmin()]
    at_best = (found < best * 1.0001).mean()
    print(
        f"{len(starts) + REFITS} minimisations over {used.sum()} runs, {os.cpu_count()} CPU cores; lowest "
        f"objective {best:.6e}"
    )
    print(
        f"ours: {cold:.1f} s with compilation, {warm:.1f} s without; {at_best:.0%} of the starts end at "
        "the lowest minimum"
    )
    rng = np.random.default_rng(0)
    some_starts, some_refits = (
        rng.choice(count, options.sample, replace=False) for count in (len(starts), REFITS)
    )
    for name, how in VARIANTS.items():
        evaluate = objective(problem, used.astype(float), "jac" in how)
        began = time.perf_counter()
        values = np.array([minimize(evaluate, starts[i], **how).fun / SCALE for i in some_starts])
        first = (time.perf_counter() - began) / options.sample
        began = time.perf_counter()
        again = np.array(
            [
                minimize(objective(problem, weights[i], "jac" in how), theta, **how).fun / SCALE
                for i in some_refits
            ]
        )
        second = (time.perf_counter() - began) / options.sample
        whole = len(starts) * first + REFITS * second
        worse = np.max(again / refitted[some_refits] - 1)
        print(
            f"scipy {name}: {whole:.0f} s (from {options.sample} starts of {1e3 * first:.1f} ms and "
            f"{options.sample} refits of "
            f"{1e3 * second:.1f} ms), {whole / cold:.0f} times ours with compilation, {whole / warm:.0f} "
            "times without; "
            f"{(values < best * 1.0001).mean():.0%} of the starts end at the lowest minimum; refits at "
            f"most {worse:.1e} above ours"
        )


if __name__ == "__main__":
    main()
