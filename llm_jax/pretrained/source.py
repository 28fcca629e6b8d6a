"""A folder or file with a trained model, read once: its experiment, checkpoints, and headers of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core import checksums
from llm_jax.core.errors import UserError
from llm_jax.core.files import user_path
from llm_jax.data.tokenizer import JSON_NAME
from llm_jax.experiment import Experiment, read_experiment
from llm_jax.huggingface.folder import CONFIG, Folder, is_folder, open_folder
from llm_jax.huggingface.gguf.files import tokenizer_folder_of
from llm_jax.huggingface.gguf.header import is_gguf
from llm_jax.huggingface.peft import is_peft_folder, read_peft_config, unties
from llm_jax.train.config import TrainConfig


@dataclass(frozen=True)
class ModelSource:
    """A run folder, a Hugging Face model folder or a GGUF file. Its weights have not been read."""

    path: Path
    experiment: Experiment
    """The experiment of a run; for a Hugging Face folder or a GGUF file its model, with defaults for
    everything else."""
    steps: tuple[int, ...]
    """The steps of a run's checkpoints, in order."""
    folder: Folder | None
    """The open Hugging Face folder or GGUF file that holds the weights; None for a run with checkpoints, or
    without any weights.
    """
    base: ModelSource | None = None
    """Of a model that is a base with an adapter: the base; its weights are `folder` and `steps`."""
    adapter: Path | None = None
    """The PEFT folder of the adapter that changes `base`."""


def folders_below(path: Path) -> list[Path]:
    """The folders of models and runs in a folder: in a grid's, or in that of a model in the Hub's cache."""
    found = {file.parent for name in ("config.json", "config.yaml") for file in path.glob(f"*/{name}")}
    return sorted({*found, *(file.parent for file in path.glob("snapshots/*/config.json"))})


def open_source(
    path: Path | str, leave_out: Sequence[str] = (), adapter: Path | str | None = None
) -> ModelSource:
    """Reads the configuration of a folder with a trained model, and the headers of its safetensors files if
    it has any; or both from the header of a GGUF file.

    `leave_out`: names of tensors to exclude, with * for any characters. `adapter`: a PEFT folder, whose
    adapter changes the model. A PEFT folder as `path` is its base with the adapter. Raises UserError if there
    is no model in the folder.
    """
    path = user_path(path)
    if adapter is not None:
        return with_adapter(open_source(path, leave_out), user_path(adapter))
    if not path.is_dir() and not is_gguf(path):
        problem = "is a file, but no GGUF file" if path.is_file() else "no such folder"
        raise UserError(
            f"{path}: {problem}; give a run folder, one with a config.json and safetensors, or a .gguf file"
        )
    if is_folder(path) or is_gguf(path):
        folder = open_folder(path, leave_out)
        return ModelSource(path, folder_experiment(folder), (), folder)
    if is_peft_folder(path):
        base = open_source(base_folder(path), leave_out)
        return dataclasses.replace(with_adapter(base, path), path=path)
    if not (path / "config.yaml").is_file() and (below := folders_below(path)):
        more = f" and {len(below) - 3:,} more" if len(below) > 3 else ""
        raise UserError(
            f"{path}: is no model's folder; give one in it: {', '.join(map(str, below[:3]))}{more}"
        )
    experiment, steps = read_experiment(path), checkpoint_steps(path)
    if steps and leave_out:
        raise UserError(
            f"leave_out={','.join(leave_out)}: {path} is a run with checkpoints, which are read whole. Leave "
            "this key out: it is for safetensors files"
        )
    loaded = None if steps else weights_folder(path)
    return ModelSource(
        path, experiment, tuple(steps), None if loaded is None else _open_checked(loaded, leave_out)
    )


def base_folder(adapter: Path) -> Path:
    """The folder of the model that an adapter changes, by the `base_model_name_or_path` in its PEFT folder:
    from the working directory or from that folder.

    Raises UserError where there is none.
    """
    name = read_peft_config(adapter).get("base_model_name_or_path")
    if isinstance(name, str) and name:
        for folder in (user_path(name), adapter / name):
            if (folder.is_dir() and not is_peft_folder(folder)) or is_gguf(folder):
                return folder
    problem = (
        f"and its base {name} is no folder here" if name else "and doesn't name the model that it changes"
    )
    raise UserError(
        f"{adapter}: is an adapter (PEFT), {problem}. Give that model's folder with adapter={adapter}, or "
        "save the merged model (model.merge_and_unload())"
    )


def with_adapter(base: ModelSource, adapter: Path) -> ModelSource:
    """A model that is a base with the adapter of a PEFT folder. Where that changes either the embedding or
    the head, they are two arrays."""
    if base.adapter is not None:
        raise UserError(f"adapter={adapter}: {base.path} has one already ({base.adapter}). Give its base")
    read_peft_config(adapter)
    model = base.experiment.model
    if model.tied_embeddings and unties(adapter, model, base.folder):
        model = dataclasses.replace(model, tied_embeddings=False)
    experiment = dataclasses.replace(base.experiment, model=model)
    return dataclasses.replace(base, experiment=experiment, base=base, adapter=adapter)


def _open_checked(path: Path, leave_out: Sequence[str]) -> Folder:
    """`open_folder`; if it fails because files differ from their SHA256SUMS, that is the error."""
    try:
        return open_folder(path, leave_out)
    except UserError:
        check_sums(path)
        raise


def check_sums(path: Path) -> None:
    """Raises UserError if a folder has SHA256SUMS and a file of it has changed. Reads all of its files."""
    if (path / checksums.NAME).is_file():
        try:
            checksums.check(path)
        except checksums.Damaged as error:
            raise UserError(f"{path}: is damaged ({error}); copy or load it again") from error


def folder_experiment(folder: Folder) -> Experiment:
    """An experiment with the model of a Hugging Face folder or GGUF file, else with defaults."""
    model, train, path = folder.model, TrainConfig(), folder.path.resolve()
    if model.position == "learned":
        train = dataclasses.replace(train, sequence_length=min(train.sequence_length, model.positions))
    return Experiment(name=path.stem if is_gguf(path) else path.name, model=model, train=train)


def checkpoint_steps(run_dir: Path) -> list[int]:
    """The steps of a run's complete checkpoints, in order."""
    return sorted(int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdecimal())


def weights_folder(path: Path) -> Path | None:
    """The Hugging Face folder with the weights of a loaded model: `weights` in a run folder, or the folder
    itself; a GGUF file itself; None for none.
    """
    if is_gguf(path):
        return path
    return path / "weights" if (path / "weights" / CONFIG).is_file() else path if is_folder(path) else None


def tokenizer_folder(path: Path) -> Path:
    """The folder with the files of the tokenizer, for a run folder, a Hugging Face folder, or a PEFT folder:
    its own, or its base's if it has none. Those of a GGUF file are made, and kept in the cache.
    """
    if is_gguf(path):
        return tokenizer_folder_of(path)
    if is_peft_folder(path) and not (path / JSON_NAME).is_file():
        return tokenizer_folder(base_folder(path))
    return path / "tokenizer" if (path / "config.yaml").is_file() else path
