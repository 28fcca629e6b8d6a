"""The command `python -m llm_jax.pretrained.save`: exports a run as a Hugging Face model folder, or its
adapter as a PEFT folder.
"""

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
from llm_jax.core.files import check_new_folder, inside, new_folder
from llm_jax.pretrained.arguments import ModelArguments

if TYPE_CHECKING:
    from llm_jax.huggingface.family import Family
    from llm_jax.huggingface.safetensors import PlannedTensor
    from llm_jax.huggingface.tensor_map import ArraySlice
    from llm_jax.pretrained.model import PretrainedModel

SHARD_BYTES = 5_000_000_000
"""The default limit on the bytes of one safetensors file."""


def family_names() -> tuple[str, ...]:
    """The names of the model families, in the order in which they are tried."""
    from llm_jax.huggingface import family  # imports JAX

    return family.family_names()


@dataclass(frozen=True, kw_only=True)
class SaveCommand:
    """Exports a run as a folder that Hugging Face's libraries load: python -m llm_jax.pretrained.save RUN
    FOLDER

      python -m llm_jax.pretrained.save runs/quickstart/default exported
      python -m llm_jax.pretrained.save runs/mine/first exported dtype=bfloat16 step=4000
      python -m llm_jax.pretrained.save runs/sft/lora my_adapter adapter=apart

    It writes config.json (in the spellings of transformers 4 and 5), generation_config.json, safetensors, and
    the tokenizer's files.

    Exit codes: 0 done, 2 a mistake in the command line, or a model that no family can express (one line names
    it).
    """

    run: Path = positional("RUN")
    """A run folder (or a Hugging Face model folder, a GGUF file or a PEFT folder, to be written anew)."""
    folder: Path = positional("FOLDER")
    """The folder that is made; it must be new or empty."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The dtype that weights are rounded to; the run's parameter dtype, if not given."""
    family: str = argument("", shown="NAME", choices=family_names)
    """The model family that it is written as; the first that can express the model, if not given."""
    shard_size: int = argument(SHARD_BYTES, least=1)
    """The most bytes of a file."""
    adapter: Literal["merged", "apart"] | None = None
    """For a model with an adapter: "merged" (if not given) writes the whole model, the adapter added to its
    weights in float32, and prints how much that changes logits; "apart" writes the adapter alone, as a folder
    of the PEFT library that names its base."""
    model: ModelArguments = part(ModelArguments, without=("dtype", "adapter", "decode"))

    def check(self) -> None:
        """Raises UserError for keys that are about the files of a whole model."""
        whole = {"dtype": self.dtype, "family": self.family, "layout": self.model.layout}
        for key, value in whole.items():
            if self.adapter == "apart" and value:
                raise UserError(f"{key}={value}: adapter=apart writes the adapter alone. Leave this key out")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(save, arguments)


def save(arguments: list[str]) -> int:
    """Reads the command line and writes the folder. Raises UserError."""
    command = read_command(arguments, SaveCommand)
    if command is None:
        return 0
    from llm_jax.pretrained.model import open_model  # imports JAX, which `run_command` sets up
    from llm_jax.pretrained.save_adapter import change_by_merging, has_adapter, save_apart
    from llm_jax.pretrained.source import open_source

    check_new_folder(command.folder, "FOLDER")
    source = open_source(command.run)
    if command.adapter and not has_adapter(source):
        raise UserError(f"adapter={command.adapter}: {command.run} has no adapter. Leave this key out")
    if command.adapter == "apart":
        save_apart(source, command.folder, command.model.step)
    else:
        options, dtype = command.model.options(), command.dtype
        if has_adapter(source):  # is merged in float32, and cast when it is written
            options["dtype"] = "float32"
            dtype = dtype or source.experiment.model.parameter_dtype
        pretrained = open_model(source, **options, to_convert=True, outputs=source.experiment.model.outputs)
        save_model(pretrained, command.folder, dtype, command.shard_size, command.family)
        if has_adapter(source) and dtype is not None:
            print(change_by_merging(source, pretrained, dtype))
    written = sorted(path.name for path in command.folder.iterdir())
    print(
        f"written: {command.folder} ({', '.join(written) if len(written) < 12 else f'{len(written)} files'})"
    )
    return 0


