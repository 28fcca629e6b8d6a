"""The runs themselves: losses over a sweep of learning rates and batches, and training curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.figure_style import INK, RED, new_figure
from llm_jax.core.files import read_json_lines
from llm_jax.core.format import counted, listed, short, span
from llm_jax.scaling.report.bands import Drawn
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.report.style import ordered, say_numbers, shades, size_bar
from llm_jax.train.metrics import smooth

if TYPE_CHECKING:
    import pandas as pd

LEAST_RATES, LEAST_BATCHES = 3, 2
"""Learning rates, and batch sizes, that make a sweep of a model's runs."""
MOST_PANELS = 6
AS_GOOD = 0.01
"""Nats within which two runs are as good as each other."""
MOST_CURVES = 60
MOST_POINTS = 400
"""Of a training curve."""


@dataclass(frozen=True)
class Sweep:
    """The runs of one model on so many tokens, over learning rates and batch sizes."""

    parameters: float
    tokens: float
    rates: np.ndarray
    batches: np.ndarray
    """Tokens a batch."""
    loss: np.ndarray
    """[batches, rates], the best of several seeds; NaN where there is no finished run."""
    lost: np.ndarray
    """[batches, rates], bool: the run diverged or failed."""

    @property
    def best(self) -> tuple[int, int]:
        """Where the loss is lowest."""
        i, j = np.unravel_index(np.nanargmin(self.loss), self.loss.shape)
        return int(i), int(j)

    @property
    def edges(self) -> list[str]:
        """The sides of the sweep that its best run lies on."""
        i, j = self.best
        found = [(len(self.rates) > 1, j == 0, "lowest learning rate"), (len(self.rates) > 1, j == len(self.rates) - 1, "highest learning rate")]
        found += [(len(self.batches) > 1, i == 0, "smallest batch"), (len(self.batches) > 1, i == len(self.batches) - 1, "largest batch")]
        return [name for there, at, name in found if there and at]


def sweeps(table: pd.DataFrame, runs: pd.DataFrame) -> list[Sweep]:
    """The sweeps in a table, smallest model first: runs alike in N and (to 5 %) tokens, at three learning rates or more."""
    if not {"learning_rate", "batch_size", "sequence_length"} <= set(table):
        return []
    both = runs.assign(rate=table.learning_rate, batch=table.batch_size * table.sequence_length).dropna(
        subset=["rate", "batch", "parameters", "tokens"]
    )
    both = both[~both.held_out].sort_values(["parameters", "tokens"])
    new = (both.parameters != both.parameters.shift()) | (both.tokens > 1.05 * both.tokens.shift())
    found = []
    for _, own in both.groupby(new.cumsum()):
        rates, batches = np.unique(own.rate), np.unique(own.batch)
        loss = np.full((len(batches), len(rates)), np.nan)
        lost = np.zeros_like(loss, bool)
        for _, row in own.iterrows():
            cell = np.searchsorted(batches, row.batch), np.searchsorted(rates, row.rate)
            if row.status == "finished" and np.isfinite(row.loss):
                loss[cell] = np.fmin(loss[cell], row.loss)
            elif row.status in ("diverged", "failed"):
                lost[cell] = True
        if len(rates) >= LEAST_RATES and np.isfinite(loss).sum() >= LEAST_RATES:
            found.append(Sweep(float(own.parameters.iloc[0]), float(own.tokens.median()), rates, batches, loss, lost & np.isnan(loss)))
    return found


def sweep_figure(study: Study) -> Drawn | str:
    """Heat maps of loss over learning rate and batch; curves over the learning rate where there is one batch size only."""
    found = sweeps(study.table, study.runs)
    if not found:
        return "No map of learning rate and batch: no model of the table was trained at three learning rates or more, all else equal."
    maps = [sweep for sweep in found if len(sweep.batches) >= LEAST_BATCHES][:MOST_PANELS]
    drawn = heat_maps(maps) if maps else rate_curves(found)
    said = []
    for sweep in maps or found:
        i, j = sweep.best
        good = sweep.loss <= np.nanmin(sweep.loss) + AS_GOOD
        good_rates = sweep.rates[good.any(0)]
        text = (
            f"{short(sweep.parameters)} parameters, {short(sweep.tokens)} tokens: best {sweep.loss[i, j]:.3f} at learning rate {sweep.rates[j]:.3g}"
        )
        if len(sweep.batches) > 1:
            text += f" with {short(sweep.batches[i])} tokens a batch"
        rates = span(float(good_rates.min()), float(good_rates.max()), "{:.3g}".format)
        text += f"; {good.sum()} of {np.isfinite(sweep.loss).sum()} runs are within {AS_GOOD} nats, at {rates}"
        if sweep.edges:
            text += f"; it is at the {listed(sweep.edges)}: the optimum may be beyond"
        if sweep.lost.any():
            text += f"; {counted(int(sweep.lost.sum()), 'run')} lost (crosses)"
        said.append(text + ".")
    what = "Loss above the best run's, by learning rate and batch. " if maps else "Loss against the learning rate; rings are each size's best. "
    return Drawn("sweep", drawn, what + " ".join(said))


