"""The one configuration tree: `Experiment`, the files that define one, and `key=value` overrides.

An experiment file is Python with a docstring (its first line is its purpose) and a function `experiment()` that
returns an `Experiment`. OmegaConf checks types and merges; whatever doesn't fit is a `UserError` of one line.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from llm_jax.core.errors import UserError, closest, nearest, one_of
from llm_jax.data import DataConfig, TokenizerConfig, vocabulary_size
from llm_jax.layout.layout import Layout
from llm_jax.layout.presets import preset
from llm_jax.model import parametrization
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.objective.protocol import Objective
from llm_jax.processes.config import ClusterConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig, check_parametrization

Config = TypeVar("Config")


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
    objective: Objective = field(default_factory=NextToken)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


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
    try:
        doc = ast.get_docstring(ast.parse(path.read_text()))
    except SyntaxError as error:
        return f"(can't be read: line {error.lineno}: {error.msg})"
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
        if (Path(name) / "config.yaml").is_file():
            raise UserError(f"experiment={name}: is a run folder; write experiment={Path(name) / 'config.yaml'} to run its configuration")
        raise UserError(f"experiment={name}: no such experiment; {nearest(name, known)} (--list shows all)")
    return known[name]


def load_experiment(name: str) -> Experiment:
    """The experiment that a file describes: a Python file under experiments/, one anywhere, or a run's config.yaml."""
    return as_experiment(load_file(name), name)


def load_file(name: str) -> Any:
    """What the file of that name describes: an Experiment, or what else its experiment() returns."""
    path = find_experiment(name)
    return read_yaml(path) if path.suffix == ".yaml" else run_file(path, f"experiment={name}")


def as_experiment(made: Any, name: str) -> Experiment:
    """What a file describes, if that is one experiment, under its name."""
    if not isinstance(made, Experiment):
        raise UserError(f"experiment={name}: experiment() in {find_experiment(name)} returns {type(made).__name__}, not an Experiment")
    return named(made, name)


def named(experiment: Experiment, name: str) -> Experiment:
    """The experiment under its own name, or under that of its file."""
    return experiment if experiment.name else dataclasses.replace(experiment, name=Path(name).stem if name.endswith(".py") else name)