def save_model(
    pretrained: PretrainedModel,
    folder: Path | str,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    family: str = "",
    log: Callable[[str], None] = print,
) -> None:
    """Writes a model as a Hugging Face folder, which appears only once it is complete.

    `dtype` is float32, bfloat16 or float16; None: that of the parameters. `family` is the model_type; "":
    that of the folder that the model was loaded from, or the first by rank that can express it. Raises
    UserError if no family (or not the given one) can express the model, and if the folder is not empty.
    """
    from llm_jax.data.chat_template import FILE as TEMPLATE
    from llm_jax.huggingface.export_tokenizer import export_tokenizer
    from llm_jax.huggingface.family import family_for
    from llm_jax.huggingface.folder import CONFIG, GENERATION
    from llm_jax.pretrained.source import tokenizer_folder

    folder = Path(folder)
    check_new_folder(folder, "FOLDER")
    source = pretrained.folder
    model = pretrained.config
    if (
        source is None and model.position == "rope"
    ):  # has no effect here, but other programs take it for the length of training
        model = dataclasses.replace(
            model, positions=max(model.positions, pretrained.experiment.train.sequence_length)
        )
    target = family_for(model, family, preferred=source.tree.get("model_type", "") if source else "")
    dtype = dtype or model.parameter_dtype
    ids = token_ids(pretrained)
    if model.outputs == "reward" and source is None:
        ids |= reward_padding(pretrained, log)
    tree = {**target.write_config(model), **ids, "dtype": dtype, "torch_dtype": dtype, "use_cache": True}
    log(
        f"{pretrained.path}: {tree['architectures'][0]}, {pretrained.program.parameter_count():,} "
        f"parameters in {dtype}"
    )
    with new_folder(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n")
        files = tokenizer_folder(source.path) if source else None
        if files and (files / GENERATION).is_file():
            shutil.copy(inside(files, GENERATION, files), partial / GENERATION)
        else:
            (partial / GENERATION).write_text(json.dumps(ids, indent=2, sort_keys=True) + "\n")
        write_weights(pretrained, target, tree, partial, dtype, shard_bytes)
        if pretrained.tokenizer_if_any is not None:
            own = tokenizer_folder(pretrained.path)
            template = inside(own, TEMPLATE, own).read_text() if (own / TEMPLATE).is_file() else None
            export_tokenizer(pretrained.tokenizer_if_any, partial, template)


def write_weights(
    pretrained: PretrainedModel,
    family: Family,
    tree: dict[str, Any],
    folder: Path,
    dtype: str,
    shard_bytes: int,
) -> None:
    """Writes the safetensors files and their index; `tree` is the config.json that was written."""
    import numpy as np

    from llm_jax.huggingface import safetensors
    from llm_jax.huggingface.tensor_map import build_tensor_map
    from llm_jax.huggingface.transfer import flat_paths, shapes_of
    from llm_jax.train.state import TrainModel

    if dtype not in safetensors.NAMES:
        raise UserError(f"dtype={dtype}: must be one of {', '.join(safetensors.NAMES)}")
    config, arrays = pretrained.config, flat_paths(pretrained.parameters)
    tensor_map = build_tensor_map(family.entries(config, tree), config, shapes_of(pretrained.program))
    narrow_config = dataclasses.replace(config, parameter_dtype="bfloat16")
    narrow = TrainModel(narrow_config, pretrained.experiment.optimizer, pretrained.place)
    # Arrays that stay float32 in a bfloat16 model (routers' biases) stay float32 in files of any dtype.
    wide = {path for path, w in flat_paths(narrow.abstract).items() if w.dtype == np.float32}
    planned = [
        safetensors.PlannedTensor(
            name, "float32" if slices[0].path in wide else dtype, slices[0].pattern.tensor_shape
        )
        for name, slices in tensor_map.tensors.items()
    ]
    planned.sort(key=lambda tensor: natural_order(tensor.name))
    files = safetensors.shards(planned, shard_bytes)
    names = safetensors.shard_names(len(files))
    for name, tensors in zip(names, files, strict=True):
        with (folder / name).open("wb") as file:
            safetensors.write_header(file, tensors)
            for tensor in tensors:
                write_tensor(file, tensor, arrays, tensor_map.tensors[tensor.name])
    if len(files) > 1:
        safetensors.write_index(folder, files, names)


def write_tensor(
    file: BinaryIO, tensor: PlannedTensor, arrays: dict[str, Any], slices: list[ArraySlice]
) -> None:
    """Writes the bytes of one tensor from the array slices in it. Raises UserError for a number too large for
    its dtype."""
    import numpy as np

    from llm_jax.huggingface.safetensors import FLOATS, NAMES
    from llm_jax.huggingface.transfer import CHUNK_BYTES, fetch

    dtype = np.dtype(FLOATS[NAMES[tensor.dtype]])
    for start, end in slices[0].pattern.row_ranges(CHUNK_BYTES // dtype.itemsize):
        restricted = [array_slice.pattern.restricted(start, end) for array_slice in slices]
        chunk = np.empty(restricted[0][0].tensor_shape, dtype)
        for array_slice, (pattern, box) in zip(slices, restricted, strict=True):
            try:
                with np.errstate(over="raise"):
                    pattern.write(
                        fetch(arrays[array_slice.path], array_slice.prefix, box, pattern.permutation), chunk
                    )
            except FloatingPointError:
                raise UserError(
                    f"dtype={tensor.dtype}: {tensor.name} has numbers that are too large for it; use bfloat16"
                ) from None
        chunk.reshape(-1).view(np.uint8).tofile(file)


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key that orders dotted names with their numbers as numbers."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in name.split(".")]


def token_ids(pretrained: PretrainedModel) -> dict[str, Any]:
    """The ids of BOS, EOS and padding for config.json: those of the folder that was loaded, or the
    tokenizer's."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    tree = pretrained.folder.tree if pretrained.folder else {}
    if any(name in tree for name in names):
        return {name: tree[name] for name in names if name in tree}
    tokenizer = pretrained.tokenizer_if_any
    if tokenizer is None:
        return dict.fromkeys(names)  # the classes' defaults may lie outside of the vocabulary
    eos_ids = list(tokenizer.eos_ids)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": eos_ids if len(eos_ids) > 1 else tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def reward_padding(pretrained: PretrainedModel, log: Callable[[str], None]) -> dict[str, Any]:
    """The padding in the config.json of a reward model. transformers takes the reward at the last token
    that is no padding, so none that ends a text may be it."""
    tokenizer = pretrained.tokenizer_if_any
    if tokenizer is None or tokenizer.pad_id not in tokenizer.eos_ids:
        return {}
    log(
        "pad_token_id=null: the tokenizer pads with a token that ends texts, where the reward is read. "
        "Score texts one at a time in transformers, or give tokenizer and config another pad_token"
    )
    return {"pad_token_id": None}


if __name__ == "__main__":
    sys.exit(main())
