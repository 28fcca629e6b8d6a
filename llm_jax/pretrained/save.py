"""The command `python -m llm_jax.pretrained.save`: exports a run as a Hugging Face model folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from llm_jax.core.arguments import argument, part, positional, read_command
from llm_jax.core.command import run_command
from llm_jax.core.errors import UserError
from llm_jax.core.files import check_new_folder, new_folder
from llm_jax.pretrained.arguments import ModelArguments

if TYPE_CHECKING:
    from llm_jax.huggingface.safetensors import Planned
    from llm_jax.huggingface.tensor_map import Piece

SHARD_BYTES = 5_000_000_000
"""The most bytes of one safetensors file, if not given."""


def family_names() -> list[str]:
    """The names of the model families that can be written."""
    from llm_jax.huggingface.family import MODULES  # imports JAX

    return list(MODULES)


@dataclass(frozen=True, kw_only=True)
class SaveCommand:
    """Exports a run as a folder that Hugging Face's libraries load: python -m llm_jax.pretrained.save RUN FOLDER

      python -m llm_jax.pretrained.save runs/quickstart/default exported
      python -m llm_jax.pretrained.save runs/mine/first exported dtype=bfloat16 step=4000

    It writes config.json (in the spellings of transformers 4 and 5), generation_config.json, safetensors, and the tokenizer's files.

    Exit codes: 0 done, 2 a mistake in the command line, or a model that no family can express (one line names it).
    """

    run: Path = positional("RUN")
    """A run folder (or a Hugging Face model folder, to be written anew)."""
    folder: Path = positional("FOLDER")
    """The folder that is made; it must be new or empty."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The dtype that weights are rounded to; the run's parameter dtype, if not given."""
    family: str = argument("", shown="NAME", choices=family_names)
    """The model family that it is written as; the first that can express the model, if not given."""
    shard_size: int = argument(SHARD_BYTES, least=0)
    """The most bytes of a file."""
    model: ModelArguments = part(ModelArguments, without=("dtype",))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(save, arguments)


def save(arguments: list[str]) -> int:
    """Reads the command line and writes the folder. Raises UserError."""
    command = read_command(arguments, SaveCommand)
    if command is None:
        return 0
    from llm_jax.pretrained.model import open_model  # imports JAX, which `run_command` sets up

    check_new_folder(command.folder, "FOLDER")
    opened = open_model(command.run, **command.model.options())
    save_model(opened, command.folder, command.dtype, command.shard_size, command.family)
    written = sorted(path.name for path in command.folder.iterdir())
    print(f"written: {command.folder} ({', '.join(written) if len(written) < 12 else f'{len(written)} files'})")
    return 0


def save_model(
    opened: Any, folder: Path | str, dtype: str | None = None, shard_bytes: int = SHARD_BYTES, family: str = "", log: Callable[[str], None] = print
) -> None:
    """Writes an opened model as a folder of Hugging Face's, whole or not at all.

    dtype: float32, bfloat16, float16; None: that of the parameters. Raises UserError where no family (or not the one asked for) can express
    the model, and for a folder that has something in it.
    """
    from llm_jax.huggingface.export_tokenizer import export_tokenizer
    from llm_jax.huggingface.family import family_for
    from llm_jax.huggingface.folder import CONFIG, GENERATION

    folder = Path(folder)
    check_new_folder(folder, "FOLDER")
    source = source_folder(opened.path)
    tree = json.loads((source / CONFIG).read_text()) if source else {}
    model = opened.config
    if source is None and model.position == "rope":  # without a say here, but others take it for the length that a model was trained for
        model = dataclasses.replace(model, positions=max(model.positions, opened.experiment.train.sequence_length))
    one = family_for(model, family, first=tree.get("model_type", ""))
    dtype = dtype or model.parameter_dtype
    ids = token_ids(opened, tree)
    made = {**one.write_config(model), **ids, "dtype": dtype, "torch_dtype": dtype, "use_cache": True}
    log(f"{opened.path}: {made['architectures'][0]}, {opened.program.parameter_count():,} parameters in {dtype}")
    with new_folder(folder) as part:
        (part / CONFIG).write_text(json.dumps(made, indent=2, sort_keys=True) + "\n")
        if source and (source / GENERATION).is_file():
            shutil.copy(source / GENERATION, part / GENERATION)
        else:
            (part / GENERATION).write_text(json.dumps(ids, indent=2, sort_keys=True) + "\n")
        write_weights(opened, one, made, part, dtype, shard_bytes)
        if opened.tokenizer_if_any is not None:
            export_tokenizer(opened.tokenizer_if_any, part)


