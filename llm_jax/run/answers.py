"""Answers of a run's weights to held-out prompts, in the chat template that it is trained with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from llm_jax.data.chat_encoder import prompt_ids
from llm_jax.data.chat_template import find_template
from llm_jax.data.held_out_prompts import HeldOutPrompt, held_out_prompts
from llm_jax.data.verify import verdict
from llm_jax.generate.sample import Sampler
from llm_jax.run.prepare import RunPlan, encoder_settings

SHOWN = 3
"""Prompts that the log shows with their answers."""


class Answers:
    """Prompts, and the program that answers them: the messages of `sample.prompts`, and held-out ones."""

    def __init__(self, plan: RunPlan):
        """Raises UserError for a record that the template refuses."""
        experiment, corpus = plan.experiment, plan.corpus
        settings = encoder_settings(experiment)
        template = find_template(settings.chat.template, settings.tokenizer, date=settings.chat.date)
        self.prompts = []
        for text in filter(None, experiment.sample.prompts):
            messages = ({"role": "user", "content": text},)
            ids = prompt_ids(template, messages, None, corpus.tokenizer)
            self.prompts.append(HeldOutPrompt("", messages, tuple(ids), {}))
        self.prompts += held_out_prompts(corpus, template, experiment.sample.held_out, SHOWN)
        self.sampler = None
        if self.prompts:
            ids_of = [prompt.ids for prompt in self.prompts]
            train = experiment.train
            self.sampler = Sampler(
                plan.model, corpus.tokenizer, ids_of, experiment.sample, train.sequence_length, train.seed
            )

    @property
    def verified(self) -> int:
        """The number of prompts whose answers can be verified."""
        return sum(bool(prompt.record.get("verify")) for prompt in self.prompts)

    def texts(self, parameters: Any, between: Callable[[], None]) -> list[str]:
        """The answer to each prompt. between: called before each token."""
        return self.sampler.texts(parameters, between) if self.sampler else []

    def right(self, texts: list[str]) -> list[bool | None]:
        """Whether each answer is right; None where it can't be verified."""
        return [verdict(prompt.record, text) for prompt, text in zip(self.prompts, texts, strict=True)]

    def by_task(self, texts: list[str]) -> str:
        """How many answers are right, by the kind of task that records name: "sort 9 of 11, sum 1 of 8"."""
        found: defaultdict[str, list[bool]] = defaultdict(list)
        for prompt, right in zip(self.prompts, self.right(texts), strict=True):
            if right is not None:
                found[str(prompt.record.get("task", ""))].append(right)
        return ", ".join(f"{name} {sum(r)} of {len(r)}".strip() for name, r in sorted(found.items()))

    def conversations(self, texts: list[str]) -> list[str]:
        """Each prompt with its answer, for people."""
        marks = {True: ", right", False: ", wrong", None: ""}
        shown = []
        for i, (prompt, text, right) in enumerate(
            zip(self.prompts, texts, self.right(texts), strict=True), 1
        ):
            turns = [f"{turn['role']}: {turn.get('content')}" for turn in prompt.messages]
            where = prompt.where and f", {prompt.where}"
            shown.append("\n".join([f"--- sample {i}{where}{marks[right]}", *turns, f"assistant: {text}"]))
        return shown
