"""The built-in post-training data: tasks with right answers, questions about the standard library, and
preference pairs. Nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.data import cache
from llm_jax.data.stdlib_files import stdlib_fingerprint
from llm_jax.data.stdlib_questions import questions
from llm_jax.data.tasks import Draws, GeneratedTask, tasks, wrong_answer

SEED = 0
VERSION = 1
"""Of the records: raise it when they change."""
TASKS, QUESTIONS, PAIRS = 12_000, 1_000, 4_000
"""Records of each kind."""


def task_records() -> Iterator[dict[str, Any]]:
    """Tasks, and questions about the standard library among them."""
    asked = list(questions())
    chosen = [asked[i * len(asked) // QUESTIONS] for i in range(min(QUESTIONS, len(asked)))]
    for i, task in enumerate(tasks(SEED, TASKS, "single")):
        yield {"prompt": task.prompt, "completion": task.answer, **about(task)}
        if i % (TASKS // QUESTIONS) == 0 and chosen:
            prompt, completion = chosen.pop(0)
            yield {"prompt": prompt, "completion": completion}


def about(task: GeneratedTask) -> dict[str, Any]:
    """The fields of a record that no template reads."""
    return {"task": task.kind, "verify": "exact"}


def pair_records() -> Iterator[dict[str, Any]]:
    """Other tasks, each with its right answer and a wrong one."""
    for task in tasks(SEED, PAIRS, "pairs"):
        rejected = wrong_answer(task, Draws(f"{SEED} wrong {task.prompt}"))
        yield {"prompt": task.prompt, "chosen": task.answer, "rejected": rejected, **about(task)}


GENERATED: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "tasks": task_records,
    "task_pairs": pair_records,
}
"""The names of these data in `data.source`."""


def generated_documents(name: str) -> Iterator[bytes]:
    """The records of a name in `GENERATED`, each in JSON."""
    for record in GENERATED[name]():
        yield json.dumps(record).encode()


def generated_fingerprint(name: str) -> str:
    """sha256 hex of everything that the records of a name depend on."""
    return cache.fingerprint("generated", name, VERSION, SEED, TASKS, QUESTIONS, PAIRS, stdlib_fingerprint())