def heat_maps(maps: list[Sweep]) -> Any:
    """A panel for each model."""
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure, axes = new_figure(0.5 + 2.5 * rows, columns=columns, rows=rows, squeeze=False)
    for ax in axes.flat[len(maps) :]:
        ax.set_visible(False)
    for ax, sweep in zip(axes.flat, maps, strict=False):
        above = sweep.loss - np.nanmin(sweep.loss)
        top = max(float(np.nanquantile(above, 0.9)), 2 * AS_GOOD)
        ax.grid(False)
        ax.pcolormesh(np.ma.masked_invalid(above), cmap=ordered(), vmin=0, vmax=top, edgecolors="white", linewidth=1)
        for i, j in np.ndindex(above.shape):
            if np.isfinite(above[i, j]):
                colour = "white" if above[i, j] < 0.55 * top else INK
                ax.text(
                    j + 0.5,
                    i + 0.5,
                    f"{above[i, j]:.3f}" if above[i, j] else f"{sweep.loss[i, j]:.3f}",
                    color=colour,
                    fontsize=6.5,
                    ha="center",
                    va="center",
                )
            elif sweep.lost[i, j]:
                ax.plot(j + 0.5, i + 0.5, "x", color=RED, markersize=6)
        i, j = sweep.best
        ax.plot(j + 0.5, i + 0.5, "s", markersize=24, markerfacecolor="none", markeredgecolor="white", markeredgewidth=1.2)
        ax.set_xticks(np.arange(len(sweep.rates)) + 0.5, [f"{rate:.2g}" for rate in sweep.rates], rotation=45, ha="right")
        ax.set_yticks(np.arange(len(sweep.batches)) + 0.5, [short(batch) for batch in sweep.batches])
        ax.set(xlabel="learning rate", ylabel="tokens a batch", title=f"{short(sweep.parameters)} parameters, {short(sweep.tokens)} tokens")
    return figure


def rate_curves(found: list[Sweep]) -> Any:
    """A line for each model."""
    figure, ax = new_figure(3.4)
    for sweep, colour in zip(found, shades(len(found)), strict=True):
        losses = np.nanmin(np.where(np.isnan(sweep.loss), np.inf, sweep.loss), axis=0)
        there = np.isfinite(losses)
        ax.plot(
            sweep.rates[there],
            losses[there],
            "o-",
            color=colour,
            markersize=4,
            label=f"{short(sweep.parameters)} parameters, {short(sweep.tokens)} tokens",
        )
        _, j = sweep.best
        ax.scatter(sweep.rates[j], losses[j], s=90, facecolors="none", edgecolors=colour, linewidths=1.3)
        gone = sweep.lost.any(0)
        ax.plot(sweep.rates[gone], np.full(gone.sum(), 0.98), "x", color=RED, transform=ax.get_xaxis_transform(), markersize=5)
    ax.set(xlabel="learning rate", ylabel="loss (nats a token)", xscale="log")
    ax.legend()
    return figure


def training(study: Study) -> Drawn | str:
    """Training losses over tokens, from the run folders that are still there."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    found = []
    for _, run in study.runs.iterrows():
        if run.run_dir and run.parameters > 0 and (folder := folder_of(study.data, run.run_dir)) is not None:
            lines = [line for line in read_json_lines(folder / "metrics.jsonl") if line.get("train_loss") is not None]
            if len(lines) >= 2:
                found.append((run, lines))
    if not found:
        return "No training curves: the table names no run folders, or these are not here."
    total = len(found)
    if total > MOST_CURVES:
        found = [found[i] for i in np.unique(np.linspace(0, total - 1, MOST_CURVES).round().astype(int))]
    found.sort(key=lambda pair: pair[0].parameters)
    figure, ax = new_figure(3.8)
    sizes = [run.parameters for run, _ in found]
    norm = LogNorm(min(sizes), max(max(sizes), 1.01 * min(sizes)))
    for run, lines in found:
        by_tokens = {line["tokens"]: line["train_loss"] for line in lines}  # steps done again after a restart count once
        tokens, losses = np.array(list(by_tokens)), np.array(smooth(list(by_tokens.values()), max(1, len(by_tokens) // 50)))
        keep = np.unique(np.geomspace(1, len(tokens), MOST_POINTS).astype(int) - 1)
        colour = RED if run.status in ("diverged", "failed") else ordered()(norm(run.parameters))
        ax.plot(tokens[keep], losses[keep], color=colour, linewidth=0.8, alpha=0.85)
        if run.status == "finished" and np.isfinite(run.loss):
            ax.plot(run.tokens, run.loss, "o", color=colour, markersize=3)
    size_bar(figure, ax, ScalarMappable(norm, ordered()))
    ends = [run.loss for run, _ in found if np.isfinite(run.loss)]
    if ends:  # the first steps would take most of the height
        ax.set_ylim(top=min(ax.get_ylim()[1], max(ends) + 1.2 * (max(ends) - min(ends) + 0.1)))
    ax.set(xlabel="tokens", ylabel="training loss (nats a token)")
    say_numbers(ax)
    caption = f"Training loss (smoothed over a fiftieth of the steps) of {counted(len(found), 'run')}" + (
        f" of the {total}" if total > len(found) else ""
    )
    caption += "; dots are the losses that the fits see"
    if (gone := sum(run.status in ("diverged", "failed") for run, _ in found)) > 0:
        caption += f"; {counted(gone, 'run')} that diverged or failed in red"
    gaps = [
        run.loss - np.mean([line["train_loss"] for line in lines[-max(10, len(lines) // 20) :]]) for run, lines in found if run.status == "finished"
    ]
    gaps = [gap for gap in gaps if np.isfinite(gap)]
    if gaps:
        caption += f". At the end the fitted loss is {min(gaps):+.3f} to {max(gaps):+.3f} nats from that of the last training steps".replace("-", "−")
    return Drawn("training_curves", figure, caption + ".")


def folder_of(data: Path, run_dir: str) -> Path | None:
    """A run's folder, as the table names it or, if all was moved, below the table's own; None where it isn't there."""
    named = Path(run_dir)
    for folder in (named, data.parent / named, data.parent / "points" / named.name):
        if (folder / "metrics.jsonl").is_file():
            return folder
    return None
