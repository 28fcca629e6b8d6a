"""The command `python -m llm_jax.scaling.collect`: collects runs into a table, a row for each run."""

from __future__ import annotations

import functools
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.command import output_file, run_command
from llm_jax.core.errors import EXIT_INTERRUPTED, UserError, nearest
from llm_jax.core.files import read_json, replacing
from llm_jax.experiment import read_experiment
from llm_jax.run import run_folder
from llm_jax.scaling.fit.table import load_table
from llm_jax.scaling.task_links import task_columns
from llm_jax.slurm import job
from llm_jax.train.metrics import read_metrics

if TYPE_CHECKING:
    import pandas as pd

    from llm_jax.experiment import Experiment

COLUMNS = (
    "name", "hash", "status", "reason", "run_dir", "parameters", "parameters_non_embedding",
    "parameters_with_head", "tokens",
    "unique_tokens", "epochs", "flops_6nd", "flops_6nd_non_embedding", "flops_6nd_with_head",
    "flops_attention_full",
    "flops_attention_causal", "flops_exact", "flops_budget", "convention", "train_loss", "eval_loss",
    "eval_bits_per_byte", "steps",
    "batch_size", "sequence_length", "learning_rate", "weight_decay", "warmup_steps", "schedule", "optimizer",
    "seed", "layers", "embed",
    "heads", "head_dim", "mlp", "vocab", "parametrization", "tokens_per_second", "mfu", "wall_seconds",
    "devices", "held_out", "adapter_rank",
)  # fmt: skip
LAST_PART = 0.05
"""`train_loss` is the mean over this last part of the steps (at least 10 steps), since a single step's loss
is noisy."""
TABLES = (".csv", ".parquet")
NOTE = "point.json"
"""File in the run folder of a grid's point: the facts that its configuration doesn't hold (budget,
convention, why it failed)."""


def read_row(run_dir: Path, experiment: Experiment | None = None) -> dict[str, Any]:
    """A run folder as a row of the table: all of `COLUMNS`, None where unknown, and the `task_columns` of its
    last evaluation on tasks. `experiment`: that of the folder, read if None."""
    experiment = experiment or read_experiment(run_dir)
    summary, note = run_folder.last_summary(run_dir), read_note(run_dir)
    lines = read_metrics(run_dir / "metrics.jsonl")
    m, t, o = experiment.model, experiment.train, experiment.optimizer
    status = {"finished": "finished", "diverged": "diverged"}.get(summary.get("state", ""), "unfinished")
    if status == "finished" and (summary.get("step") or 0) < t.steps:
        status = "unfinished"
    given_up = slurm_failure(run_dir) if status == "unfinished" else ""
    if status != "finished" and (note.get("status") == "failed" or given_up):
        status = "failed"
    row = {
        "name": note.get("name") or run_dir.name,
        "hash": run_folder.configuration_hash(experiment),
        "status": status,
        "reason": given_up
        or note.get("reason")
        or (summary.get("reason", "loss or gradient not finite") if status == "diverged" else ""),
        "run_dir": str(run_dir),
        "flops_budget": note.get("flops_budget"),
        "convention": note.get("convention") or "",
        "held_out": bool(note.get("held_out")),
        "steps": summary.get("step"),
        "train_loss": last_train_loss(lines),
        **{name: getattr(t, name) for name in ("batch_size", "sequence_length", "seed")},
        **{name: getattr(o, name) for name in ("learning_rate", "weight_decay", "warmup_steps", "schedule")},
        "optimizer": o.name,
        "adapter_rank": experiment.adapter.rank,
        **{name: getattr(m, name) for name in ("layers", "embed", "heads", "head_dim", "mlp", "vocab")},
        "parametrization": getattr(m, "parametrization", "standard"),
    }
    return {name: row.get(name, summary.get(name)) for name in COLUMNS} | last_task_scores(lines)


def slurm_failure(run_dir: Path) -> str:
    """Why a run's Slurm job was given up after its restarts; empty if it wasn't."""
    decisions = job.decisions_since_submission(run_dir)
    ended = (
        decisions
        and decisions[-1]["decision"] == "end"
        and decisions[-1]["code"] not in (0, EXIT_INTERRUPTED)
    )
    return decisions[-1]["reason"] if ended else ""


def read_note(run_dir: Path) -> dict[str, Any]:
    """The content of point.json in a run folder; empty where there is none."""
    return read_json(run_dir / NOTE)


def last_train_loss(lines: list[dict[str, Any]]) -> float | None:
    """The mean training loss of the last steps, nats a token, from the lines of metrics.jsonl; None without
    steps, or if one of these losses is not finite."""
    losses = {line["step"]: line["train_loss"] for line in lines if "train_loss" in line}
    last = [losses[step] for step in sorted(losses)[-max(10, round(LAST_PART * len(losses))) :]]
    return sum(last) / len(last) if last and None not in last else None


