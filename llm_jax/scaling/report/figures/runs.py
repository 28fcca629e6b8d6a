"""Figures of the runs: loss over sweeps of learning rate and batch, or rank of an adapter, and training
curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.figure_style import INK, RED, new_figure
from llm_jax.core.format import counted, listed, short, span
from llm_jax.scaling.fit.table import as_numbers
from llm_jax.scaling.report.bands import ReportFigure
from llm_jax.scaling.report.study import Study
from llm_jax.scaling.report.style import log_axes, ordered_colours, ordered_shades, size_colour_bar
from llm_jax.train.metrics import read_metrics, smooth

if TYPE_CHECKING:
    import pandas as pd

LEAST_RATES, LEAST_BATCHES = 3, 2
"""The fewest learning rates of a sweep, and the fewest batch sizes of a heat map."""
MOST_PANELS = 6
"""The most heat maps in the figure."""
AS_GOOD = 0.01
"""Losses within this many nats of the best count as equally good."""
MOST_CURVES = 60
"""The most training curves that are drawn."""
MOST_POINTS = 400
"""The most points of a drawn training curve."""


@dataclass(frozen=True)
class Sweep:
    """The runs of one model on one number of tokens, over learning rates and batch sizes, or ranks."""

    parameters: float
    tokens: float
    rates: np.ndarray
    batches: np.ndarray
    """Tokens a batch; sequences where the table has no length of them; one of NaN without a batch size. In a
    table with several ranks of adapters: the rank, 0 for a run that trained all weights."""
    loss: np.ndarray
    """[batches, rates], the best of several seeds; NaN without a finished run."""
    lost: np.ndarray
    """[batches, rates], bool: the run diverged or failed."""
    of_ranks: bool = False
    """Whether `batches` are ranks of adapters."""

    @property
    def best(self) -> tuple[int, int]:
        """The indices (batch, rate) of the lowest loss."""
        i, j = np.unravel_index(np.nanargmin(self.loss), self.loss.shape)
        return int(i), int(j)

    @property
    def edges(self) -> list[str]:
        """The edges of the sweep on which its best run lies, as text."""
        i, j = self.best
        found = [
            (len(self.rates) > 1, j == 0, "lowest learning rate"),
            (len(self.rates) > 1, j == len(self.rates) - 1, "highest learning rate"),
        ]
        found += [
            (len(self.batches) > 1 and not self.of_ranks, i == 0, "smallest batch"),
            (len(self.batches) > 1 and not self.of_ranks, i == len(self.batches) - 1, "largest batch"),
        ]
        return [name for present, at, name in found if present and at]


def sweeps(table: pd.DataFrame, runs: pd.DataFrame) -> list[Sweep]:
    """The sweeps in a table, smallest model first: runs of equal N and (to 5 %) equal tokens, at three
    learning rates or more. The second axis is the batch, or the rank of adapters where the table has
    several."""
    if "learning_rate" not in table:
        return []
    rate, ranks = as_numbers(table.learning_rate), has_ranks(table)
    batch = as_numbers(table.batch_size) if "batch_size" in table else rate * 0 + 1
    if "batch_size" in table and "sequence_length" in table:
        batch = batch * as_numbers(table.sequence_length)
    if ranks:
        batch = as_numbers(table.adapter_rank)
    both = runs.assign(rate=rate, batch=batch).dropna(subset=["rate", "batch", "parameters", "tokens"])
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
            found.append(
                Sweep(
                    float(own.parameters.iloc[0]),
                    float(own.tokens.median()),
                    rates,
                    batches,
                    loss,
                    lost & np.isnan(loss),
                    ranks,
                )
            )
    return found


def sweep_figure(study: Study) -> ReportFigure | str:
    """Heat maps of loss over learning rate and batch, or curves over the learning rate where no model has two
    batch sizes."""
    found = sweeps(study.table, study.runs)
    if not found:
        missing = "learning_rate" not in study.table
        return (
            "No map of learning rate and batch: no model of the table was trained at three learning rates "
            + ("that it names: it has no column learning_rate." if missing else "or more, all else equal.")
        )
    maps = [sweep for sweep in found if len(sweep.batches) >= LEAST_BATCHES][:MOST_PANELS]
    drawn = heat_maps(maps, batch_unit(study.table)) if maps else rate_curves(found)
    sentences = []
    for sweep in maps or found:
        i, j = sweep.best
        good = sweep.loss <= np.nanmin(sweep.loss) + AS_GOOD
        good_rates = sweep.rates[good.any(0)]
        text = (
            f"{short(sweep.parameters)} parameters, {short(sweep.tokens)} tokens: best "
            f"{sweep.loss[i, j]:.3f} at learning rate {sweep.rates[j]:.3g}"
        )
        if sweep.of_ranks:
            text += f" with {rank_name(sweep.batches[i])}{best_of_each_rank(sweep)}"
        elif len(sweep.batches) > 1:
            text += f" with {short(sweep.batches[i])} {batch_unit(study.table)}"
        rates = span(float(good_rates.min()), float(good_rates.max()), "{:.3g}".format)
        text += (
            f"; {good.sum()} of {np.isfinite(sweep.loss).sum()} runs are within {AS_GOOD} nats, at {rates}"
        )
        if sweep.edges:
            text += f"; it is at the {listed(sweep.edges)}: the optimum may be beyond"
        if sweep.lost.any():
            text += f"; {counted(int(sweep.lost.sum()), 'run')} lost (crosses)"
        sentences.append(text + ".")
    ranks = any(sweep.of_ranks for sweep in maps)
    what = (
        f"Loss above the best run's, by learning rate and {'rank of the adapter' if ranks else 'batch'}. "
        if maps
        else "Loss against the learning rate; rings are each size's best. "
    )
    return ReportFigure("sweep", drawn, what + " ".join(sentences))


def has_ranks(table: pd.DataFrame) -> bool:
    """Whether a table's runs differ in the rank of their adapters."""
    return "adapter_rank" in table and as_numbers(table.adapter_rank).nunique() > 1


