"""Conversations as prompts: what a model's chat template writes, up to where the answer begins."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path

from llm_jax.data import TokenizerConfig
from llm_jax.data.chat_encoder import prompt_ids
from llm_jax.data.chat_template import ChatTemplate, copy_of_template, find_template
from llm_jax.experiment import Experiment
from llm_jax.generate.request import Request
from llm_jax.pretrained.model import PretrainedModel
from llm_jax.pretrained.source import tokenizer_folder

BASE = "a base model only continues a text: use prompt=, or train it to answer first (experiment=sft)"
"""What to do with a model that has no template."""


def template_of(
    path: Path, experiment: Experiment, key: str = "chat template", remedy: str = BASE
) -> ChatTemplate:
    """The chat template of the model in a folder: the one that it was fine-tuned with here, or its folder's.

    A template that writes the date is told that of the training (`chat.date`), or today's. Raises UserError,
    which names `key` and what to do, where there is none.
    """
    folder = tokenizer_folder(path)
    name = copy_of_template(experiment.chat.template, folder)
    date = experiment.chat.date or datetime.date.today().isoformat()
    return find_template(name, TokenizerConfig(file=str(folder)), key, date, remedy)


def in_template(requests: Sequence[Request], model: PretrainedModel) -> list[Request]:
    """The requests, those with messages as token ids in the model's chat template (`template_of`).

    What looks like a control token in a message stays text. Raises UserError where there is no template, or
    none for these messages.
    """
    template = template_of(model.path, model.experiment)
    return [
        dataclasses.replace(request, ids=tuple(prompt_ids(template, request.messages, None, model.tokenizer)))
        if request.messages
        else request
        for request in requests
    ]
