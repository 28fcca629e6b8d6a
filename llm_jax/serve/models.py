"""The models that a server has, each with its engine."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.data.chat_template import ChatTemplate
from llm_jax.evaluate.scorer import Scorer
from llm_jax.generate.chat import template_of
from llm_jax.generate.engine import Engine
from llm_jax.generate.id_tokenizer import GenerationTokenizer
from llm_jax.generate.request import MAX_LOGPROBS
from llm_jax.pretrained.model import PretrainedModel, open_model
from llm_jax.serve.token_strings import TokenStrings


@dataclass(frozen=True)
class ServedModel:
    """A model under the name by which requests choose it.

    Only the engine thread calls the engine and the scorer. What other threads read here never changes.
    """

    name: str
    opened: PretrainedModel
    """The model without its parameters, which the engine has in its own form."""
    engine: Engine
    strings: TokenStrings
    template: ChatTemplate | None
    """The chat template; None: the model only continues texts."""
    no_template: str = ""
    """Why there is no template."""

    @property
    def tokenizer(self) -> GenerationTokenizer:
        """The tokenizer, or its stand-in for a model without one."""
        return self.engine.tokenizer

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt with its continuation."""
        return self.engine.max_tokens

    @property
    def vocab(self) -> int:
        """Token ids below this one have a row in the embedding."""
        return self.engine.programs.vocab_rows

    @property
    def slots(self) -> int:
        """Continuations that run at once."""
        return len(self.engine.slots)

    def chat_template(self) -> ChatTemplate:
        """The chat template, with the date of today where it isn't that of the training. Raises UserError
        where there is none."""
        if self.template is None:
            raise UserError(self.no_template)
        date = self.opened.experiment.chat.date or datetime.date.today().isoformat()
        return dataclasses.replace(self.template, date=date)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Scores prompts (`echo`) with the engine's weights. Its programs are compiled when first used."""
        top = min(MAX_LOGPROBS, self.opened.config.vocab or 0)
        return Scorer(self.opened, top=top, weights=self.engine.weights)


def served(
    name: str, opened: PretrainedModel, slots: int, max_tokens: int, log: Callable[[str], None]
) -> ServedModel:
    """An opened model with an engine for it. log: called with a line for each compilation."""
    engine = Engine.of(opened, slots, max_tokens, log=log)
    template, problem = None, ""
    try:
        template = template_of(opened.path, opened.experiment, remedy=NO_TEMPLATE)
    except UserError as error:
        problem = str(error)
    return ServedModel(
        name,
        dataclasses.replace(opened, parameters=None),
        engine,
        TokenStrings(opened.tokenizer_if_any),
        template,
        problem,
    )


NO_TEMPLATE = "a base model only continues a text: use /v1/completions"
"""What to do with a model that has no chat template."""


def open_models(
    folders: Mapping[str, Path],
    options: Mapping[str, Any],
    slots: int,
    max_tokens: int | None,
    log: Callable[[str], None],
) -> dict[str, ServedModel]:
    """The models of folders by name. options: the keyword arguments of `open_model`. max_tokens: see
    `served`; None: as many as each model was trained on. Raises UserError where one can't be opened."""
    models = {}
    for name, folder in folders.items():
        log(f"{name}: opens {folder}")
        opened = open_model(folder, **options, log=log)
        most = max_tokens or context_of(opened)
        models[name] = served(name, opened, slots, most, log)
        del opened  # its weights are stacked by layers; the engine has its own
    return models


MOST_BY_ITSELF = 2048
"""Tokens of a slot at most, without max_tokens=: the caches of all positions of a large model would take
much memory."""


def context_of(opened: PretrainedModel) -> int:
    """The tokens of a slot without max_tokens=: those of a row of the training, where the model was trained
    here; else `MOST_BY_ITSELF`, or fewer if it has fewer positions."""
    if opened.step:
        return max(2, min(opened.experiment.train.sequence_length, MOST_BY_ITSELF))
    learned = opened.config.position == "learned"
    return min(opened.config.positions, MOST_BY_ITSELF) if learned else MOST_BY_ITSELF
