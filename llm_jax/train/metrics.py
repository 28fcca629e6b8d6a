"""Where a run's numbers go: metrics.jsonl, TensorBoard files, summary.json and the loss curve."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from llm_jax.errors import UserError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; steps that were done again after a restart appear again.

    A last line without its end is one that is being written, or that a kill left: it is not read.
    """
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]


def latest_values(path: Path, step: int) -> dict[str, Any]:
    """The newest value of every metric up to a step, from a metrics.jsonl."""
    latest: dict[str, Any] = {}
    for line in read_metrics(path):
        if line["step"] <= step:
            latest |= line
    return latest


def drop_torn_line(path: Path) -> bool:
    """Cuts off a last line that a kill left without its end. Returns whether there was one."""
    if not path.exists():
        return False
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) == len(content):
        return False
    with path.open("r+b") as file:
        file.truncate(len(whole))
    return True


def finite(value: Any) -> Any:
    """The value as JSON can say it: numbers that are not finite become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({k: finite(v) for k, v in content.items()}, indent=2, allow_nan=False) + "\n")
    os.replace(part, path)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; empty where there is no such file. Raises UserError, naming the file, for a damaged one."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: is damaged, not JSON ({error}); remove it") from error


class MetricsWriter:
    """Appends to metrics.jsonl (a line is there as soon as it is written) and to TensorBoard's event files."""

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
        scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items() if key != "step" and isinstance(value, (int, float))]
        self.events.add_event(Event(wall_time=time.time(), step=values["step"], summary=Summary(value=scalars)))

    def close(self) -> None:
        self.jsonl.close()
        self.events.close()


def draw_loss_curve(run_dir: Path, title: str) -> Path:
    """Training and held-out loss over tokens, from metrics.jsonl, as <run_dir>/loss.png."""
    from matplotlib.figure import Figure

    lines = read_metrics(run_dir / "metrics.jsonl")
    train = {m["tokens"]: m["train_loss"] for m in lines if m.get("train_loss") is not None}
    held_out = {m["tokens"]: m["eval_loss"] for m in lines if m.get("eval_loss") is not None}
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(train), list(train.values()), linewidth=0.8, color="#9bb7d4", label="training, each step")
    if len(train) >= 20:
        axes.plot(list(train), smooth(list(train.values()), len(train) // 50 + 1), color="#1f4e79", label="training, smoothed")
    axes.plot(list(held_out), list(held_out.values()), "o-", color="#c0504d", markersize=4, label="held out")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=title)
    axes.xaxis.set_major_formatter(lambda tokens, _: short(tokens))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path = run_dir / "loss.png"
    figure.savefig(path, dpi=130)
    return path


def smooth(values: list[float], width: int) -> list[float]:
    """Means over the last `width` values."""
    total, out = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        out.append(total / min(i + 1, width))
    return out


def short(number: float) -> str:
    """A number as people say it, to three digits.

    >>> short(13_812_345), short(999_700), short(2.1e21)
    ('13.8M', '1M', '2.1Z')
    """
    for limit, unit in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:  # what three digits round to the limit
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
