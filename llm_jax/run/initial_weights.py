"""Initial weights from another run or a Hugging Face model folder (`from=FOLDER`), instead of random ones."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from llm_jax.core.config_tree import differences, flat, with_values
from llm_jax.core.errors import UserError
from llm_jax.core.files import user_path
from llm_jax.data import ChatConfig, TokenizerConfig, vocabulary_size
from llm_jax.data.chat_template import copy_of_template
from llm_jax.experiment import (
    Experiment,
    check_effect,
    experiment_name,
    folder_of,
    load_experiment,
    override,
    read_experiment,
    resolved,
)
from llm_jax.pretrained.adapter_apart import adapter_config
from llm_jax.pretrained.model import dtype_for
from llm_jax.pretrained.source import checkpoint_steps, open_source, tokenizer_folder
from llm_jax.pretrained.weights import initial_parameters
from llm_jax.train.config import TO_BE_GIVEN, words_without_from
from llm_jax.train.optimizer import check_warmup, longest_warmup
from llm_jax.train.state import TrainModel, TrainState

ADAPTER_FROM = "adapter.from"
"""The key of a command line that stands for `adapter.peft_folder` and what follows from it."""
TOKENIZER = "tokenizer"
"""The folder in a run folder."""
SHORT = {"teacher": "objective.teacher"}
"""Keys of a command line that stand for longer ones."""


def start_from_folder(experiment: Experiment, path: str, pairs: Sequence[tuple[str, str]]) -> Experiment:
    """The experiment with the model shape, tokenizer and initial weights of a folder (`from=path` on a
    command line).

    pairs: the overrides of the command line. A run that has started already finds all three in its own folder
    if the other is gone. Raises UserError where there is no model, and for overrides that would have no
    effect.
    """
    for key, value in pairs:
        if key == "train.start_from":
            raise UserError(f"train.start_from={value}: from={path} sets it already. Give one of them")
        if key.startswith("tokenizer.") and key not in ("tokenizer.file", "tokenizer.control"):
            raise UserError(f"{key}={value}: from={path} sets the tokenizer. Leave this key out")
    folder = user_path(path)
    named = dict(pairs).get("run_dir") or experiment.run_dir
    run_dir = Path(folder_of(dataclasses.replace(experiment, run_dir=named)))
    if (
        not folder.exists()
        and has_begun(run_dir)
        and (own := read_experiment(run_dir)).train.start_from == path
    ):
        model, tokenizer = own.model, own.tokenizer
    else:
        # A small update of a bfloat16 weight is rounded away: weights are trained in float32.
        model = dataclasses.replace(open_source(folder).experiment.model, parameter_dtype="float32")
        if experiment.model.outputs == "reward":  # a language model gets a new head
            model = dataclasses.replace(model, outputs="reward")
        tokenizer = TokenizerConfig(file=str(tokenizer_folder(folder)), control=experiment.tokenizer.control)
    train = dataclasses.replace(experiment.train, start_from=path)
    return dataclasses.replace(experiment, model=model, tokenizer=tokenizer, train=train)


def with_tokenizer_of_teacher(experiment: Experiment) -> Experiment:
    """The experiment with the tokenizer and vocabulary of its teacher, where it has neither of its own, nor
    weights to start with. Raises UserError where the teacher is no model.
    """
    folder = experiment.objective.frozen().get("teacher")
    has_own = experiment.tokenizer.file or experiment.model.vocab is not None
    if not folder or has_own or experiment.train.start_from:
        return experiment
    try:
        vocab = open_source(folder).experiment.model.vocab
    except UserError as error:  # it begins with the folder
        raise UserError(f"objective.teacher={error}") from error
    tokenizer = dataclasses.replace(experiment.tokenizer, file=str(tokenizer_folder(user_path(folder))))
    model = dataclasses.replace(experiment.model, vocab=vocab)
    return dataclasses.replace(experiment, model=model, tokenizer=tokenizer)


def start_from_adapter(
    experiment: Experiment, paths: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> Experiment:
    """The experiment that trains the adapter of a PEFT folder further (`adapter.from=path` on a command
    line).

    pairs: the other overrides. A run that has started already finds the adapter's configuration in its own
    folder if the other is gone. Raises UserError for an adapter that can't be trained on this base.
    """
    path, *more = paths
    if more:
        raise UserError(f"{ADAPTER_FROM}={more[0]}: is given twice. Give one folder")
    for key, value in pairs:
        if key.startswith("adapter.") and key != "adapter.base":
            raise UserError(f"{key}={value}: {ADAPTER_FROM}={path} sets it. Leave this key out")
    start = experiment.train.start_from
    if not start or start.startswith(TO_BE_GIVEN):
        raise UserError(f"{ADAPTER_FROM}={path}: needs the model that the adapter changes. Add from=FOLDER")
    named = dict(pairs).get("run_dir") or experiment.run_dir
    run_dir = Path(folder_of(dataclasses.replace(experiment, run_dir=named)))
    if (
        not user_path(path).exists()
        and has_begun(run_dir)
        and (own := read_experiment(run_dir)).adapter.peft_folder == path
    ):
        adapter = own.adapter
    else:
        adapter = adapter_config(user_path(path), open_source(start))
    adapter = dataclasses.replace(adapter, peft_folder=path, base=experiment.adapter.base)
    return dataclasses.replace(experiment, adapter=adapter)


def has_begun(run_dir: Path) -> bool:
    """Whether the run has a checkpoint of its own to resume from."""
    return bool(checkpoint_steps(run_dir))


def belongs(experiment: Experiment, part: str) -> bool:
    """Whether the run in the folder has this part of the configuration too. `data.show` shows what a command
    line asks for, whatever run its default run_dir holds; a launch refuses another configuration."""
    run_dir = Path(experiment.run_dir)
    if not (run_dir / "config.yaml").is_file():
        return True
    return getattr(read_experiment(run_dir), part) == getattr(experiment, part)


def with_own_tokenizer(experiment: Experiment) -> TokenizerConfig:
    """The run's tokenizer: once it has begun the copy in the run folder, with which its weights were trained.

    The file may be gone since, and training the tokenizer anew, after its data or this program changed, may
    give other tokens.
    """
    own = Path(experiment.run_dir) / TOKENIZER
    file = experiment.tokenizer.file
    gone = bool(file) and not user_path(file).exists()
    if own.is_dir() and (gone or has_begun(Path(experiment.run_dir))) and belongs(experiment, "tokenizer"):
        return dataclasses.replace(experiment.tokenizer, file=str(own))
    return experiment.tokenizer


def with_own_template(experiment: Experiment) -> ChatConfig:
    """How the run writes conversations: once it has begun by the copy of its template in the run folder.

    The template's file may be gone or changed since.
    """
    chat, run_dir = experiment.chat, Path(experiment.run_dir)
    if not chat.template or not has_begun(run_dir) or not belongs(experiment, "chat"):
        return chat
    return dataclasses.replace(chat, template=copy_of_template(chat.template, run_dir / TOKENIZER))


def check_start(experiment: Experiment, program: TrainModel) -> None:
    """Raises UserError, before anything is written, where the weights that the run starts from are missing or
    of other shapes.
    """
    path = experiment.train.start_from
    source = open_source(path).experiment.model
    model = source.resolved(experiment.model.vocab if source.vocab is None else None)
    if experiment.tokenizer.control and experiment.model.vocab:  # rows of added tokens are made
        model = dataclasses.replace(model, vocab=max(model.vocab or 0, experiment.model.vocab))
    if experiment.model.outputs == "reward":  # a new head is made
        model = dataclasses.replace(model, outputs="reward")
    there = TrainModel(model, experiment.optimizer, program.place).abstract
    shapes = [jax.tree.map(lambda w: w.shape, tree) for tree in (there, program.plain.abstract)]
    if shapes[0] != shapes[1]:
        changed = differences(
            *(flat(dataclasses.asdict(config), "model.") for config in (model, experiment.model))
        )
        raise UserError(
            f"train.start_from={path}: its weights have other shapes than this model's; undo one of: "
            f"{'; '.join(changed)}"
        )


def check_folder(experiment: Experiment) -> None:
    """Raises UserError for a run folder that has the weights of a loaded model: a run in it would not begin
    with them, and hide them.
    """
    run_dir = Path(experiment.run_dir)
    if (run_dir / "weights").exists():
        raise UserError(
            f"run_dir={run_dir}: holds a loaded model; train it further with "
            f"experiment=continue_pretraining from={run_dir} run_dir=ANOTHER"
        )


def initial_state(experiment: Experiment, model: TrainModel, log: Callable[[str], None]) -> TrainState:
    """The state at step 0: weights drawn at random, or read from `train.start_from`; the optimizer begins
    anew.
    """
    if not experiment.train.start_from and model.trained == model.names:
        return model.new_state(experiment.train.seed)
    return model.state_with(model.trainable(initial_parameters(experiment, model, log)))


def experiment_from_pairs(pairs: list[tuple[str, str]]) -> Experiment:
    """The experiment of a command line, resolved: `experiment=NAME` names it, the other key=value pairs
    override it.
    """
    return with_command_line(load_experiment(experiment_name(pairs)), pairs)


def with_command_line(experiment: Experiment, pairs: list[tuple[str, str]]) -> Experiment:
    """The experiment with the overrides of a command line, resolved.

    `from=FOLDER` sets model shape, tokenizer and weights; without it `teacher=FOLDER` sets the tokenizer.
    """
    pairs = with_words_without_from(experiment, pairs)
    froms = [value for key, value in pairs if key == "from"]
    pairs = [(SHORT.get(key, key), value) for key, value in pairs if key not in ("experiment", "from")]
    if len(froms) > 1:
        raise UserError("from=: is given twice. Give one folder")
    if froms:
        experiment = start_from_folder(experiment, froms[0], pairs)
    adapters = [value for key, value in pairs if key == ADAPTER_FROM]
    if adapters:
        pairs = [pair for pair in pairs if pair[0] != ADAPTER_FROM]
        experiment = start_from_adapter(experiment, adapters, pairs)
    chosen, keys = override(experiment, pairs), [key for key, _ in pairs]
    if not any(key.startswith("tokenizer.") for key in keys):
        chosen = with_tokenizer_of_teacher(chosen)
    chosen = with_rows_for_control(chosen)
    made = resolved(chosen)
    if chosen.optimizer.warmup_steps is None:
        made = with_own_warmup(made)
    check_effect(made, keys)
    check_warmup(made.optimizer, made.train.steps, keys)
    return made


def with_words_without_from(experiment: Experiment, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The words of a command line without from=, and those that the experiment has for this case.

    Raises UserError where the folder that they name is not there.
    """
    words = words_without_from(experiment.train.start_from)
    given = dict(pairs)
    if not words or "from" in given or "train.start_from" in given:
        return pairs
    added = [(key, value) for key, _, value in (word.partition("=") for word in words) if key not in given]
    path = Path(dict(added)["from"])
    run_dir = given.get("run_dir") or experiment.run_dir
    if not path.exists() and not has_begun(Path(folder_of(dataclasses.replace(experiment, run_dir=run_dir)))):
        raise UserError(
            f"from= is missing, and {path} is not there. Train it (python -m llm_jax.launch "
            f"experiment={path.parent.name}), or add from=RUN_OR_FOLDER"
        )
    return [*added, *pairs]


