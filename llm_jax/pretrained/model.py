"""A trained model, opened to be used: its weights on the devices, its tokenizer, and the experiment that it is of.

What generates, evaluates or looks into a model begins with `open_model`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from llm_jax.core.errors import UserError, one_of
from llm_jax.data import Tokenizer, load_tokenizer
from llm_jax.data.tokenizer import JSON_NAME, MODEL_NAME
from llm_jax.experiment import Experiment, read_experiment
from llm_jax.layout.check import check_model
from llm_jax.layout.layout import Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.model.transformer import Transformer
from llm_jax.pretrained.weights import read_weights
from llm_jax.train.config import TrainConfig
from llm_jax.train.state import TrainModel

Dtype = Literal["float32", "bfloat16"]

OUTPUTS_NAN = "the model outputs NaN: training diverged or the weights are corrupt; try an earlier checkpoint with step=N"
"""Follows the name of a model or of a key in an error."""


def log_to_stderr(line: str) -> None:
    """What is said beside a command's own output."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class PretrainedModel:
    """A model that is ready to be used. Not for training: there are no moments."""

    path: Path
    experiment: Experiment
    """As it was trained; with the layout and the dtypes that it is opened with, and its vocabulary."""
    program: TrainModel
    parameters: Any
    """Nested dicts of arrays, placed as the layout stores them, in `experiment.model.parameter_dtype`."""
    tokenizer_if_any: Tokenizer | None
    step: int
    """Steps that the weights were trained for; 0 for a loaded model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises UserError for a folder that came without."""
        if self.tokenizer_if_any is None:
            raise UserError(self.missing_tokenizer)
        return self.tokenizer_if_any

    @property
    def missing_tokenizer(self) -> str:
        """Said where one is needed, and there is none."""
        return f"{self.path}: has no tokenizer; put its {JSON_NAME} (or SentencePiece's {MODEL_NAME}) there"

    @property
    def place(self) -> MeshPlacement:
        return self.program.place

    @property
    def config(self) -> ModelConfig:
        return self.program.config

    @property
    def model(self) -> Transformer:
        """The model with its weights. Call it inside `jax.jit` and `jax.set_mesh(opened.place.mesh)`."""
        return self.program.model(self.parameters)


def open_model(
    path: Path | str,
    *,
    layout: Layout | None = None,
    mesh: dict[str, int] | None = None,
    dtype: str | None = None,
    step: int | None = None,
    leave_out: Sequence[str] = (),
    tokenizer: bool = True,
    log: Callable[[str], None] = log_to_stderr,
) -> PretrainedModel:
    """The model in a run folder, or in a folder of Hugging Face's.

    layout, mesh: where its weights live here; None: on one device. dtype: of the weights and of what is computed ("float32", "bfloat16");
    None: as it was trained, or as its files are. step: of the checkpoint; None: the newest. leave_out: names (* for anything)
    of a folder's tensors to do without. tokenizer: whether it is read too. `log` is called with what differs from what was trained. Raises UserError
    where there is no model, or it can't be opened like this.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder, or one with a config.json and safetensors")
    experiment = experiment_of(path)
    experiment = dataclasses.replace(experiment, run_dir=str(path), layout=layout or preset("single"), mesh=mesh or {})
    experiment = dataclasses.replace(experiment, model=for_use(experiment.model.resolved(), dtype))
    place = MeshPlacement(experiment.layout, make_mesh(experiment.layout, experiment.mesh))
    experiment = with_kernel_for(experiment, place.platform(), log)
    read = tokenizer_of(path, log) if tokenizer or experiment.model.vocab is None else None
    if experiment.model.vocab is None:
        if read is None:
            raise UserError(f"{path}: has no tokenizer, and its configuration no model.vocab")
        experiment = dataclasses.replace(experiment, model=experiment.model.resolved(read.vocab_size))
    check_model(experiment.model, place)
    program = TrainModel(experiment.model, experiment.optimizer, place)
    parameters, at = read_weights(path, program, step, log, leave_out)
    return PretrainedModel(path, experiment, program, parameters, read, at)


def experiment_of(path: Path) -> Experiment:
    """The experiment of a run folder; of a folder of Hugging Face's one with its model, its vocabulary, and defaults for the rest."""
    from llm_jax.huggingface.folder import is_folder, open_folder

    if is_folder(path):
        model, train = open_folder(path).model, TrainConfig()
        if model.position == "learned":
            train = dataclasses.replace(train, sequence_length=min(train.sequence_length, model.positions))
        return Experiment(name=path.resolve().name, model=model, train=train)
    return read_experiment(path)


def tokenizer_of(path: Path, log: Callable[[str], None]) -> Tokenizer | None:
    """The tokenizer of a run folder or of one of Hugging Face's; None where there is none, or in files that aren't read, which is said."""
    folder = tokenizer_folder(path)
    if (folder / JSON_NAME).is_file() or (folder / MODEL_NAME).is_file():
        return load_tokenizer(folder, "tokenizer")
    if others := [name for name in UNREAD if (folder / name).is_file()]:
        log(f"{folder}: its tokenizer is in {', '.join(others)}, which isn't read; put a {JSON_NAME} there (transformers' AutoTokenizer writes one)")
    return None


UNREAD = ("vocab.json", "merges.txt", "vocab.txt", "tekken.json", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken")
"""What tokenizers may be in besides."""


def tokenizer_folder(path: Path) -> Path:
    """Where the files of the tokenizer are, in a run folder or in one of Hugging Face's."""
    return path / "tokenizer" if (path / "config.yaml").is_file() else path


def for_use(model: ModelConfig, dtype: str | None) -> ModelConfig:
    """The configuration for running a model and not training it, in another dtype if one is given."""
    model = dataclasses.replace(model, remat="none", offload="")
    if dtype is None:
        return model
    if dtype not in get_args(Dtype):
        raise UserError(f"dtype={dtype}: {one_of(dtype, get_args(Dtype))}")
    kind = cast(Dtype, dtype)
    return dataclasses.replace(model, parameter_dtype=kind, compute_dtype=kind, gradient_dtype="float32")


def with_kernel_for(experiment: Experiment, platform: str, log: Callable[[str], None]) -> Experiment:
    """cuDNN's attention needs an NVIDIA GPU, and a bound on the documents of a row, which belongs to training."""
    if experiment.model.attention != "cudnn":
        return experiment
    log(f"model.attention=cudnn: is how this model was trained (devices here: {platform}); it is opened with model.attention=xla")
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, attention="xla"))