def write_weights(opened: Any, one: Any, tree: dict[str, Any], folder: Path, dtype: str, shard_bytes: int) -> None:
    """The safetensors, a part of a tensor at a time."""
    import numpy as np

    from llm_jax.huggingface import safetensors
    from llm_jax.huggingface.tensor_map import lay
    from llm_jax.huggingface.transfer import flat_paths, shapes_of
    from llm_jax.train.state import TrainModel

    if dtype not in safetensors.NAMES:
        raise UserError(f"dtype={dtype}: must be one of {', '.join(safetensors.NAMES)}")
    arrays = flat_paths(opened.parameters)
    table = lay(one.tensors(opened.config, tree), opened.config, shapes_of(opened.program))
    narrow = TrainModel(dataclasses.replace(opened.config, parameter_dtype="bfloat16"), opened.experiment.optimizer, opened.place)
    kept = {path for path, w in flat_paths(narrow.abstract).items() if w.dtype == np.float32}  # so whatever the rest is in: the routers' biases
    planned = [
        safetensors.Planned(name, "float32" if pieces[0].path in kept else dtype, pieces[0].fit.their_shape) for name, pieces in table.tensors.items()
    ]
    planned.sort(key=lambda tensor: natural(tensor.name))
    files = safetensors.shards(planned, shard_bytes)
    names = safetensors.shard_names(len(files))
    for name, tensors in zip(names, files, strict=True):
        with (folder / name).open("wb") as file:
            safetensors.write_header(file, tensors)
            for tensor in tensors:
                write_tensor(file, tensor, arrays, table.tensors[tensor.name])
    if len(files) > 1:
        safetensors.write_index(folder, files, names)


def write_tensor(file: BinaryIO, tensor: Planned, arrays: dict[str, Any], pieces: list[Piece]) -> None:
    """The bytes of one tensor, from the arrays that are in it. Raises UserError for a number that its dtype can't hold."""
    import numpy as np

    from llm_jax.huggingface.safetensors import FLOATS, NAMES
    from llm_jax.huggingface.transfer import PARCEL, fetch

    kind = np.dtype(FLOATS[NAMES[tensor.dtype]])
    for start, end in pieces[0].fit.in_parts(PARCEL // kind.itemsize):
        fits = [piece.fit.part_of(start, end) for piece in pieces]
        theirs = np.empty(fits[0][0].their_shape, kind)
        for piece, (fit, box) in zip(pieces, fits, strict=True):
            try:
                with np.errstate(over="raise"):
                    fit.write(fetch(arrays[piece.path], piece.prefix, box, fit.turn), theirs)
            except FloatingPointError:
                raise UserError(f"dtype={tensor.dtype}: {tensor.name} has numbers that are too large for it; use bfloat16") from None
        theirs.reshape(-1).view(np.uint8).tofile(file)


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by in which numbers are numbers."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]


def token_ids(opened: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """The ids of tokens with a meaning: those that a loaded model came with, or the tokenizer's."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    if any(name in tree for name in names):
        return {name: tree[name] for name in names if name in tree}
    tokenizer = opened.tokenizer_if_any
    if tokenizer is None:
        return dict.fromkeys(names)  # their classes have ids of their own, which may lie outside of the vocabulary
    ends = list(tokenizer.eos_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends if len(ends) > 1 else tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


def source_folder(path: Path) -> Path | None:
    """The folder of Hugging Face's that a model was opened from; None for one that was trained here."""
    from llm_jax.pretrained.weights import loaded_weights, steps_of

    return None if steps_of(path) else loaded_weights(path)


if __name__ == "__main__":
    sys.exit(main())
