"""Where a run's numbers go: metrics.jsonl, TensorBoard files, summary.json and the loss curve."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.arithmetic import finite
from llm_jax.core.files import drop_torn_line, read_json_lines
from llm_jax.core.format import short

NUMBERS = ("train_loss", "eval_loss", "tokens", "tokens_per_second", "step_seconds", "mfu")
"""Metrics that other programs compute with."""


def read_metrics(path: Path, tail: int | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl: those with a step, whose `NUMBERS` are numbers or null. tail: as of
    `read_json_lines`."""
    return read_json_lines(path, {"step": int, **dict.fromkeys(NUMBERS, int | float | None)}, tail=tail)


def latest_values(path: Path, step: int) -> dict[str, Any]:
    """The newest value of every metric up to a step, from a metrics.jsonl."""
    latest: dict[str, Any] = {}
    for line in read_metrics(path):
        if line["step"] <= step:
            latest |= line
    return latest


class MetricsWriter:
    """Appends to metrics.jsonl (a line is there as soon as it is written) and to TensorBoard's
    event files.
    """

    def __init__(self, run_dir: Path):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        drop_torn_line(run_dir / "metrics.jsonl")
        self.jsonl = (run_dir / "metrics.jsonl").open("a")
        self.events = EventFileWriter(str(run_dir / "tensorboard"))

    def write(self, values: dict[str, Any]) -> None:
        """One JSON object with its `step`; the numbers in it also become TensorBoard scalars."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.jsonl.write(json.dumps({k: finite(v) for k, v in values.items()}, allow_nan=False) + "\n")
        self.jsonl.flush()
        scalars = [
            Summary.Value(tag=key, simple_value=value)
            for key, value in values.items()
            if key != "step" and isinstance(value, (int, float))
        ]
        self.events.add_event(
            Event(wall_time=time.time(), step=values["step"], summary=Summary(value=scalars))
        )

    def close(self) -> None:
        self.jsonl.close()
        self.events.close()


def draw_loss_curve(run_dir: Path, title: str, unit: str = "nats per token") -> Path:
    """Training and held-out loss over tokens, from metrics.jsonl, as <run_dir>/loss.png."""
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if line.get("tokens") is not None]
    train = {m["tokens"]: m["train_loss"] for m in lines if m.get("train_loss") is not None}
    held_out = {m["tokens"]: m["eval_loss"] for m in lines if m.get("eval_loss") is not None}
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(train), list(train.values()), linewidth=0.8, color="#9bb7d4", label="training, each step")
    if len(train) >= 20:
        axes.plot(
            list(train),
            smooth(list(train.values()), len(train) // 50 + 1),
            color="#1f4e79",
            label="training, smoothed",
        )
    axes.plot(list(held_out), list(held_out.values()), "o-", color="#c0504d", markersize=4, label="held out")
    axes.set(xlabel="tokens", ylabel=f"loss ({unit})", title=title)
    axes.xaxis.set_major_formatter(lambda tokens, _: short(tokens))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path = run_dir / "loss.png"
    figure.savefig(path, dpi=130)
    return path


def draw_curves(run_dir: Path, panels: Mapping[str, Sequence[str]]) -> None:
    """Metrics over steps, from metrics.jsonl, as <run_dir>/curves.png: lines in training, points held out.

    panels: what is on a panel's axis → its metrics. Without panels there is no picture.
    """
    from matplotlib.figure import Figure

    if not panels:
        return
    lines = read_metrics(run_dir / "metrics.jsonl")
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for axes, (label, names) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for i, name in enumerate(names):
            train, held_out = (
                {line["step"]: line[key] for line in lines if line.get(key) is not None}
                for key in (name, f"eval_{name}")
            )
            axes.plot(list(train), list(train.values()), color=f"C{i}", linewidth=0.8, alpha=0.4)
            values = smooth(list(train.values()), len(train) // 50 + 1)
            axes.plot(list(train), values, color=f"C{i}", label=name.replace("_", " "))
            axes.plot(list(held_out), list(held_out.values()), "o", color=f"C{i}", markersize=4)
        axes.set(xlabel="step (points: held out)", ylabel=label)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(run_dir / "curves.png", dpi=130)


def smooth(values: list[float], width: int) -> list[float]:
    """Means over the last `width` values."""
    total, out = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        out.append(total / min(i + 1, width))
    return out
