"""Lets a model answer held-out prompts in its chat template, and verifies the answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax import data
from llm_jax.core.errors import UserError
from llm_jax.core.log import log_to_stderr
from llm_jax.data.chat_template import find_template
from llm_jax.data.held_out_prompts import HeldOutPrompt, held_out_prompts
from llm_jax.data.verify import verdict
from llm_jax.evaluate.corpus import conversations
from llm_jax.evaluate.statistics import wilson_interval
from llm_jax.generate.engine import Engine
from llm_jax.generate.request import Request
from llm_jax.pretrained.model import PretrainedModel, check_outputs, open_model
from llm_jax.pretrained.source import open_source
from llm_jax.run.prepare import corpus_settings, encoder_settings

SLOTS = 64
"""Prompts that are answered at once."""
MOST_TOKENS = 64
"""Tokens of an answer, where the run has no samples."""


@dataclass(frozen=True)
class VerifiedAnswers:
    """Prompts with a model's answers."""

    path: str
    step: int
    prompts: tuple[HeldOutPrompt, ...]
    texts: tuple[str, ...]

    @property
    def right(self) -> list[bool | None]:
        """Whether each answer is right; None where it can't be verified."""
        return [verdict(prompt.record, text) for prompt, text in zip(self.prompts, self.texts, strict=True)]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Kind of task → (right answers, answers); of all together under "all"."""
        found: dict[str, tuple[int, int]] = {"all": (0, 0)}
        for prompt, right in zip(self.prompts, self.right, strict=True):
            for name in {"all", str(prompt.record.get("task", "all"))}:
                if right is not None:
                    before, of = found.get(name, (0, 0))
                    found[name] = before + right, of + 1
        return found

    def to_json(self) -> dict[str, Any]:
        """The counts with their intervals, and every prompt with its answer."""
        rows = zip(self.prompts, self.texts, self.right, strict=True)
        return {
            "path": self.path,
            "step": self.step,
            "exact_answers": {
                name: {"right": right, "of": of, "interval_95": wilson_interval(right, of)}
                for name, (right, of) in self.counts().items()
            },
            "answers": [
                {"where": prompt.where, "record": dict(prompt.record), "answer": text, "right": right}
                for prompt, text, right in rows
            ],
        }


class Answering(NamedTuple):
    """An opened model, and the prompts that it answers."""

    opened: PretrainedModel
    prompts: tuple[HeldOutPrompt, ...]
    most_tokens: int
    """Tokens of an answer."""

    def texts(self, samples: int = 1, temperature: float = 0.0) -> list[list[str]]:
        """The answers to each prompt: so many samples at this temperature, with seeds that follow from their
        numbers."""
        longest = max(len(prompt.ids) for prompt in self.prompts) + self.most_tokens
        slots = min(len(self.prompts) * samples, SLOTS)
        engine = Engine.of(self.opened, slots, longest, prefill_rows=8, log=log_to_stderr)
        ids = [
            engine.submit(
                Request(
                    ids=prompt.ids,
                    temperature=temperature,
                    max_tokens=self.most_tokens,
                    seed=i * samples + k,
                )
            )
            for i, prompt in enumerate(self.prompts)
            for k in range(samples)
        ]
        while engine.busy:
            engine.step()
        texts = [engine.results[number].text for number in ids]
        return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def open_to_answer(path: Path, changes: list[tuple[str, str]], count: int, **options: Any) -> Answering:
    """A model and the prompts of the first `count` held-out records of a corpus.

    changes: overrides (key, value) of the run's data.*, chat.* and train.*. options: of `open_model`. Raises
    UserError.
    """
    source = open_source(path, adapter=options.get("adapter"))
    check_outputs(source.experiment.model.outputs, str(path), "logits")
    conversations(source.experiment, changes, path)  # raises before the weights are read
    opened = open_model(source, **{name: value for name, value in options.items() if name != "adapter"})
    experiment = conversations(opened.experiment, changes, path)
    documents, tokenizer, more = corpus_settings(experiment)
    del more["encoder"], more["rows"]  # only the records are needed, which may be of any kind
    corpus = data.prepare(documents, tokenizer, run_dir=None, log=log_to_stderr, to_train=False, **more)
    settings = encoder_settings(experiment)
    template = find_template(settings.chat.template, settings.tokenizer, date=settings.chat.date)
    prompts = held_out_prompts(corpus, template, count, count)
    if not prompts:
        raise UserError(f"answers={count}: the held-out records have no prompts")
    return Answering(opened, tuple(prompts), experiment.sample.tokens or MOST_TOKENS)


def answer_held_out(
    path: Path, changes: list[tuple[str, str]], count: int, **options: Any
) -> VerifiedAnswers:
    """Answers the prompts of the first `count` held-out records with the most likely tokens.

    The arguments are those of `open_to_answer`. Raises UserError.
    """
    answering = open_to_answer(path, changes, count, **options)
    texts = tuple(text for (text,) in answering.texts())
    return VerifiedAnswers(str(path), answering.opened.step, answering.prompts, texts)


def table(found: VerifiedAnswers) -> str:
    """The shares of right answers as lines for a terminal."""
    lines = [f"model       {found.path}, step {found.step}"]
    for name, (right, of) in found.counts().items():
        low, high = wilson_interval(right, of)
        share = f"{right / of:6.1%}  ({low:.1%} to {high:.1%})" if of else "no record has a verifier"
        lines.append(f"{name:<12}{right:>5} of {of:<5} right  {share}")
    return "\n".join(lines)