def rank_name(rank: float) -> str:
    """A rank as text."""
    return f"rank {rank:g}" if rank else "all weights trained"


def best_of_each_rank(sweep: Sweep) -> str:
    """The best run of each rank, as text: where LoRA wants its learning rate, beside full training."""
    found = []
    for rank, losses in zip(sweep.batches, sweep.loss, strict=True):
        if np.isfinite(losses).any():
            j = int(np.nanargmin(losses))
            found.append(f"{rank_name(rank)} {losses[j]:.3f} at {sweep.rates[j]:.3g}")
    return f" ({', '.join(found)})"


def batch_unit(table: pd.DataFrame) -> str:
    """The unit of a sweep's batches."""
    if has_ranks(table):
        return "rank of the adapter (0: all weights)"
    return "tokens a batch" if "sequence_length" in table else "sequences a batch"


def heat_maps(maps: list[Sweep], unit: str) -> Any:
    """Loss over learning rate and batch, a panel for each sweep."""
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure, axes = new_figure(0.5 + 2.5 * rows, columns=columns, rows=rows, squeeze=False)
    for ax in axes.flat[len(maps) :]:
        ax.set_visible(False)
    for ax, sweep in zip(axes.flat, maps, strict=False):
        above = sweep.loss - np.nanmin(sweep.loss)
        top = max(float(np.nanquantile(above, 0.9)), 2 * AS_GOOD)
        ax.grid(False)
        ax.pcolormesh(
            np.ma.masked_invalid(above),
            cmap=ordered_colours(),
            vmin=0,
            vmax=top,
            edgecolors="white",
            linewidth=1,
        )
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
        ax.plot(
            j + 0.5,
            i + 0.5,
            "s",
            markersize=24,
            markerfacecolor="none",
            markeredgecolor="white",
            markeredgewidth=1.2,
        )
        ax.set_xticks(
            np.arange(len(sweep.rates)) + 0.5,
            [f"{rate:.2g}" for rate in sweep.rates],
            rotation=45,
            ha="right",
        )
        ax.set_yticks(
            np.arange(len(sweep.batches)) + 0.5,
            [f"{n:g}" if sweep.of_ranks else short(n) for n in sweep.batches],
        )
        ax.set(
            xlabel="learning rate",
            ylabel=unit,
            title=f"{short(sweep.parameters)} parameters, {short(sweep.tokens)} tokens",
        )
    return figure


