"""A model that answers the items of tasks, batch by batch: scored choices, and texts that it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llm_jax.evaluate.encode import TooLongPolicy
from llm_jax.evaluate.generate_answers import AnswerWriter
from llm_jax.evaluate.item_requests import EncodedItem, batches_of, sample_of
from llm_jax.evaluate.scorer import Scorer, ScoreRequest
from llm_jax.evaluate.tasks.task import Task
from llm_jax.pretrained.model import PretrainedModel


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are scored."""

    shots: int = 0
    limit: int | None = None
    """Most items of a task; None: all."""
    too_long: TooLongPolicy = "refuse"
    seed: int = 0
    """Of the choice of items where there is a limit, of shots that are drawn, and of samples."""
    chat: bool = False
    """Whether contexts are turns of a user in the model's chat template."""
    execute: bool = False
    """Whether programs that the model writes are run."""
    samples: int = 1
    """Programs for each item of code."""
    temperature: float = 1.0
    """At which several programs are drawn; one is the most likely text."""


class TaskEvaluator:
    """An opened model with its scorer. All processes of a mesh must make the same calls."""

    def __init__(
        self, opened: PretrainedModel, settings: TaskSettings, log: Callable[[str], None], **of_scorer: Any
    ) -> None:
        """of_scorer: keyword arguments of `Scorer`."""
        self.opened, self.settings, self.log = opened, settings, log
        self.scorer = Scorer(opened, **of_scorer)
        self.generated = 0
        """Tokens that were read and written by `AnswerWriter`."""

    @property
    def tokens(self) -> int:
        """Tokens that the model has read or written so far."""
        return self.scorer.tokens_read + self.generated

    def batches(
        self, task: Task, items: Sequence[EncodedItem], done: frozenset[str] = frozenset()
    ) -> Iterator[list[dict[str, Any]]]:
        """The samples of the items, batch by batch. done: ids of items that have theirs already.

        Raises UserError for what a user's function raises on an answer, after the samples before it.
        """
        answers = None
        if task.kind in ("generate", "code"):
            answers = AnswerWriter(
                self.opened,
                task,
                items,
                samples=self.settings.samples,
                temperature=self.settings.temperature,
                seed=self.settings.seed,
                log=self.log,
            )
        for batch in batches_of([one for one in items if one.item.id not in done]):
            samples = self.score(task, batch)
            problem = None
            if answers:
                before = answers.tokens
                found, problem = answers.answer(batch)
                self.generated += answers.tokens - before
                samples = [sample | answer for sample, answer in zip(samples, found, strict=False)]
            if samples:
                yield samples
            if problem:
                raise problem

    def score(self, task: Task, batch: Sequence[EncodedItem]) -> list[dict[str, Any]]:
        """The samples of a batch, without what the model writes."""
        requests = [
            ScoreRequest(encoded.context, encoded.continuation) for one in batch for encoded in one.requests
        ]
        scored = self.scorer.score(requests) if requests else []
        samples, at = [], 0
        for one in batch:
            count = len(one.requests)
            samples.append(sample_of(task, one, scored[at : at + count]))
            at += count
        return samples
