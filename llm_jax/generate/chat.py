"""Conversations as prompts: what a model's chat template writes, up to where the answer begins."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from llm_jax.data import TokenizerConfig
from llm_jax.data.chat_encoder import prompt_ids
from llm_jax.data.chat_template import copy_of_template, find_template
from llm_jax.generate.request import Request
from llm_jax.pretrained.model import PretrainedModel
from llm_jax.pretrained.source import tokenizer_folder

BASE = "a base model only continues a text: use prompt=, or train it to answer first (experiment=sft)"
"""What to do with a model that has no template."""


def in_template(requests: Sequence[Request], model: PretrainedModel) -> list[Request]:
    """The requests, those with messages as token ids in the model's chat template: the one that it was
    fine-tuned with here, or its folder's.

    What looks like a control token in a message stays text. A template that writes the date is told that of
    the training (`chat.date`), or today's. Raises UserError where there is no template, or
    none for these messages.
    """
    folder = tokenizer_folder(model.path)
    name = copy_of_template(model.experiment.chat.template, folder)
    date = model.experiment.chat.date or datetime.date.today().isoformat()
    template = find_template(name, TokenizerConfig(file=str(folder)), "chat template", date, BASE)
    return [
        dataclasses.replace(request, ids=tuple(prompt_ids(template, request.messages, None, model.tokenizer)))
        if request.messages
        else request
        for request in requests
    ]
