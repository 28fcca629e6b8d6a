"""A trained model, ready for use: its weights on the devices, its tokenizer, and its experiment.

Commands that generate, evaluate or inspect begin with `open_model`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from llm_jax.core.errors import UserError, one_of
from llm_jax.core.log import log_to_stderr
from llm_jax.data import Tokenizer, load_tokenizer
from llm_jax.data.tokenizer import JSON_NAME, MODEL_NAME, remark_line
from llm_jax.experiment import Experiment
from llm_jax.huggingface.folder import Folder
from llm_jax.layout.check import check_model
from llm_jax.layout.compilation_cache import use_compilation_cache
from llm_jax.layout.layout import Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model.adapters import NO_ADAPTER, AdapterConfig
from llm_jax.model.config import ModelConfig
from llm_jax.model.transformer import Transformer
from llm_jax.pretrained.adapter_apart import adapter_config
from llm_jax.pretrained.source import ModelSource, open_source, tokenizer_folder
from llm_jax.pretrained.weights import read_weights
from llm_jax.train.state import TrainModel

Dtype = Literal["float32", "bfloat16"]

OUTPUTS_NAN = (
    "the model outputs NaN: training diverged or the weights are corrupt; try an earlier checkpoint with "
    "step=N"
)
"""Follows the name of a model or of a key in an error."""


@dataclass(frozen=True)
class PretrainedModel:
    """A model that is ready for use, but not for training: it has no optimizer state."""

    path: Path
    experiment: Experiment
    """The experiment that it was trained in, with the layout and dtypes that it is opened with, and its
    vocabulary.
    """
    program: TrainModel
    parameters: Any
    """Nested dicts of arrays, placed as the layout stores them, in `experiment.model.parameter_dtype`."""
    tokenizer_if_any: Tokenizer | None
    step: int
    """The number of steps that the weights were trained for; 0 for a loaded model."""
    folder: Folder | None = None
    """The Hugging Face folder or GGUF file that the weights were read from; None for a model that was trained
    here."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises UserError if its folder has none."""
        if self.tokenizer_if_any is None:
            raise UserError(self.missing_tokenizer)
        return self.tokenizer_if_any

    @property
    def missing_tokenizer(self) -> str:
        """The error for a command that needs a tokenizer, if there is none."""
        return f"{self.path}: has no tokenizer; put its {JSON_NAME} (or SentencePiece's {MODEL_NAME}) there"

    @property
    def place(self) -> MeshPlacement:
        """The layout and mesh on which the model's arrays are placed."""
        return self.program.place

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model, with all defaults resolved."""
        return self.program.config

    @property
    def model(self) -> Transformer:
        """The model with its weights. Call it inside `jax.jit` and `jax.set_mesh(place.mesh)`."""
        return self.program.model(self.parameters)


def open_model(
    source: ModelSource | Path | str,
    *,
    layout: Layout | None = None,
    mesh: dict[str, int] | None = None,
    dtype: str | None = None,
    step: int | None = None,
    leave_out: Sequence[str] = (),
    adapter: Path | str | None = None,
    apart: bool = False,
    tokenizer: bool = True,
    to_convert: bool = False,
    outputs: str = "logits",
    log: Callable[[str], None] = log_to_stderr,
) -> PretrainedModel:
    """The model of a run folder, of a Hugging Face folder, of a GGUF file, or of a PEFT folder with its base.

    `layout` and `mesh` place its weights; None: on one device. `dtype` is that of weights and computation
    ("float32", "bfloat16"); None: as it was trained, or as its files are, but float32 on a CPU, which
    emulates bfloat16 (`dtype_for`). `step` is that of the checkpoint; None: the newest. `leave_out`: names of
    tensors to exclude, with * for any characters, and `adapter`: a PEFT folder to merge into the weights;
    neither is for a `source` that is open already. `apart`: an adapter stays beside the weights instead, a
    run's too. `tokenizer`: whether to read it. `to_convert`: nothing is computed with the model, so it keeps
    its dtype on a CPU too. `outputs`: which its head must have. `log` is called for each difference from the
    model that was trained. Raises UserError if there is no model, or if it can't be opened like this.

    Programs that are compiled from then on are kept on disk (`use_compilation_cache`).
    """
    if not isinstance(source, ModelSource):
        source = open_source(source, leave_out, adapter or None)
    elif leave_out or adapter:
        key = "leave_out" if leave_out else "adapter"
        raise TypeError(f"{key} is for a folder that isn't open yet: give it to open_source")
    path, experiment = source.path, source.experiment
    check_outputs(experiment.model.outputs, str(path), outputs)
    experiment = dataclasses.replace(
        experiment, run_dir=str(path), layout=layout or preset("single"), mesh=mesh or {}
    )
    use_compilation_cache()
    place = MeshPlacement(experiment.layout, make_mesh(experiment.layout, experiment.mesh))
    if dtype is None and not to_convert:
        dtype = dtype_for(experiment.model, place.platform(), log)
    experiment = dataclasses.replace(experiment, model=config_for_use(experiment.model.resolved(), dtype))
    experiment = without_cudnn(experiment, place.platform(), log)
    read = read_tokenizer(path, log) if tokenizer or experiment.model.vocab is None else None
    if experiment.model.vocab is None:
        if read is None:
            raise UserError(
                f"{path}: has neither a tokenizer nor model.vocab in its configuration; put the "
                f"{JSON_NAME} there"
            )
        experiment = dataclasses.replace(experiment, model=experiment.model.resolved(read.vocab_size))
    check_model(experiment.model, place)
    program = TrainModel(
        experiment.model, experiment.optimizer, place, adapter=adapter_of(source) if apart else NO_ADAPTER
    )
    parameters, at = read_weights(source, program, step, log)
    return PretrainedModel(path, experiment, program, parameters, read, at, source.folder)


def check_outputs(found: str, of: str, wanted: str) -> None:
    """Raises UserError, naming `of` first, for a reward model in place of a language model, or the
    reverse."""
    if found == wanted:
        return
    if found == "reward":
        raise UserError(
            f"{of}: is a reward model, which scores texts and writes none. Use python -m llm_jax.evaluate "
            "RUN rewards=FILE, or a language model"
        )
    raise UserError(f"{of}: is a language model, without a head for rewards. Use a run of experiment=reward")


def adapter_of(source: ModelSource) -> AdapterConfig:
    """The adapter beside the weights of a model: a run's, or that of a PEFT folder. Raises UserError where
    there is none, or one that can't be kept apart."""
    if source.adapter is not None and source.base is not None:
        return adapter_config(source.adapter, source.base)
    if not source.experiment.adapter.rank:
        raise UserError(f"adapter.decode=apart: {source.path} has no adapter. Leave this key out")
    return source.experiment.adapter


