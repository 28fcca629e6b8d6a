"""The one configuration tree: `Experiment`, the files that define one, and `key=value` overrides.

An experiment file is Python with a docstring (its first line is its purpose) and a function `experiment()`
that returns an `Experiment`. core/config_tree.py reads values as the types of their keys; whatever doesn't
fit is a `UserError` of one line.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from llm_jax.core.config_tree import (
    CLASS_OF,
    all_keys,
    check_numbers,
    coerced,
    find_key,
    flat,
    from_tree,
    read_yaml_text,
    with_values,
    write_yaml_text,
)
from llm_jax.core.errors import UserError, nearest
from llm_jax.core.files import text_of, user_path
from llm_jax.data import ChatConfig, DataConfig, TokenizerConfig, vocabulary_size
from llm_jax.layout.layout import Layout
from llm_jax.layout.presets import preset
from llm_jax.model import parametrization
from llm_jax.model.adapters import AdapterConfig
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.objective.protocol import (
    OBJECTIVES,
    Objective,
    UnknownObjective,
    objective_class,
    objective_names,
)
from llm_jax.processes.config import ClusterConfig
from llm_jax.train.config import EVERYTHING, CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig, check_parametrization, warmup


@dataclass(frozen=True)
class Experiment:
    """The whole configuration of a run. Each part is documented beside the code that it configures."""

    name: str = ""
    """Name of the experiment; the file's name if empty."""
    run_dir: str = ""
    """The run folder; runs/<experiment>/default if empty. A run in the folder is resumed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    layout: Layout = field(default_factory=lambda: preset("data_parallel"))
    mesh: dict[str, int] = field(default_factory=dict)
    """Sizes of mesh axes, where they differ from the layout's; -1: all devices that the others leave."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    objective: Objective = field(default_factory=NextToken, metadata={CLASS_OF: objective_class})
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def trains_everything(self) -> bool:
        """Whether all parameters are trained: a checkpoint then holds the whole model."""
        return self.train.trainable == EVERYTHING and not self.adapter.rank


def experiment_folders() -> list[Path]:
    """The folders of experiment files: ./experiments, then the one beside the package."""
    folders = [Path("experiments"), Path(__file__).parent.parent / "experiments"]
    return [
        f
        for i, f in enumerate(folders)
        if f.is_dir() and f.resolve() not in [g.resolve() for g in folders[:i]]
    ]


def list_experiments() -> dict[str, Path]:
    """Every experiment's name (a subfolder's as "scaling/x") and its file."""
    found: dict[str, Path] = {}
    for folder in experiment_folders():
        for path in sorted(folder.rglob("*.py")):
            if not path.name.startswith("_"):
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def purpose(path: Path) -> str:
    """The first line of an experiment file's docstring, without running it."""
    try:
        doc = ast.get_docstring(ast.parse(path.read_text()))
    except SyntaxError as error:
        return f"(can't be read: line {error.lineno}: {error.msg})"
    return doc.splitlines()[0] if doc else "(no docstring)"


def find_experiment(name: str) -> Path:
    """The file of an experiment given by name or by path."""
    if name.endswith((".py", ".yaml")):
        path = user_path(name)
        if not path.is_file():
            raise UserError(f"experiment={name}: there is no such file")
        return path
    known = list_experiments()
    if name not in known:
        if (Path(name) / "config.yaml").is_file():
            raise UserError(
                f"experiment={name}: is a run folder; write experiment={Path(name) / 'config.yaml'} to "
                "run its configuration"
            )
        raise UserError(f"experiment={name}: no such experiment; {nearest(name, known)} (--list shows all)")
    return known[name]


def load_experiment(name: str) -> Experiment:
    """The experiment that a file describes: a Python file under experiments/, one anywhere, or a run's
    config.yaml."""
    return as_experiment(load_file(name), name)


def load_file(name: str) -> Any:
    """The return value of experiment() in the file of that name: an Experiment, or a Grid."""
    path = find_experiment(name)
    return read_yaml(path) if path.suffix == ".yaml" else run_file(path, f"experiment={name}")


def as_experiment(made: Any, name: str) -> Experiment:
    """The experiment of a file, with its name.

    Raises UserError where experiment() returned something else.
    """
    if not isinstance(made, Experiment):
        raise UserError(
            f"experiment={name}: experiment() in {find_experiment(name)} returns {type(made).__name__}, "
            "not an Experiment"
        )
    return named(made, name)


def named(experiment: Experiment, name: str) -> Experiment:
    """The experiment under its own name, or under that of its file."""
    return (
        experiment
        if experiment.name
        else dataclasses.replace(experiment, name=Path(name).stem if name.endswith(".py") else name)
    )