def rate_curves(found: list[Sweep]) -> Any:
    """Loss against learning rate, a line for each sweep: the best over its batch sizes."""
    figure, ax = new_figure(3.4)
    for sweep, colour in zip(found, ordered_shades(len(found)), strict=True):
        losses = np.nanmin(np.where(np.isnan(sweep.loss), np.inf, sweep.loss), axis=0)
        present = np.isfinite(losses)
        ax.plot(
            sweep.rates[present],
            losses[present],
            "o-",
            color=colour,
            markersize=4,
            label=f"{short(sweep.parameters)} parameters, {short(sweep.tokens)} tokens",
        )
        _, j = sweep.best
        ax.scatter(sweep.rates[j], losses[j], s=90, facecolors="none", edgecolors=colour, linewidths=1.3)
        gone = sweep.lost.any(0)
        ax.plot(
            sweep.rates[gone],
            np.full(gone.sum(), 0.98),
            "x",
            color=RED,
            transform=ax.get_xaxis_transform(),
            markersize=5,
        )
    ax.set(xlabel="learning rate", ylabel="loss (nats a token)", xscale="log")
    ax.legend()
    return figure


def training(study: Study) -> ReportFigure | str:
    """Training losses over tokens, from the run folders that can be found."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    found = []
    for _, run in study.runs.iterrows():
        if run.run_dir and run.parameters > 0 and (folder := folder_of(study.data, run.run_dir)) is not None:
            lines = [
                line
                for line in read_metrics(folder / "metrics.jsonl")
                if line.get("train_loss") is not None and line.get("tokens") is not None
            ]
            if len(lines) >= 2:
                found.append((run, lines))
    if not found:
        return "No training curves: the table names no run folders, or they can't be found."
    total = len(found)
    if total > MOST_CURVES:
        found = [found[i] for i in np.unique(np.linspace(0, total - 1, MOST_CURVES).round().astype(int))]
    found.sort(key=lambda pair: pair[0].parameters)
    figure, ax = new_figure(3.8)
    sizes = [run.parameters for run, _ in found]
    norm = LogNorm(min(sizes), max(max(sizes), 1.01 * min(sizes)))
    for run, lines in found:
        by_tokens = {
            line["tokens"]: line["train_loss"] for line in lines
        }  # steps done again after a restart count once
        tokens, losses = (
            np.array(list(by_tokens)),
            np.array(smooth(list(by_tokens.values()), max(1, len(by_tokens) // 50))),
        )
        keep = np.unique(np.geomspace(1, len(tokens), MOST_POINTS).astype(int) - 1)
        colour = RED if run.status in ("diverged", "failed") else ordered_colours()(norm(run.parameters))
        ax.plot(tokens[keep], losses[keep], color=colour, linewidth=0.8, alpha=0.85)
        if run.status == "finished" and np.isfinite(run.loss):
            ax.plot(run.tokens, run.loss, "o", color=colour, markersize=3)
    size_colour_bar(figure, ax, ScalarMappable(norm, ordered_colours()))
    ends = [run.loss for run, _ in found if np.isfinite(run.loss)]
    if ends:  # the first steps would take most of the height
        ax.set_ylim(top=min(ax.get_ylim()[1], max(ends) + 1.2 * (max(ends) - min(ends) + 0.1)))
    ax.set(xlabel="tokens", ylabel="training loss (nats a token)")
    log_axes(ax)
    caption = f"Training loss (smoothed over a fiftieth of the steps) of {counted(len(found), 'run')}" + (
        f" of the {total}" if total > len(found) else ""
    )
    caption += "; dots are the losses that the fits use"
    if (gone := sum(run.status in ("diverged", "failed") for run, _ in found)) > 0:
        caption += f"; {counted(gone, 'run')} that diverged or failed in red"
    gaps = [
        run.loss - np.mean([line["train_loss"] for line in lines[-max(10, len(lines) // 20) :]])
        for run, lines in found
        if run.status == "finished"
    ]
    gaps = [gap for gap in gaps if np.isfinite(gap)]
    if gaps:
        caption += f". At the end the fitted loss is {min(gaps):+.3f} to {max(gaps):+.3f} nats from that of the last training steps".replace(  # noqa: E501
            "-", "−"
        )
    return ReportFigure("training_curves", figure, caption + ".")


def folder_of(data: Path, run_dir: str) -> Path | None:
    """A run's folder: as the table names it or, if it was moved with the table, below the table's folder;
    None if in neither."""
    named = Path(run_dir)
    for folder in (named, data.parent / named, data.parent / "points" / named.name):
        if (folder / "metrics.jsonl").is_file():
            return folder
    return None