def check_text_ids(ids: Iterable[int], vocab: int, key: str, path: object) -> None:
    """Raises UserError, which names `key` (prompt=TEXT) first, where a text has token ids that the model at
    `path` has no row for.
    """
    if wrong := [i for i in ids if i >= vocab]:
        raise UserError(
            f"{key}: the tokenizer makes the token id {wrong[0]} of it, and the model has the ids below "
            f"{vocab}: the tokenizer in {path} is another model's. Put the model's own there"
        )


UNSUPPORTED_TOKENIZERS = (
    "vocab.json", "merges.txt", "vocab.txt", "tekken.json", "spiece.model", "sentencepiece.bpe.model",
    "qwen.tiktoken",
)  # fmt: skip
"""Files of tokenizers that are not read."""


def read_tokenizer(path: Path, log: Callable[[str], None]) -> Tokenizer | None:
    """The tokenizer of a run folder, a Hugging Face folder or a GGUF file; None if it has none.

    `log` is called if the folder has only tokenizer files that are not supported, and for a tokenizer that
    changes text.
    """
    folder = tokenizer_folder(path)
    if (folder / JSON_NAME).is_file() or (folder / MODEL_NAME).is_file():
        tokenizer = load_tokenizer(folder, "tokenizer")
        if tokenizer.remarks:
            log(
                f"{folder}: its tokenizer has {tokenizer.vocab_size:,} tokens{remark_line(tokenizer.remarks)}"
            )
        return tokenizer
    if found := ", ".join(name for name in UNSUPPORTED_TOKENIZERS if (folder / name).is_file()):
        log(
            f"{folder}: the tokenizer in {found} is not read; put a {JSON_NAME} there (transformers' "
            "AutoTokenizer writes one)"
        )
    return None


def dtype_for(
    model: ModelConfig, platform: str, log: Callable[[str], None], key: str = "dtype"
) -> str | None:
    """The dtype of a model for which none was chosen: float32 on a CPU, which emulates bfloat16; None: its
    own. key: what a user chooses it by, for the log."""
    if platform != "cpu" or model.compute_dtype == "float32":
        return None
    log(
        f"{key}=float32: the model's is {model.compute_dtype}, which a CPU emulates, several times slower; "
        f"{key}={model.compute_dtype} keeps it"
    )
    return "float32"


def config_for_use(model: ModelConfig, dtype: str | None) -> ModelConfig:
    """The configuration for running a model rather than training it, in another dtype if one is given."""
    model = dataclasses.replace(model, remat="none", offload="")
    if dtype is None:
        return model
    if dtype not in get_args(Dtype):
        raise UserError(f"dtype={dtype}: {one_of(dtype, get_args(Dtype))}")
    name = cast(Dtype, dtype)
    return dataclasses.replace(model, parameter_dtype=name, compute_dtype=name, gradient_dtype="float32")


def without_cudnn(experiment: Experiment, platform: str, log: Callable[[str], None]) -> Experiment:
    """The experiment with XLA's attention instead of cuDNN's, which needs a bound on the documents of a row,
    as training has.
    """
    if experiment.model.attention != "cudnn":
        return experiment
    log(
        "model.attention=cudnn: the model was trained with it; it is opened with model.attention=xla "
        f"(devices: {platform})"
    )
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, attention="xla"))
