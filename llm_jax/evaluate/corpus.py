"""The corpus on which a trained model is evaluated: texts, or the conversations that it was fine-tuned on."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from llm_jax import data
from llm_jax.data import TokenizerConfig
from llm_jax.data.chat_template import copy_of_template
from llm_jax.data.generated import GENERATED
from llm_jax.experiment import Experiment, override, resolved
from llm_jax.objective.next_token import NextToken
from llm_jax.objective.protocol import Objective
from llm_jax.objective.sft import SFT
from llm_jax.pretrained.source import tokenizer_folder
from llm_jax.run.prepare import corpus_settings


def with_changes(experiment: Experiment, changes: list[tuple[str, str]], path: Path) -> Experiment:
    """A run's experiment with overrides, resolved, with the objective whose loss is scored: that of texts, or
    of conversations.

    So the file that defines the run's own objective is not needed. Conversations are what a run on
    conversations was trained on, the built-in ones, and those of a line with data.train_on.
    """
    keys = dict(changes)
    chosen = keys.get("data.source")
    records = experiment.objective.reads == "record" if chosen is None else chosen in GENERATED
    return changed(experiment, changes, path, SFT() if records or "data.train_on" in keys else NextToken())


def conversations(experiment: Experiment, changes: list[tuple[str, str]], path: Path) -> Experiment:
    """A run's experiment with overrides, resolved, on conversations."""
    return changed(experiment, changes, path, SFT())


def changed(
    experiment: Experiment, changes: list[tuple[str, str]], path: Path, objective: Objective
) -> Experiment:
    """A run's experiment with another objective and overrides, resolved.

    It reads the tokenizer and the chat template of the model's folder.
    """
    folder = tokenizer_folder(path)
    chat = dataclasses.replace(experiment.chat, template=copy_of_template(experiment.chat.template, folder))
    experiment = dataclasses.replace(
        experiment,
        objective=objective,
        run_dir=str(path),
        chat=chat,
        tokenizer=TokenizerConfig(file=str(folder)),
    )
    return resolved(override(experiment, changes))


def corpus_of(experiment: Experiment) -> data.Corpus:
    """The corpus of an experiment, all of which may be held out; its log lines go to stderr."""
    documents, tokenizer, more = corpus_settings(experiment)
    log = lambda line: print(line, file=sys.stderr)  # noqa: E731
    return data.prepare(documents, tokenizer, run_dir=None, log=log, to_train=False, **more)
