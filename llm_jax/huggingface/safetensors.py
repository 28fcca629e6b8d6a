"""Safetensors files, read and written a part of a tensor at a time.

A file is a length (u64), a JSON header (name → dtype, shape, offsets of its bytes) and the bytes. The `safetensors` library maps whole files
and knows no 8-bit floats in NumPy; a model that fills the memory is to be read by rows, so that no more than a part of a tensor is here twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from llm_jax.core.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
"""Their dtypes that weights may have."""
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Ours that can be written."""
SCALE_BLOCK = 128
"""Rows and columns that one number of `weight_scale_inv` is of (DeepSeek-V3)."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. `rows` reads it."""

    name: str
    path: Path
    dtype: str
    """As safetensors says it: F32, BF16, ..."""
    shape: tuple[int, ...]
    begin: int
    """Its first byte in the file."""
    scale: Tensor | None = None
    """Of an 8-bit tensor: what each block of 128 x 128 is multiplied by."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(FLOATS[self.dtype]).itemsize

    def rows(self, first: int, end: int) -> np.ndarray:
        """The rows from `first` to `end` in the file's dtype; of an 8-bit tensor in float32, scaled."""
        kind = np.dtype(FLOATS[self.dtype])
        row = math.prod(self.shape[1:])
        array = np.fromfile(self.path, kind, (end - first) * row, offset=self.begin + first * row * kind.itemsize)
        if array.size != (end - first) * row:
            raise UserError(f"{self.path}: is shorter than its header says, at {self.name}")
        array = array.reshape(end - first, *self.shape[1:])
        if self.scale is None:
            return array
        blocks = self.scale.rows(first // SCALE_BLOCK, -(-end // SCALE_BLOCK)).astype(np.float32)
        of_row = np.arange(first, end) // SCALE_BLOCK - first // SCALE_BLOCK
        return array.astype(np.float32) * np.repeat(blocks, SCALE_BLOCK, 1)[:, : self.shape[1]][of_row]


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, from one file or from those that its index names. Raises UserError where the files aren't whole."""
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
            raise UserError(f"{index}: has no weight_map, which says the file of each tensor")
        if single.is_file() and SINGLE not in named.values():
            raise UserError(f"{folder}: has {SINGLE}, and {INDEX} names other files; which of them is the model isn't known: remove one")
        headers = {file: read_header(folder / file) for file in sorted(set(named.values()))}
        found = {name: tensor for header in headers.values() for name, tensor in header.items()}
        for name, file in named.items():
            if name not in headers[file]:
                raise UserError(f"{folder / file}: has no tensor {name}, which {INDEX} says it has")
            found[name] = headers[file][name]
        return with_scales(found)
    if single.is_file():
        return with_scales(read_header(single))
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".msgpack", ".h5", ".safetensors"))
    raise UserError(f"{folder}: has no {SINGLE} and no {INDEX}" + (f"; there is {others[0]}, which is not read" if others else ""))


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises UserError where it isn't a whole safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            header = json.loads(file.read(length)) if 0 < length <= size - 8 else None
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file, which {INDEX} names") from None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path}: is not a safetensors file")
    header.pop("__metadata__", None)
    tensors, at = {}, 8 + length
    for name, about in sorted(header.items(), key=lambda item: offsets(item[1])):
        begin, end = offsets(about)
        if begin < 0 or not isinstance(about.get("dtype"), str) or not whole_numbers(about.get("shape")):
            raise UserError(f"{path}: {name} is no tensor in its header: {json.dumps(about)[:200]}")
        tensor = Tensor(name, path, about["dtype"], tuple(about["shape"]), 8 + length + begin)
        if tensor.dtype in FLOATS and tensor.nbytes != end - begin:
            raise UserError(f"{path}: {name} has {end - begin} bytes, and {list(tensor.shape)} in {tensor.dtype} are {tensor.nbytes}")
        if 8 + length + end > size:
            raise UserError(f"{path}: is shorter than its header says ({size} bytes, and {name} ends at {8 + length + end})")
        if tensor.begin != at:
            raise UserError(f"{path}: {name} begins at byte {tensor.begin}, and what comes before it ends at {at}")
        tensors[name], at = tensor, 8 + length + end
    if at != size:
        raise UserError(f"{path}: is longer than its header says ({size} bytes, and its tensors end at {at})")
    return tensors


def offsets(about: Any) -> tuple[int, int]:
    """Where a tensor begins and ends, as a header says; negative where it doesn't."""
    found = about.get("data_offsets") if isinstance(about, dict) else None
    return (found[0], found[1]) if isinstance(found, list) and whole_numbers(found) and len(found) == 2 else (-1, -1)


def whole_numbers(value: Any) -> bool:
    """Whether a header's value is a list of numbers from 0 on."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def with_scales(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """8-bit tensors joined with their scales, which are then no tensors of their own."""
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv") and name.removesuffix("_scale_inv") in tensors:
            continue
        if tensor.dtype.startswith("F8"):
            scale = tensors.get(f"{name}_scale_inv")
            if scale is None or scale.dtype not in FLOATS or scale.dtype.startswith("F8"):
                raise UserError(f"{tensor.path}: {name} is {tensor.dtype} and has no {name}_scale_inv of floats; 8-bit weights need their scales")
            blocks = tuple(-(-n // SCALE_BLOCK) for n in tensor.shape)
            if scale.shape != blocks:
                raise UserError(f"{tensor.path}: {scale.name} is {scale.shape}, and blocks of {SCALE_BLOCK} x {SCALE_BLOCK} would make it {blocks}")
            tensor = Tensor(name, tensor.path, tensor.dtype, tensor.shape, tensor.begin, scale)
        made[name] = tensor
    return made


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; UserError if it has none."""
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: has no JSON object")
    return tree


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written."""

    name: str
    dtype: str
    """float32, bfloat16, float16."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(FLOATS[NAMES[self.dtype]]).itemsize


def shards(tensors: list[Planned], most: int) -> list[list[Planned]]:
    """Tensors in files of at most so many bytes each (a larger tensor has a file of its own), in order."""
    files: list[list[Planned]] = []
    room = -1
    for tensor in tensors:
        if not files or tensor.nbytes > room:
            files.append([])
            room = most
        files[-1].append(tensor)
        room -= tensor.nbytes
    return files


def shard_names(count: int) -> list[str]:
    """What the files of a model are called."""
    return [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def write_header(file: BinaryIO, tensors: list[Planned]) -> None:
    """What a file begins with; the tensors' bytes follow in the same order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin aligned
    file.write(len(text).to_bytes(8, "little") + text)


def write_index(folder: Path, files: list[list[Planned]], names: list[str]) -> None:
    """Which file each tensor is in."""
    total = sum(tensor.nbytes for tensors in files for tensor in tensors)
    where = {tensor.name: name for tensors, name in zip(files, names, strict=True) for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2, sort_keys=True) + "\n")


def parts(length: int, most: int) -> Iterator[tuple[int, int]]:
    """A range in equal-sized parts of at most so many: (first, end) of each."""
    for first in range(0, length, max(1, most)):
        yield first, min(first + max(1, most), length)
