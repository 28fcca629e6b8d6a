"""The one configuration tree: `Experiment`, the files that define one, and `key=value` overrides.

An experiment file is Python with a docstring (its first line is its purpose) and a function `experiment()` that
returns an `Experiment`. OmegaConf checks types and merges; whatever doesn't fit is a `UserError` of one line.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.errors import UserError, nearest
from llm_jax.layout.layout import Layout
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import ObjectiveConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Experiment:
    """Everything about a run. Each part is described beside the code that it configures."""

    name: str = ""
    """What the experiment is called; the file's name if empty."""
    run_dir: str = ""
    """The run folder; runs/<experiment>/default if empty. A folder with a run in it is gone on with."""
    model: ModelConfig = field(default_factory=ModelConfig)
    layout: Layout = field(default_factory=lambda: preset("data_parallel"))
    mesh: dict[str, int] = field(default_factory=dict)
    """Sizes of mesh axes, where they differ from the layout's; -1: all devices that the others leave."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def experiment_folders() -> list[Path]:
    """Where experiment files are looked for: ./experiments, then the one beside the package."""
    folders = [Path("experiments"), Path(__file__).parent.parent / "experiments"]
    return [f for i, f in enumerate(folders) if f.is_dir() and f.resolve() not in [g.resolve() for g in folders[:i]]]


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
    doc = ast.get_docstring(ast.parse(path.read_text()))
    return doc.splitlines()[0] if doc else "(no docstring)"


def find_experiment(name: str) -> Path:
    """The file of an experiment given by name or by path."""
    if name.endswith((".py", ".yaml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"experiment={name}: there is no such file")
        return path
    known = list_experiments()
    if name not in known:
        raise UserError(f"experiment={name}: no such experiment; {nearest(name, known)} (--list shows all)")
    return known[name]


def load_experiment(name: str) -> Experiment:
    """The experiment that a file describes: a Python file under experiments/, one anywhere, or a run's config.yaml."""
    path = find_experiment(name)
    if path.suffix == ".yaml":
        return from_tree(OmegaConf.load(path), str(path))
    spec = importlib.util.spec_from_file_location(f"llm_jax_experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"experiment={name}: {path}:{error.lineno}: {error.msg}") from error
    if not callable(getattr(module, "experiment", None)):
        raise UserError(f"experiment={name}: {path} has no function experiment() that returns an Experiment")
    try:
        made = module.experiment()
    except TypeError as error:  # a field that a config doesn't have, as Python says it
        raise UserError(f"experiment={name}: {path}: {error}") from error
    if not isinstance(made, Experiment):
        raise UserError(f"experiment={name}: experiment() in {path} returns {type(made).__name__}, not an Experiment")
    return made if made.name else dataclasses.replace(made, name=path.stem)


def from_tree(tree: Any, where: str) -> Experiment:
    """An Experiment from a tree of plain values (a config.yaml)."""
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Experiment), tree))
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {error.full_key or ''}: {first_line(error)}") from error
    assert isinstance(made, Experiment)
    return made


def override(experiment: Experiment, pairs: list[tuple[str, str]]) -> Experiment:
    """The experiment with `key=value` overrides applied; `layout=NAME` puts a preset in first.

    Raises UserError for keys that there are not (with the nearest one) and values of another type.
    """
    for key, value in pairs:
        if key == "layout" and value != experiment.layout.name:
            experiment = dataclasses.replace(experiment, layout=preset(value))
    tree = OmegaConf.structured(experiment)
    for key, value in pairs:
        if key == "layout":
            continue
        check_key(experiment, key, value)
        try:
            tree = OmegaConf.merge(tree, OmegaConf.from_dotlist([f"{key}={value}"]))
        except OmegaConfBaseException as error:
            raise UserError(f"{key}={value}: {first_line(error)}") from error
        except Exception as error:  # YAML's own errors, for values like "[1, 2"
            raise UserError(f"{key}={value}: not a valid value ({first_line(error)})") from error
    made = OmegaConf.to_object(tree)
    assert isinstance(made, Experiment)
    return made


def check_key(experiment: Experiment, key: str, value: str) -> None:
    """Raises UserError unless `key` is a value of the tree, or an entry of one of its dicts."""
    at: Any = experiment
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(at, dict):
            return
        if not dataclasses.is_dataclass(at):
            raise UserError(f"{key}={value}: {'.'.join(parts[:depth])} is a single value, it has no {part!r}")
        names = [f.name for f in dataclasses.fields(at)]
        if part not in names:
            raise UserError(f"{key}={value}: there is no key {key!r}; {nearest(key, all_keys(experiment))}")
        at = getattr(at, part)
    if dataclasses.is_dataclass(at):
        raise UserError(f"{key}={value}: is a group; set one of its keys: {', '.join(f.name for f in dataclasses.fields(at))}")


def all_keys(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a tree of dataclasses."""
    keys = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        keys += all_keys(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else [prefix + f.name]
    return keys


def to_yaml(experiment: Experiment) -> str:
    """The whole tree as YAML, enough to run it again."""
    return OmegaConf.to_yaml(OmegaConf.structured(experiment))


def first_line(error: Exception) -> str:
    """The first line of a library's error, which says what is wrong."""
    return str(error).splitlines()[0]


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with defaults that follow from others filled in, and checked as far as it can be without devices.

    The vocabulary stays open (None) until the tokenizer is there.
    """
    if not experiment.run_dir:
        experiment = dataclasses.replace(experiment, run_dir=f"runs/{experiment.name}/default")
    experiment.layout.check()
    t = experiment.train
    for key, n in (("steps", t.steps), ("batch_size", t.batch_size), ("sequence_length", t.sequence_length), ("microbatches", t.microbatches)):
        if n < 1:
            raise UserError(f"train.{key}={n}: must be at least 1")
    if t.batch_size % t.microbatches:
        raise UserError(f"train.microbatches={t.microbatches}: does not divide train.batch_size={t.batch_size}")
    if experiment.model.position == "learned" and experiment.model.positions < t.sequence_length:
        raise UserError(
            f"train.sequence_length={t.sequence_length}: more than the model's learned positions (model.positions={experiment.model.positions})"
        )
    return dataclasses.replace(experiment, model=experiment.model.resolved())