def last_task_scores(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Scores of tasks, their bits and chances, from the last line of metrics.jsonl that has any; empty
    without."""
    for line in reversed(lines):
        if columns := task_columns(line):
            return {name: line[name] for name in columns}
    return {}


def find_run_folders(folders: Iterable[Path]) -> list[Path]:
    """The run folders among `folders` and below them, sorted by path. Raises UserError for a folder without a
    run folder."""
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"{folder}: there is no such folder. Give a run folder, or one above run folders."
            )
        runs = (
            [folder]
            if (folder / "config.yaml").is_file()
            else sorted(path.parent for path in folder.rglob("config.yaml"))
        )
        if not runs:
            raise UserError(
                f"{folder}: has no run folder in it. Give a folder that has config.yaml, or one above "
                "such folders."
            )
        found += [run for run in runs if run not in found]
    return found


def make_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a data frame with all of `COLUMNS` and the rows' `task_columns`: text as str, held_out as bool,
    all others as numbers (NaN where missing)."""
    import pandas as pd

    tasks = dict.fromkeys(name for row in rows for name in task_columns(row))
    table = pd.DataFrame(rows, columns=[*COLUMNS, *tasks])
    table["held_out"] = table["held_out"].fillna(False).astype(bool)
    texts = (
        "name",
        "hash",
        "status",
        "reason",
        "run_dir",
        "convention",
        "schedule",
        "optimizer",
        "parametrization",
    )
    for name in table.columns.drop("held_out"):
        table[name] = (
            table[name].astype(object).where(table[name].notna(), "").astype(str)
            if name in texts
            else pd.to_numeric(table[name])
        )
    return table


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Writes a .csv or .parquet, whole or not at all."""
    with replacing(path) as part:
        if path.suffix == ".parquet":
            table.to_parquet(part, index=False)
        else:
            table.to_csv(part, index=False)


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A .csv or .parquet as a table with our column names. `columns` is {our name: the file's name}; our own
    names need no mapping.

    Scores of tasks are kept, other columns are dropped. Raises UserError for a file that can't be read, and
    for unknown names on either side.
    """
    import pandas as pd

    theirs = load_table(path, "table")
    mapped = {}
    for our_name, their_name in (columns or {}).items():
        if our_name not in COLUMNS:
            raise UserError(
                f"columns.{our_name}={their_name}: there is no column {our_name!r}; "
                f"{nearest(our_name, COLUMNS)}"
            )
        if their_name not in theirs:
            raise UserError(
                f"columns.{our_name}={their_name}: {path} has no such column; "
                f"{nearest(their_name, map(str, theirs.columns))}"
            )
        mapped[our_name] = theirs[their_name]
    tasks = task_columns(theirs.columns)
    mapped |= {name: theirs[name] for name in (*COLUMNS, *tasks) if name in theirs and name not in mapped}
    if not mapped:
        raise UserError(
            f"{path}: has none of our columns. Map its columns ({', '.join(map(str, theirs.columns))}) "
            "with columns.OURS=THEIRS."
        )
    return pd.DataFrame({name: mapped[name] for name in (*COLUMNS, *tasks) if name in mapped})


@dataclass(frozen=True, kw_only=True)
class CollectCommand:
    """Collects runs into a table, a row for each run: python -m llm_jax.scaling.collect FOLDERS...
    out=runs.csv

      python -m llm_jax.scaling.collect runs/scaling/isoflop_cpu out=runs.csv
      python -m llm_jax.scaling.collect runs/quickstart runs/mine out=runs.parquet
      python -m llm_jax.scaling.collect table=OTHER.csv columns.parameters="Model Size" columns.flops_6nd=FLOP \\
          columns.eval_loss=loss out=runs.csv

    The status of a run is finished, diverged, failed or unfinished; runs that are held_out are left out of
    fits and predicted by them. docs/scaling.md has the meaning of all columns.

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """  # noqa: E501

    folders: tuple[Path, ...] = positional("FOLDERS...", default=())
    """Run folders, or folders with run folders below them."""
    table: Path | None = argument(None, shown="FILE")
    """A .csv or .parquet of another project's runs, in place of folders."""
    columns: dict[str, str] = argument({}, entry="OURS", shown="THEIRS")
    """The column of that table that becomes our column OURS, one of those below. Columns that have our names
    are kept without this key, all others are left out."""
    out: Path | None = argument(None, shown="FILE", read=functools.partial(output_file, endings=TABLES))
    """The .csv or .parquet that is written; by default the table is printed."""

    @staticmethod
    def more_help() -> str:
        """The names of the columns."""
        return textwrap.fill(f"Columns: {', '.join(COLUMNS)}.", 110)

    def check(self) -> None:
        """Raises UserError unless either folders or a table are given, and columns only with a table."""
        if bool(self.folders) == bool(self.table):
            raise UserError(
                "folders: give either folders with runs in them, or table=PATH"
                + (", not both" if self.folders else "")
            )
        if self.columns and self.folders:
            ours, theirs = next(iter(self.columns.items()))
            raise UserError(
                f"columns.{ours}={theirs}: applies to table=PATH only; run folders have our columns. "
                "Leave it out."
            )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(collect, arguments)


def collect(arguments: list[str]) -> int:
    """Runs the command line; raises UserError for a mistake in it."""
    command = read_command(arguments, CollectCommand)
    if command is None:
        return 0
    rows = [read_row(run) for run in find_run_folders(command.folders)]
    table = read_table(command.table, command.columns) if command.table else make_table(rows)
    if command.out:
        write_table(table, command.out)
        print(f"{len(table)} runs: {command.out}")
    else:
        print(table.to_csv(index=False), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
