"""A trained model, opened to be used: its weights on the devices, its tokenizer, and the experiment that it is of.

What generates, evaluates or looks into a model begins with `open_model`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from llm_jax.data import Tokenizer, load_tokenizer
from llm_jax.errors import UserError, one_of
from llm_jax.experiment import Experiment
from llm_jax.layout.layout import Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.model.transformer import Transformer
from llm_jax.train.run_folder import read_experiment
from llm_jax.train.state import Program

Dtype = Literal["float32", "bfloat16"]


def to_stderr(line: str) -> None:
    """What is said beside a command's own output."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Opened:
    """A model that is ready to be used. Not for training: there are no moments."""

    path: Path
    experiment: Experiment
    """As it was trained; with the layout and the dtypes that it is opened with, and its vocabulary."""
    program: Program
    parameters: Any
    """Nested dicts of arrays, placed as the layout stores them, in `experiment.model.parameter_dtype`."""
    tokenizer: Tokenizer
    step: int
    """Steps that the weights were trained for."""

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
    say: Callable[[str], None] = to_stderr,
) -> Opened:
    """The model in a run folder.

    layout, mesh: where its weights live here; None: on one device. dtype: of the weights and of what is computed ("float32", "bfloat16");
    None: as it was trained. step: of the checkpoint; None: the newest. `say` is told what differs from what was trained.
    Raises UserError where there is no model, or it can't be opened like this.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder")
    experiment = read_experiment(path)
    experiment = dataclasses.replace(experiment, run_dir=str(path), layout=layout or preset("single"), mesh=mesh or {})
    experiment = dataclasses.replace(experiment, model=for_use(experiment.model.resolved(), dtype))
    place = MeshPlacement(experiment.layout, make_mesh(experiment.layout, experiment.mesh))
    experiment = with_kernel_for(experiment, place.platform(), say)
    from llm_jax.train.run import check_layout
    from llm_jax.train.weights import read_weights

    tokenizer = load_tokenizer(path / "tokenizer")
    experiment = dataclasses.replace(experiment, model=experiment.model.resolved(tokenizer.vocab_size))
    check_layout(experiment, place)
    program = Program(experiment.model, experiment.optimizer, place)
    parameters, at = read_weights(path, program, step, say)
    return Opened(path, experiment, program, parameters, tokenizer, at)


def for_use(model: ModelConfig, dtype: str | None) -> ModelConfig:
    """The configuration for running a model and not training it, in another dtype if one is given."""
    model = dataclasses.replace(model, remat="none", offload="")
    if dtype is None:
        return model
    if dtype not in get_args(Dtype):
        raise UserError(f"dtype={dtype}: {one_of(dtype, get_args(Dtype))}")
    kind = cast(Dtype, dtype)
    return dataclasses.replace(model, parameter_dtype=kind, compute_dtype=kind, gradient_dtype="float32")


def with_kernel_for(experiment: Experiment, platform: str, say: Callable[[str], None]) -> Experiment:
    """cuDNN's attention needs an NVIDIA GPU, and a bound on the documents of a row, which belongs to training."""
    if experiment.model.attention != "cudnn":
        return experiment
    say(f"model.attention=cudnn: is how this model was trained (devices here: {platform}); it is opened with model.attention=xla")
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, attention="xla"))
