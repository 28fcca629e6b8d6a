"""Evaluation on tasks during training: `evaluate.tasks` and the keys that begin with it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import user_path
from llm_jax.evaluate.encode import Convention
from llm_jax.evaluate.item_requests import encode_items
from llm_jax.evaluate.run_tasks import check_available, items_of
from llm_jax.evaluate.suites.own_text import with_corpus
from llm_jax.evaluate.task_evaluator import TaskEvaluator, TaskSettings
from llm_jax.evaluate.task_scores import score_samples
from llm_jax.evaluate.tasks.registry import TaskOptions, find_tasks
from llm_jax.pretrained.model import PretrainedModel
from llm_jax.run.prepare import RunPlan, TaskScores

PREFIX = "task_"
"""Before the name of a task, in metrics.jsonl, TensorBoard and tables of runs."""
BITS, CHANCE = "_bits_per_byte", "_chance"
"""Behind the name, where the figure is not the task's score: the bits per byte of its right answers, and the
score of a guess."""


KEYS = {"tasks": "evaluate.tasks", "data": "evaluate.tasks_data"}
"""Keys of the command `evaluate` → those of a run that say the same."""


@contextlib.contextmanager
def keys_of_a_run() -> Iterator[None]:
    """Raises UserError with the keys of a run in place of those of the command."""
    try:
        yield
    except UserError as error:
        text = re.sub(r"(?<![\w.])(tasks|data)(?==)", lambda found: KEYS[found[1]], str(error))
        # a run has no too_long=, and cutting contexts is nothing to do unseen
        text = text.replace("Give too_long=", "Evaluate the checkpoints instead, with too_long=")
        raise UserError(text) from error


def task_scores(plan: RunPlan, log: Callable[[str], None]) -> TaskScores:
    """The evaluation of a run's weights on its tasks: task_NAME is a task's score, task_NAME_bits_per_byte
    that of its right answers, and task_NAME_chance the score of a guess. A task whose score is bits per byte
    has the second only.

    Items, their choice and the convention are those of `python -m llm_jax.evaluate RUN tasks=NAMES
    limit=evaluate.tasks_limit`, so the scores are too. Raises UserError for tasks that there are not, whose
    data is absent, or that can't be scored between two steps.
    """
    experiment = plan.experiment
    config, names = experiment.model, experiment.evaluate.tasks
    if config.outputs != "logits":
        raise UserError(
            f"evaluate.tasks={names}: the model's outputs are {config.outputs}, and tasks need logits"
        )
    if experiment.adapter.rank:
        raise UserError(
            f"evaluate.tasks={names}: is not for runs with an adapter. Leave it out, and evaluate the "
            f"checkpoints: python -m llm_jax.evaluate {plan.run_dir} tasks={names}"
        )
    settings = TaskSettings(limit=experiment.evaluate.tasks_limit)
    data = user_path(experiment.evaluate.tasks_data) if experiment.evaluate.tasks_data else None
    with keys_of_a_run():
        tasks = find_tasks(names, TaskOptions(data))
        if experiment.objective.reads == "text":
            tasks = [with_corpus(task, plan.corpus) for task in tasks]
        check_available(tasks)
        read = [items_of(task, settings, log) for task in tasks]
    if writing := next((task.name for task, _ in read if task.kind in ("generate", "code")), None):
        raise UserError(
            f"evaluate.tasks={writing}: the model writes texts, which takes too long between two steps. "
            f"Evaluate the checkpoints: python -m llm_jax.evaluate {plan.run_dir} tasks={writing}"
        )
    tokenizer = plan.corpus.tokenizer
    length = config.positions if config.position == "learned" else None
    convention = Convention(
        tokenizer.bos_id, tokenizer.bos_id, length, trained=experiment.train.sequence_length
    )
    with keys_of_a_run():
        encoded = [(task, encode_items(task, items, tokenizer, convention)[0]) for task, items in read]
    evaluators: list[TaskEvaluator] = []

    def scores(parameters: Any, stopped: Callable[[], bool]) -> dict[str, float] | None:
        if not evaluators:  # the first weights are there now
            opened = PretrainedModel(plan.run_dir, experiment, plan.model, parameters, tokenizer, 0)
            evaluators.append(TaskEvaluator(opened, settings, log))
        evaluator = evaluators[0]
        evaluator.scorer.update(parameters)
        try:
            return score_all(evaluator, stopped)
        finally:
            evaluator.scorer.free()

    def score_all(evaluator: TaskEvaluator, stopped: Callable[[], bool]) -> dict[str, float] | None:
        found: dict[str, float] = {}
        shown = []
        for task, items in encoded:
            samples = []
            for batch in evaluator.batches(task, items):
                if stopped():
                    return None
                samples += batch
            result = score_samples(samples, task.kind, task.metric, task.normalizations)
            name = f"{PREFIX}{task.name}"
            if result["gold_bits_per_byte"] is not None:
                found[name + BITS] = result["gold_bits_per_byte"]
            if not task.lower_is_better:
                found[name] = result["value"]
                found[name + CHANCE] = task.chance_of([one.item for one in items])
            shown.append(f"{task.name} {result['value']:.4g}")
        log(f"tasks: {', '.join(shown)}")
        return found

    return scores
