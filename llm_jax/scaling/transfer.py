"""The command `python -m llm_jax.scaling.transfer`: compares the best learning rates of small and large
models."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_jax.core.arguments import argument, read_command
from llm_jax.core.command import PICTURES, output_file, run_command
from llm_jax.core.errors import UserError, nearest
from llm_jax.scaling.fit.table import load_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Curve:
    """Runs of one size and parametrisation that differ in their learning rate."""

    size: int
    rates: tuple[float, ...]
    """Learning rates, ascending."""
    losses: tuple[float, ...]
    """Held-out losses, nats a token, averaged over runs with one rate; infinite where a run diverged."""

    @property
    def best(self) -> int:
        """The index of the rate with the lowest loss."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    @property
    def at_edge(self) -> bool:
        """Whether the lowest loss is at the first or the last rate, so that the minimum may be beyond."""
        return self.best in (0, len(self.rates) - 1)

    @property
    def optimum(self) -> float:
        """The rate at the minimum of the parabola in log(rate) through the lowest loss and its neighbours; at
        an edge, the edge's rate."""
        if self.at_edge or not math.isfinite(self.losses[self.best + 1]):
            return self.rates[self.best]
        (x0, x1, x2), (y0, y1, y2) = (
            [f(v) for v in values[self.best - 1 : self.best + 2]]
            for f, values in ((math.log, self.rates), (float, self.losses))
        )
        left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
        bend = (right - left) / (x2 - x0)
        return math.exp((x0 + x1) / 2 - left / (2 * bend)) if bend > 0 else self.rates[self.best]


Curves = dict[str, list[Curve]]
"""Parametrisation → curves, from the smallest size to the largest."""


def curves(table: pd.DataFrame, against: str = "embed") -> Curves:
    """The curves in a table of runs; against: the column of the size. Raises UserError where no two curves
    can be compared."""
    for column in (against, "learning_rate", "parametrization", "eval_loss", "status"):
        if column not in table:
            key = f"against={against}" if column == against else "data"
            raise UserError(
                f"{key}: the table of runs has no column {column!r}; "
                f"{nearest(column, map(str, table.columns))}"
            )
    table = table[table["status"].isin(["finished", "diverged"])].copy()
    table["eval_loss"] = table["eval_loss"].astype(float).where(table["status"] == "finished", math.inf)
    found: Curves = {}
    for (name, size), runs in table.groupby(["parametrization", against]):
        by_rate = runs.groupby("learning_rate")["eval_loss"].mean().sort_index()
        if len(by_rate) > 1:
            found.setdefault(str(name), []).append(
                Curve(int(size), tuple(map(float, by_rate.index)), tuple(map(float, by_rate)))
            )
    if not any(len(by_size) > 1 for by_size in found.values()):
        raise UserError(
            f"against={against}: the table has no parametrization with two learning rates at each of two "
            "sizes. Add runs."
        )
    return found


def rate_shift(by_size: list[Curve]) -> float:
    """The ratio of the largest to the smallest of the curves' best rates; 1 where they are equal."""
    optima = [curve.optimum for curve in by_size]
    return max(optima) / min(optima)


def draw(found: Curves, against: str, path: Path) -> None:
    """Writes the figure: a panel for each parametrisation, a line for each size with its minimum marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(found), 4.2), layout="constrained")
    row = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    rates = sorted({rate for by_size in found.values() for curve in by_size for rate in curve.rates})
    for axes, (name, by_size) in zip(row, found.items(), strict=True):
        for i, curve in enumerate(by_size):
            shade = (0.12, 0.31, 0.47, 0.35 + 0.65 * (i + 1) / len(by_size))
            axes.plot(
                curve.rates,
                curve.losses,
                "o-",
                markersize=3.5,
                linewidth=1 + 0.3 * i,
                color=shade,
                label=f"{against} {curve.size}",
            )
            axes.plot(
                curve.optimum,
                curve.losses[curve.best],
                "D" if not curve.at_edge else "x",
                markersize=6,
                color="#c0504d",
                zorder=3,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(rates)
        axes.minorticks_off()
        axes.set(
            xlabel="learning rate",
            title=f"{name}: the best rate moves by a factor of {rate_shift(by_size):.1f}",
        )
        axes.grid(alpha=0.25)
    row[0].set_ylabel("held-out loss (nats per token)")
    row[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def describe(found: Curves, against: str) -> str:
    """The best rate of each curve and their ratio, as lines of text."""
    lines = []
    for name, by_size in found.items():
        for curve in by_size:
            edge = " (at the edge: the best may be beyond)" if curve.at_edge else ""
            lines.append(
                f"{name:<10} {against} {curve.size:>5}: best rate {curve.optimum:.5f}, loss "
                f"{curve.losses[curve.best]:.4f}{edge}"
            )
        lines.append(f"{name:<10} the best rate moves by a factor of {rate_shift(by_size):.2f}")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class TransferCommand:
    """Compares best learning rates between sizes: python -m llm_jax.scaling.transfer data=runs.csv ...

      python -m llm_jax.scaling.transfer data=runs/scaling/mup_transfer/default/runs.csv out=transfer.png
      python -m llm_jax.scaling.transfer data=runs/depths/runs.csv against=layers

    Reads a table of runs (`llm_jax.scaling.collect`) with several learning rates at each size. Draws loss
    against learning rate for each size with its minimum, a panel for each parametrisation, and prints by
    which factor the best rate differs between sizes.

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """

    data: Path = argument(shown="PATH")
    """A .csv or .parquet with one run a row; unfinished runs are left out, and diverged ones count as the
    worst."""
    against: str = argument("embed", shown="COLUMN")
    """The column that is the size: embed, layers or another."""
    out: Path = argument(
        Path("transfer.png"), shown="FILE", read=functools.partial(output_file, endings=PICTURES)
    )
    """The figure."""


def run(arguments: list[str]) -> int:
    """Reads the command line, draws the figure and prints the best rates. Raises UserError."""
    command = read_command(arguments, TransferCommand)
    if command is None:
        return 0
    output_file("out", str(command.out), PICTURES)
    found = curves(load_table(command.data), command.against)
    draw(found, command.against, command.out)
    print(describe(found, command.against))
    print(f"figure: {command.out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
