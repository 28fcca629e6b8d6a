"""A Hugging Face model folder, config.json and safetensors, or a GGUF file: opened, checked, and read onto
devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.files import inside
from llm_jax.huggingface.family import SCORE, Family, load_family, read_model
from llm_jax.huggingface.gguf.files import open_file
from llm_jax.huggingface.gguf.header import is_gguf
from llm_jax.huggingface.safetensors import Tensor, read_folder, read_json, row_ranges
from llm_jax.huggingface.tensor_map import EXPERT, Entry, TensorMap, build_tensor_map
from llm_jax.huggingface.transfer import read_parameters, shapes_of
from llm_jax.model.config import ModelConfig
from llm_jax.train.state import TrainModel

CONFIG = "config.json"
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Folder:
    """An open model folder: its config.json and the headers of its files have been read, its weights have
    not.
    """

    path: Path
    """The folder, or the GGUF file."""
    tree: dict[str, Any]
    """The JSON object that config.json holds, or that the metadata of a GGUF file stands for."""
    family: Family
    model: ModelConfig
    """The model of config.json, in the dtype of the files: bfloat16 if all matrices are bfloat16 or 8-bit,
    else float32.
    """
    tensors: dict[str, Tensor]
    """The tensors of the files by their full names, without `left_out`."""
    left_out: tuple[str, ...] = ()
    """The names of tensors in the files that the `leave_out` of `open_folder` excludes."""

    def read(self, program: TrainModel) -> Any:
        """All parameters, placed as the model's layout stores them and in its parameter dtype.

        Raises UserError for a tensor that doesn't fit.
        """
        return read_parameters(self.tensor_map(program), self.tensors, program)

    def tensor_map(self, program: TrainModel) -> TensorMap:
        """Which tensor fills which slice of which array of a model.

        Raises UserError for a tensor that doesn't fit.
        """
        entries = self.family.entries(self.model, self.tree)
        tensor_map = build_tensor_map(entries, self.model, shapes_of(program))
        tensors = dict(self.tensors)
        head, embedding = head_and_embedding(entries)
        if self.model.tied_embeddings and self.model.outputs == "logits" and head in tensors:
            check_tied(self.path, tensors.pop(head), tensors[embedding])
        described = "metadata" if is_gguf(self.path) else CONFIG
        tensor_map.check(tensors, self.path, self.family.buffers, described)
        return tensor_map


def is_folder(path: Path) -> bool:
    """True if a folder is a Hugging Face model folder: it has a config.json and is no run folder."""
    return (path / CONFIG).is_file() and not (path / "config.yaml").is_file()


def open_folder(path: Path, leave_out: Sequence[str] = ()) -> Folder:
    """Reads config.json and the headers of the safetensors files, or the header of a GGUF file.

    `leave_out`: names of tensors to exclude, with * for any characters. Raises UserError, naming the key or
    the file, for anything that is damaged or not supported.
    """
    found: Mapping[str, Tensor]
    if is_gguf(path):
        tree, found = open_file(path)
        family = load_family(tree["model_type"], path)
        model = family.read_config(tree, path)
    else:
        tree = read_json(inside(path, CONFIG, path))
        family, model = read_model(tree, path)
        found = read_folder(path)
    check_wrappers(path, [*found])
    tensors = with_prefix(found, family)
    left_out = tuple(name for name in tensors if any(fnmatchcase(name, pattern) for pattern in leave_out))
    for pattern in leave_out:
        if not any(fnmatchcase(name, pattern) for name in left_out):
            first = ", ".join([*tensors][:3])
            raise UserError(f"leave_out={pattern}: {path} has no such tensor; its first tensors are {first}")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    entries = family.entries(model, tree)
    check_count(path, model, entries, tensors)
    head, embedding = head_and_embedding(entries)
    if (
        model.tied_embeddings and model.outputs == "logits" and head in tensors and embedding not in tensors
    ):  # files may have a tied tensor under either name
        tensors[embedding] = dataclasses.replace(tensors.pop(head), name=embedding)
    narrow = all(t.dtype.startswith(("BF16", "F8")) for t in tensors.values() if len(t.shape) > 1)
    dtype: Any = "bfloat16" if narrow else "float32"
    model = dataclasses.replace(model, parameter_dtype=dtype, compute_dtype=dtype)
    return Folder(path, tree, family, model, tensors, left_out)


WRAPPERS = {
    "_orig_mod.": ("torch.compile", "the state_dict of model._orig_mod"),
    "_fsdp_wrapped_module.": ("FSDP", "the full state_dict"),
    "_checkpoint_wrapped_module.": ("checkpoint_wrapper", "the state_dict of the model before it is wrapped"),
    "module.": ("DistributedDataParallel", "the state_dict of model.module"),
    "base_model.model.": ("PEFT", "model.merge_and_unload()"),
}
"""What a wrapper of torch puts into the names of tensors → the wrapper, and what to save instead."""


def check_wrappers(path: Path, names: Sequence[str]) -> None:
    """Raises UserError for tensors that were saved with their wrapper's names."""
    for part, (wrapper, instead) in WRAPPERS.items():
        wrapped = [name for name in names if name.startswith(part) or (part[0] == "_" and part in name)]
        if wrapped:
            raise UserError(
                f"{path}: {len(wrapped)} of {len(names)} tensors have {wrapper}'s {part} in their names "
                f"({wrapped[0]}). Save {instead}, or rename them"
            )


def check_count(path: Path, model: ModelConfig, entries: Sequence[Entry], tensors: dict[str, Tensor]) -> None:
    """Raises UserError where config.json has more layers, or experts, than the files have tensors: their
    table would take memory for each of them.
    """
    experts = model.moe.experts if any(EXPERT in entry.tensor for entry in entries) else 1
    needed = max(model.layers, len(model.sparse_layers) * experts)
    if needed > len(tensors):
        raise UserError(
            f"{path}: the files have {len(tensors)} tensors, too few for the {model.layers} layers"
            + (f" with {experts} experts" if model.sparse_layers else "")
            + " of its config.json. Download the missing files"
        )


def head_and_embedding(entries: Sequence[Entry]) -> tuple[str, str]:
    """The names of the head's and of the embedding's tensor in a family's table."""
    names = {entry.array: entry.tensor for entry in entries}
    return names["head"], names["embedding"]


def with_prefix(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Tensors by their full names: files of a model without its head (and GPT-2's on the Hub) omit the
    family's prefix.
    """
    if not family.prefix or any(name.startswith(family.prefix) for name in tensors):
        return dict(tensors)
    heads = ("lm_head.weight", "embed_out.weight", SCORE)
    return {name if name in heads else family.prefix + name: tensor for name, tensor in tensors.items()}


def check_tied(path: Path, head: Tensor, embedding: Tensor) -> None:
    """Raises UserError if a tied model's files hold a head that differs from the embedding."""
    if head.shape == embedding.shape:
        ranges = row_ranges(head.shape[0], (64 << 20) // (head.shape[1] * 4))
        if all(np.array_equal(head.rows(a, b), embedding.rows(a, b)) for a, b in ranges):
            return
    raise UserError(f"{path}: tie_word_embeddings=true, but {head.name} differs from {embedding.name}")