def with_rows_for_control(experiment: Experiment) -> Experiment:
    """The experiment whose model, if its vocabulary is known, has rows for the control tokens that its
    tokenizer is to get."""
    vocab = experiment.model.vocab
    if not experiment.tokenizer.control or vocab is None:
        return experiment
    size = max(vocab, vocabulary_size(experiment.tokenizer))
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocab=size))


def with_own_warmup(experiment: Experiment) -> Experiment:
    """The experiment with the warm-up of the run that its folder holds, if there is one and it fits: the
    default follows from train.steps, and a run that has begun may be made longer.
    """
    with contextlib.suppress(UserError):  # there is no run, or a damaged file, which is named when it starts
        own = read_experiment(Path(experiment.run_dir)).optimizer.warmup_steps
        if own is not None and own <= longest_warmup(experiment.optimizer, experiment.train.steps):
            optimizer = dataclasses.replace(experiment.optimizer, warmup_steps=own)
            return dataclasses.replace(experiment, optimizer=optimizer)
    return experiment


def with_dtype_for(
    experiment: Experiment, pairs: Sequence[tuple[str, str]], platform: str, log: Callable[[str], None]
) -> Experiment:
    """The experiment, computing in a dtype that is fast on devices of this platform, where only `from=FOLDER`
    has determined one (`dtype_for`)."""
    keys = dict(pairs)
    if "from" not in keys or "model.compute_dtype" in keys or "model.gradient_dtype" in keys:
        return experiment
    dtype = dtype_for(experiment.model, platform, log, key="model.compute_dtype")
    return with_values(experiment, [("model.compute_dtype", dtype)] if dtype else [])