def import_file(path: Path) -> ModuleType:
    """The module of a Python experiment file. It has the same name in every process, so its classes can be
    sent to others."""
    spec = importlib.util.spec_from_file_location(f"llm_jax_experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_file(path: Path, origin: str) -> Any:
    """The return value of experiment() in a Python file. Raises UserError, with the line in the file, for
    anything that the file raises."""
    try:
        module = import_file(path)
        if not callable(getattr(module, "experiment", None)):
            raise UserError(f"{origin}: {path} has no function experiment() that returns an Experiment")
        return module.experiment()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{origin}: {error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        raise UserError(
            f"{origin}: {path}:{lines[-1] if lines else '?'}: {type(error).__name__}: {first_line(error)}"
        ) from error


def read_yaml(path: Path) -> Experiment:
    """The experiment of a config.yaml; keys that it has not keep their defaults. Raises UserError, naming
    file and key, where it isn't one."""
    try:
        tree = with_new_names(read_yaml_text(text_of(path.read_bytes(), str(path))))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a configuration ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a configuration: must be a table of keys and values")
    try:
        objective = tree.get("objective")
        if (
            isinstance(objective, dict)
            and (name := objective.get("name"))
            and isinstance(name, str)
            and name not in OBJECTIVES
            and name not in objective_names()
        ):
            rest = {key: value for key, value in tree.items() if key != "objective"}
            return dataclasses.replace(from_tree(Experiment(), rest), objective=UnknownObjective(name))
        return from_tree(Experiment(), tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


RENAMED = {
    "objective.template": "chat.template",
    "objective.train_on": "data.train_on",
    "objective.too_long": "data.too_long",
}
"""Keys that the objective sft had once, and what they are called now."""


def with_new_names(tree: Any) -> Any:
    """The tree of a config.yaml with renamed keys where they are now."""
    if not isinstance(tree, dict) or not isinstance(tree.get("objective"), dict):
        return tree
    objective = dict(tree["objective"])
    tree = {**tree, "objective": objective}
    for old, new in RENAMED.items() if objective.get("name") == "sft" else ():
        if (name := old.removeprefix("objective.")) in objective:
            group, _, key = new.partition(".")
            tree[group] = {**(tree.get(group) or {}), key: objective.pop(name)}
    return tree


def yaml_values(text: str) -> dict[str, Any]:
    """The dotted keys of a config.yaml with their values, each as its key's type; text where this version has
    no such key.

    Raises yaml.YAMLError, or UserError for YAML that is no table.
    """
    tree = with_new_names(read_yaml_text(text))
    if not isinstance(tree, dict):
        raise UserError("must be a table of keys and values")
    values = flat(tree)
    default = default_experiment(values.get("objective.name"))
    for key, value in values.items():
        with contextlib.suppress(UserError):
            values[key] = coerced(key, value, find_key(default, key, value)[1])
    return values


def default_experiment(objective: Any) -> Experiment:
    """The default of every key, those of this objective too if it is known here."""
    known = isinstance(objective, str) and objective in OBJECTIVES
    return Experiment(objective=objective_class(objective)()) if known else Experiment()


def experiment_name(pairs: list[tuple[str, str]]) -> str:
    """The value of `experiment=` on a command line."""
    names = [value for key, value in pairs if key == "experiment"]
    if not names:
        raise UserError(f"experiment=NAME is missing; one of: {', '.join(list_experiments())}")
    if len(names) > 1:
        raise UserError("experiment= is given twice")
    return names[0]


def override(experiment: Experiment, pairs: Sequence[tuple[str, Any]]) -> Experiment:
    """The experiment with `key=value` overrides applied; `layout=NAME` puts a preset in first,
    `objective=NAME` an objective.

    A value is text, as on a command line, or the value itself.
    Raises UserError for keys that there are not (with the nearest one) and values of another type.
    """
    own_keys = any(key.startswith("objective.") for key, _ in pairs)
    if isinstance(experiment.objective, UnknownObjective) and own_keys and "objective" not in dict(pairs):
        experiment.objective.check()
    for key, value in pairs:
        if key == "layout" and value != experiment.layout.name:
            experiment = dataclasses.replace(experiment, layout=preset(value))
    try:
        made = with_values(experiment, [pair for pair in pairs if pair[0] != "layout"])
    except UserError:
        for key, value in pairs:
            if key in RENAMED and key not in all_keys(experiment):
                raise UserError(f"{key}={value}: was renamed. Use {RENAMED[key]}={value}") from None
        raise
    if made.data.mixture and any(key == "data.source" for key, _ in pairs):
        raise UserError(
            f"data.source={made.data.source}: the experiment has a data.mixture, which replaces it; add "
            f"data.mixture={{}} to use it"
        )
    return made


def to_yaml(experiment: Experiment) -> str:
    """The whole tree as YAML, enough to run it again."""
    return write_yaml_text(experiment)


def first_line(error: Exception) -> str:
    """The first line of an exception's message."""
    return next(iter(str(error).splitlines()), "")


def folder_of(experiment: Experiment) -> str:
    """The folder of an experiment's run, or of a grid with this base."""
    run_dir = experiment.run_dir or f"runs/{experiment.name}/default"
    return str(user_path(run_dir)) if run_dir.startswith("~") else run_dir


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with defaults that follow from others filled in, and checked as far as it can be without
    devices.

    The vocabulary stays open (None) until the tokenizer is there.
    """
    experiment = dataclasses.replace(experiment, run_dir=folder_of(experiment))
    check_parts(e := experiment)
    check_parametrization(e.optimizer, e.model)
    for key, value in (
        ("sample.tokens", e.sample.tokens),
        ("evaluate.base_batches", e.evaluate.base_batches),
    ):
        if e.model.outputs == e.objective.outputs == "reward" and value:
            raise UserError(f"{key}={value}: a reward model predicts no tokens. Use {key}=0")
    if e.model.position == "learned" and e.model.positions < e.train.sequence_length:
        raise UserError(
            f"train.sequence_length={e.train.sequence_length}: more than the model's learned positions "
            f"(model.positions={e.model.positions})"
        )
    if e.adapter.rank and not e.train.start_from:
        raise UserError(
            f"adapter.rank={e.adapter.rank}: an adapter changes a trained model, and this run starts with "
            "random weights. Add from=RUN_OR_FOLDER"
        )
    model = experiment.model.resolved()
    if not isinstance(e.objective, UnknownObjective) and model.outputs != e.objective.outputs:
        raise UserError(
            f"model.outputs={model.outputs}: objective.name={e.objective.name} needs "
            f"model.outputs={e.objective.outputs}. Use that"
        )
    parametrization.check(model)
    check_numbers(e)
    optimizer = dataclasses.replace(e.optimizer, warmup_steps=warmup(e.optimizer, e.train.steps))
    return dataclasses.replace(experiment, model=model, optimizer=optimizer)


def check_parts(e: Experiment) -> None:
    """Raises UserError for a value out of range; the model checks its own when it is resolved."""
    for part in (
        e.layout,
        e.data,
        e.tokenizer,
        e.chat,
        e.objective,
        e.adapter,
        e.optimizer,
        e.train,
        e.evaluate,
        e.checkpoint,
        e.sample,
        e.cluster,
    ):
        part.check()


CHAT_KEYS = ("chat.", "data.train_on", "data.too_long")
"""Keys that decide how conversations become tokens."""


def check_effect(e: Experiment, keys: Iterable[str]) -> None:
    """Raises UserError for a key of a command line whose value has no effect beside those of other keys.

    In a file such a key may wait for another value of these: base_embed, for a grid over parametrizations.
    """
    m, o = e.model, e.optimizer
    needs = {
        "model.base_embed": ("model.parametrization=mup or completep", m.parametrization != "standard"),
        "model.base_head_dim": ("model.parametrization=mup or completep", m.parametrization != "standard"),
        "model.base_layers": ("model.parametrization=completep", m.parametrization == "completep"),
        "model.moe.": ("model.moe.experts=N", m.moe.experts > 0),
        "adapter.": ("adapter.rank=16", e.adapter.rank > 0),
        "optimizer.decay_fraction": ("optimizer.schedule=wsd", o.schedule == "wsd"),
        "optimizer.final_fraction": ("a schedule that decays", o.schedule != "constant"),
        "optimizer.momentum": ("optimizer.name=muon", o.name not in ("adamw", "adafactor", "lion")),
        "optimizer.matrix_learning_rate": (
            "optimizer.name=muon",
            o.name not in ("adamw", "adafactor", "lion"),
        ),
        "tokenizer.vocab": ("a tokenizer that is trained, without tokenizer.file", not e.tokenizer.file),
        "tokenizer.kind": ("a tokenizer that is trained, without tokenizer.file", not e.tokenizer.file),
        "train.rollback.": ("train.rollback.spike=1.5", e.train.rollback.spike > 0),
        "data.text_key": ("an objective that reads texts, such as next_token", e.objective.reads == "text"),
        **dict.fromkeys(
            CHAT_KEYS,
            ("an objective that reads conversations, such as sft", e.objective.reads == "record"),
        ),
    }
    own, usual = flat(dataclasses.asdict(e)), flat(dataclasses.asdict(Experiment()))
    for key in keys:
        need, has = next((rule for prefix, rule in needs.items() if key.startswith(prefix)), ("", True))
        if not has and own.get(key) != usual.get(key):
            raise UserError(
                f"{key}={own.get(key)}: has an effect only with {need}. Add that, or leave {key} out"
            )


def with_vocabulary(experiment: Experiment) -> Experiment:
    """The experiment, its model resolved, with the vocabulary that its tokenizer will have, which is known
    without the corpus."""
    vocabulary = vocabulary_size(experiment.tokenizer) if experiment.model.vocab is None else None
    return dataclasses.replace(experiment, model=experiment.model.resolved(vocabulary))


def read_experiment(run_dir: Path) -> Experiment:
    """The experiment of a run folder."""
    path = run_dir / "config.yaml"
    if not path.exists():
        raise UserError(f"{run_dir}: is no run folder (it has no config.yaml)")
    return read_yaml(path)
