"""The task `cloze`: which word comes next in a run's own held-out documents."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from llm_jax.core.errors import UserError
from llm_jax.data import Corpus
from llm_jax.evaluate.suites.cloze import TOGETHER, cloze_items
from llm_jax.evaluate.tasks.task import Item, Task

SEED = 0
ITEMS = 1_000
"""At most; a corpus with few held-out documents has fewer."""


def cloze_task(model: Path | None) -> Task:
    """The task for the run in a folder; no file is read before its items are requested.

    model: None lists the task without any run.
    """
    return Task(
        name="cloze",
        language="",
        kind="choice",
        items=functools.partial(own_items, model),
        metric="raw",
        chance=1 / TOGETHER,
        groups=("own_text",),
        about="A word of the run's held-out documents, among four of one document and of equal frequency.",
    )


def own_items(model: Path | None) -> list[Item]:
    """The items from the held-out documents of the run in the folder `model`. Raises UserError where there is
    no such text."""
    return cloze_items(held_out_documents(model), SEED, ITEMS)


def with_corpus(task: Task, corpus: Corpus) -> Task:
    """A task of a run's own text with the corpus of a run that is being trained; any other task as it is."""
    if "own_text" not in task.groups:
        return task
    texts = (raw.decode("utf-8", "replace") for _, _, raw in corpus.held_out_texts())
    return dataclasses.replace(task, items=lambda: cloze_items(texts, SEED, ITEMS))


def held_out_documents(model: Path | None) -> Iterator[str]:
    """The held-out documents of a run as texts. Raises UserError for what is no run on texts."""
    if model is None:
        raise UserError("tasks=cloze: is made of the held-out documents of a run. Give a run folder")
    # These import JAX, which the command starts.
    from llm_jax.evaluate.corpus import corpus_of, with_changes
    from llm_jax.pretrained.source import open_source

    experiment = open_source(model).experiment
    if not (model / "config.yaml").is_file():
        raise UserError(
            f"tasks=cloze: {model} is no run folder, so its corpus is unknown. Leave cloze out, or train the "
            "model further first (from=)"
        )
    if experiment.objective.reads == "record":
        raise UserError(f"tasks=cloze: the run {model} was trained on records, not on texts. Leave cloze out")
    for _, _, raw in corpus_of(with_changes(experiment, [], model)).held_out_texts():
        yield raw.decode("utf-8", "replace")
