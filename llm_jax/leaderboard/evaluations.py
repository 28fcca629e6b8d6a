"""Evaluates the models of a leaderboard, each that isn't yet, and reads their samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import read_json
from llm_jax.core.log import log_to_stderr, no_log
from llm_jax.evaluate.run_tasks import evaluate_tasks, samples_of_result, tokenizer_of
from llm_jax.evaluate.sources.olmo import olmo_tasks
from llm_jax.evaluate.task_evaluator import TaskSettings
from llm_jax.evaluate.tasks.own_file import is_file_name
from llm_jax.evaluate.tasks.registry import TaskOptions, all_tasks, find_tasks, groups_of, ready
from llm_jax.evaluate.tasks.task import Task
from llm_jax.leaderboard.models import Evaluation, Leaderboard, RankedModel, short_names
from llm_jax.model.accounting import flops_per_token, parameters
from llm_jax.pretrained.source import ModelSource, open_source
from llm_jax.run.run_folder import configuration_hash

Folder = tuple[Path, int | None]
"""A run or model folder, and the step of its checkpoint; None: the newest."""


def evaluate_models(
    folders: Sequence[Folder],
    names: str,
    settings: TaskSettings,
    *,
    data: Path | None = None,
    compute: Mapping[str, float] | None = None,
    log: Callable[[str], None] = log_to_stderr,
    **options: Any,
) -> Leaderboard:
    """The board of models in tasks; what was evaluated before is read and not computed again.

    names: as tasks=. Tasks of a run's own held-out text are of the first folder's, the same for all models.
    data: as data=. compute: FLOPs of training by a model's name, where its folder doesn't have them. options:
    those of `open_model`. Raises UserError before a model is evaluated where a folder holds none, or data is
    missing.
    """
    task_options = TaskOptions(data, folders[0][0])
    tasks = {task.name: ready(task, settings.execute) for task in find_tasks(names, task_options)}
    files = [name.strip() for name in names.split(",") if is_file_name(name.strip())]
    words = {task.name: file for file in files for task in find_tasks(file, task_options)}
    sources = [open_source(path, adapter=options.get("adapter")) for path, _ in folders]
    for (path, _), source in zip(folders, sources, strict=True):
        tokenizer_of(source, path, no_log)  # raises before one is evaluated, which may take long
    labels = short_names(folders)
    compute = dict(compute or {})
    if unknown := set(compute) - set(labels):
        raise UserError(f"compute.{min(unknown)}: there is no such model; they are {', '.join(labels)}")
    models = []
    for (path, step), source, label in zip(folders, sources, labels, strict=True):
        log(f"{label}: {path}")
        results = evaluate_tasks(path, list(tasks.values()), settings, log=log, **{**options, "step": step})
        evaluations = {
            result["task"]: Evaluation(result, samples_of_result(source.path, result)) for result in results
        }
        at = int(results[0]["step"])
        config = source.experiment.model.resolved()
        models.append(
            RankedModel(
                name=label,
                path=path,
                step=at,
                parameters=parameters(config)["parameters"],
                flops_per_token=flops_per_token(config, 1)["flops_6nd_with_head"] / 3,
                train_flops=compute.get(label, train_flops(source, at)),
                evaluations=evaluations,
                family=family_of(source),
            )
        )
    keys = {name: sample_keys(task, task_options, settings) for name, task in tasks.items()}
    return Leaderboard(models, tasks, whole_groups(tasks, task_options), words, keys)


def sample_keys(task: Task, options: TaskOptions, settings: TaskSettings) -> dict[str, Any]:
    """The keys that decide a task's texts, beside its name: `Leaderboard.keys`."""
    keys: dict[str, Any] = {}
    if options.data and task.name in {one.name for one in olmo_tasks()}:
        keys["data"] = options.data
    if "own_text" in task.groups:
        keys["corpus"] = options.model
    if settings.shots:
        keys["shots"] = settings.shots
        keys |= {"seed": settings.seed} if settings.seed else {}
    return keys


def train_flops(source: ModelSource, step: int) -> float | None:
    """FLOPs of a run's training up to a step, by its summary; None for other models, and for a run that began
    with the weights of another."""
    if source.experiment.train.start_from:
        return None
    summary = read_json(source.path / "summary.json")
    flops, steps = summary.get("train_flops"), summary.get("step")
    return float(flops) / steps * step if flops and steps else None


def family_of(source: ModelSource) -> str:
    """A hash that runs have in common which differ only in their seed; empty for models of others."""
    if source.folder is not None or not (source.path / "config.yaml").is_file():
        return ""
    experiment = source.experiment
    return configuration_hash(
        dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=0))
    )


def whole_groups(tasks: Mapping[str, Task], options: TaskOptions) -> dict[str, list[str]]:
    """The groups all of whose tasks are asked. A part of a group isn't called by its name."""
    known = all_tasks(options) | dict(tasks)
    groups = groups_of(list(known.values()))
    return {name: of for name, of in groups.items() if set(of) <= set(tasks)}