def run_file(path: Path, said: str) -> Any:
    """What experiment() of a Python file returns. Whatever the file raises is a UserError with the file's line."""
    spec = importlib.util.spec_from_file_location(f"llm_jax_experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "experiment", None)):
            raise UserError(f"{said}: {path} has no function experiment() that returns an Experiment")
        return module.experiment()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{said}: {error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise UserError(f"{said}: {path}:{lines[-1] if lines else '?'}: {type(error).__name__}: {first_line(error)}") from error


def read_yaml(path: Path) -> Experiment:
    """The experiment of a config.yaml. Raises UserError, naming file and key, where it isn't one."""
    try:
        tree = OmegaConf.merge(defaults(), OmegaConf.load(path))
        made = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key or ''}: {first_line(error)}") from error
    except Exception as error:  # YAML's own errors
        raise UserError(f"{path}: not a configuration ({first_line(error)})") from error
    assert isinstance(made, Experiment)
    return made


def experiment_name(pairs: list[tuple[str, str]]) -> str:
    """What `experiment=` of a command line says."""
    names = [value for key, value in pairs if key == "experiment"]
    if not names:
        raise UserError(f"experiment=NAME is missing; one of: {', '.join(list_experiments())}")
    if len(names) > 1:
        raise UserError("experiment= is given twice")
    return names[0]


def override(experiment: Experiment, pairs: Sequence[tuple[str, Any]]) -> Experiment:
    """The experiment with `key=value` overrides applied; `layout=NAME` puts a preset in first.

    A value is text, as on a command line, or the value itself.
    Raises UserError for keys that there are not (with the nearest one) and values of another type.
    """
    for key, value in pairs:
        if key == "layout" and value != experiment.layout.name:
            experiment = dataclasses.replace(experiment, layout=preset(value))
    made = with_values(experiment, [pair for pair in pairs if pair[0] != "layout"])
    if made.data.mixture and any(key == "data.source" for key, _ in pairs):
        raise UserError(f"data.source={made.data.source}: the experiment has a data.mixture, which replaces it; add data.mixture={{}} to use it")
    return made


def with_values(config: Config, pairs: Sequence[tuple[str, Any]]) -> Config:
    """A tree of dataclasses with `key=value` overrides applied, each checked against its type."""
    found = [find_key(config, key, value) for key, value in pairs]
    if pairs and all(
        is_plain(value, kind) for (_, value), (_, kind) in zip(pairs, found, strict=True)
    ):  # a grid's, hundreds of them: OmegaConf is slow
        for (_, value), (path, kind) in zip(pairs, found, strict=True):
            config = replaced(config, path, float(value) if kind is float else value)
        return config
    tree = structured(config)
    for (key, value), (path, kind) in zip(pairs, found, strict=True):
        try:
            tree = with_value(tree, path, parsed(value, kind))
        except Exception as error:  # OmegaConf's for another type, YAML's for values like "[1, 2"
            raise UserError(f"{key}={value}: {expected(kind, str(value))}") from error
    try:
        made = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:  # what it only looks at now: "${...}" and "???"
        key = error.full_key or ""
        raise UserError(f"{key}={dict(pairs).get(key, '')}: {first_line(error)}") from error
    assert isinstance(made, type(config))
    return made


def is_plain(value: Any, kind: Any) -> bool:
    """Whether a value that is no text has a key's type already."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if get_origin(options[0]) is Literal:
        return value in get_args(options[0])
    return (type(value) in options and type(value) in (bool, int, float)) or (kind is float and type(value) is int)


def replaced(config: Any, path: list[str], value: Any) -> Any:
    """A tree of dataclasses, or a dict, with one value set."""
    if not path:
        return value
    if isinstance(config, dict):
        return {**config, path[0]: value}
    return dataclasses.replace(config, **{path[0]: replaced(getattr(config, path[0]), path[1:], value)})


def parsed(value: Any, kind: Any) -> Any:
    """A value as OmegaConf takes it, from text or from Python."""
    if not isinstance(value, str):
        return OmegaConf.create(list(value) if isinstance(value, tuple) else value) if isinstance(value, (dict, list, tuple)) else value
    # Text is taken as it is: "*.txt" means something else in YAML, and "1e5" is another text when it was a number.
    return value if kind is str else OmegaConf.from_dotlist([f"value={value}"])["value"]


@functools.cache
def defaults() -> Any:
    """OmegaConf's tree of an experiment that says nothing. To be merged with, not changed: a grid reads hundreds, and OmegaConf is slow."""
    return structured(Experiment)


def structured(config: Any) -> Any:
    """OmegaConf's tree of an experiment: its types are checked here, since Python doesn't when a file makes one."""
    try:
        return OmegaConf.structured(config)
    except OmegaConfBaseException as error:
        raise UserError(f"experiment {getattr(config, 'name', '')}: {error.full_key or ''}: {first_line(error)}") from error


def with_value(tree: Any, path: list[str], value: Any) -> Any:
    """OmegaConf's tree with one value set, its type checked. A whole dict is replaced, not merged into."""
    at = tree
    for part in path[:-1]:
        at = at[part]
    if isinstance(value, DictConfig) and isinstance(at[path[-1]], DictConfig):
        with read_write(at):
            at[path[-1]] = {}
    nested = value
    for part in reversed(path):
        nested = {part: nested}
    return OmegaConf.merge(tree, nested)


def find_key(experiment: Any, key: str, value: Any) -> tuple[list[str], Any]:
    """The path to a value of the tree, or to an entry of one of its dicts, and its type; UserError if there is none.

    What follows a dict's name is one entry, dots and all: data.mixture.text.jsonl=1 is of the source text.jsonl.
    """
    at: Any = experiment
    parts = key.split(".")
    for depth, part in enumerate(parts):
        names = [f.name for f in dataclasses.fields(at)]
        if part not in names:
            close = closest(key, all_keys(experiment))
            raise UserError(f"{key}={value}: there is no key {key!r}; " + (f"did you mean '{close}'?" if close else "--show prints all keys"))
        kind = get_type_hints(type(at))[part]
        at = getattr(at, part)
        if get_origin(kind) is dict and depth < len(parts) - 1:
            return [*parts[: depth + 1], ".".join(parts[depth + 1 :])], get_args(kind)[1]
        if not dataclasses.is_dataclass(at):
            if depth < len(parts) - 1:
                raise UserError(f"{key}={value}: {'.'.join(parts[: depth + 1])} is a single value, it has no {parts[depth + 1]!r}")
            return parts, kind
    raise UserError(f"{key}={value}: is a group; set one of its keys: {', '.join(f.name for f in dataclasses.fields(at))}")


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def expected(kind: Any, value: str) -> str:
    """The end of an error line about a value of the wrong type."""
    options = [o for o in get_args(kind) if o is not type(None)] if get_origin(kind) in (Union, UnionType) else [kind]
    if get_origin(options[0]) is Literal:
        return one_of(value, [str(choice) for choice in get_args(options[0])])
    if get_origin(options[0]) is dict:
        return f"must be a table of names and values, {{name: {KINDS[get_args(options[0])[1]]}, ...}}"
    if get_origin(options[0]) is tuple:
        return "must be a list, [first, second]"
    return f"must be {KINDS[options[0]]}" + (", or null for none" if len(options) < len(get_args(kind)) else "")


def all_keys(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a tree of dataclasses."""
    keys = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        keys += all_keys(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else [prefix + f.name]
    return keys


def to_yaml(experiment: Experiment) -> str:
    """The whole tree as YAML, enough to run it again."""
    # Its types have been looked at, which would take three times as long as this.
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(experiment)))


def first_line(error: Exception) -> str:
    """The first line of a library's error, which says what is wrong."""
    return next(iter(str(error).splitlines()), "")


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with defaults that follow from others filled in, and checked as far as it can be without devices.

    The vocabulary stays open (None) until the tokenizer is there.
    """
    if not experiment.run_dir:
        experiment = dataclasses.replace(experiment, run_dir=f"runs/{experiment.name}/default")
    check_parts(e := experiment)
    check_parametrization(e.optimizer, e.model)
    if e.model.position == "learned" and e.model.positions < e.train.sequence_length:
        raise UserError(
            f"train.sequence_length={e.train.sequence_length}: more than the model's learned positions (model.positions={e.model.positions})"
        )
    model = experiment.model.resolved()
    parametrization.check(model)
    return dataclasses.replace(experiment, model=model)


def check_parts(e: Experiment) -> None:
    """Raises UserError for a value out of range; the model checks its own when it is resolved."""
    for part in e.layout, e.data, e.tokenizer, e.objective, e.optimizer, e.train, e.evaluate, e.checkpoint, e.sample, e.cluster:
        part.check()


def with_vocabulary(experiment: Experiment) -> Experiment:
    """The experiment, its model resolved, with the vocabulary that its tokenizer will have, which is known without the corpus."""
    vocabulary = vocabulary_size(experiment.tokenizer) if experiment.model.vocab is None else None
    return dataclasses.replace(experiment, model=experiment.model.resolved(vocabulary))


def read_experiment(run_dir: Path) -> Experiment:
    """The experiment of a run folder."""
    from llm_jax.experiment import read_yaml

    path = run_dir / "config.yaml"
    if not path.exists():
        raise UserError(f"{run_dir}: is no run folder (it has no config.yaml)")
    return read_yaml(path)
