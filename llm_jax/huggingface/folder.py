"""A folder as Hugging Face's libraries write one: config.json and safetensors; opened, checked, and read onto devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.huggingface.family import Family, read_model
from llm_jax.huggingface.safetensors import Tensor, parts, read_folder, read_json
from llm_jax.huggingface.tensor_map import Entry, Table, lay
from llm_jax.huggingface.transfer import read_parameters, shapes_of
from llm_jax.model.config import ModelConfig
from llm_jax.train.state import TrainModel

CONFIG = "config.json"
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Folder:
    """A model's folder, its config.json read and the headers of its files; no weights yet."""

    path: Path
    tree: dict[str, Any]
    """config.json."""
    family: Family
    model: ModelConfig
    """As config.json describes it, in the dtype of the files: bfloat16 where they have that (or 8 bits), else float32."""
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    """Names of tensors that are in the files too, and were asked to be left out."""

    def read(self, program: TrainModel) -> Any:
        """All weights, placed as the program stores them and in its parameter dtype. Raises UserError for a tensor that doesn't fit."""
        return read_parameters(self.table(program), self.tensors, program)

    def table(self, program: TrainModel) -> Table:
        """Which tensor is in which place of which array of a program, all checked."""
        entries = self.family.tensors(self.model, self.tree)
        table = lay(entries, self.model, shapes_of(program))
        tensors = dict(self.tensors)
        head, embedding = ends(entries)
        if self.model.tied_embeddings and head in tensors:
            check_tied(self.path, tensors.pop(head), tensors[embedding])
        table.check(tensors, self.path, self.family.buffers)
        return table


def is_folder(path: Path) -> bool:
    """Whether a folder is one of these: it has a config.json and is no run folder."""
    return (path / CONFIG).is_file() and not (path / "config.yaml").is_file()


def open_folder(path: Path, leave_out: Sequence[str] = ()) -> Folder:
    """Reads config.json and the headers; leave_out: names, with * for anything, of tensors to do without.

    Raises UserError, naming the key or the file, for what can't be read here.
    """
    tree = read_json(path / CONFIG)
    family, model = read_model(tree, path)
    tensors = with_prefix(read_folder(path), family)
    left_out = tuple(name for name in tensors if any(fnmatchcase(name, pattern) for pattern in leave_out))
    for pattern in leave_out:
        if not any(fnmatchcase(name, pattern) for name in left_out):
            raise UserError(f"leave_out={pattern}: {path} has no such tensor; the first that it has are {', '.join([*tensors][:3])}")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    head, embedding = ends(family.tensors(model, tree))
    if model.tied_embeddings and head in tensors and embedding not in tensors:  # of two names of one tensor a file may have either
        tensors[embedding] = dataclasses.replace(tensors.pop(head), name=embedding)
    kind: Any = "bfloat16" if all(t.dtype.startswith(("BF16", "F8")) for t in tensors.values() if len(t.shape) > 1) else "float32"
    model = dataclasses.replace(model, parameter_dtype=kind, compute_dtype=kind)
    return Folder(path, tree, family, model, tensors, left_out)


def ends(entries: Sequence[Entry]) -> tuple[str, str]:
    """The names of the head and of the embedding in a family's table."""
    names = {entry.ours: entry.theirs for entry in entries}
    return names["head"], names["embedding"]


def with_prefix(tensors: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Tensors by their full names: files of a model without its head (and GPT-2's on the Hub) leave out what all names begin with."""
    if not family.prefix or any(name.startswith(family.prefix) for name in tensors):
        return tensors
    return {name if name in ("lm_head.weight", "embed_out.weight") else family.prefix + name: tensor for name, tensor in tensors.items()}


def check_tied(path: Path, head: Tensor, embedding: Tensor) -> None:
    """Raises UserError where a head that the embedding is said to be is another: files may have it twice."""
    if head.shape == embedding.shape and all(
        np.array_equal(head.rows(a, b), embedding.rows(a, b)) for a, b in parts(head.shape[0], (64 << 20) // (head.shape[1] * 4))
    ):
        return
    raise UserError(f"{path}: {head.name} is another than {embedding.name}, and tie_word_embeddings says that they are one")
