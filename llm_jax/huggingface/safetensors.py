"""Reads and writes safetensors by rows, so that no more than a part of a tensor is in memory twice.

A file is a length (u64), a JSON header (name → dtype, shape, offsets of its bytes) and the bytes. The
`safetensors` library reads rows too, but its `safe_open(framework="np")` fails for 8-bit floats (NumPy has no
float8 types), and its writer requires all tensors of a file at once, in memory (safetensors 0.8).
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
from llm_jax.core.files import inside, lfs_problem, parse_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
"""The dtypes of a file that weights may have → NumPy's."""
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The dtypes that can be written → their names in a file."""
HEADER_BYTES = 100_000_000
"""The longest header of a file, as the format limits it: a length is read before anything of it is
checked."""
SCALE_BLOCK = 128
"""The rows, and columns, of the blocks that share one number of `weight_scale_inv` (DeepSeek-V3)."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file, by its header; `rows` reads its values."""

    name: str
    path: Path
    dtype: str
    """Its name in the file's header: F32, BF16, ..."""
    shape: tuple[int, ...]
    offset: int
    """The offset of its first byte in the file."""
    scale: Tensor | None = None
    """For an 8-bit tensor, the factors of its blocks of 128 x 128."""

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in the file."""
        return math.prod(self.shape) * np.dtype(FLOATS[self.dtype]).itemsize

    def rows(self, first: int, end: int) -> np.ndarray:
        """The rows from `first` to before `end`: in the file's dtype, or for an 8-bit tensor scaled, in
        float32.
        """
        kind = np.dtype(FLOATS[self.dtype])
        row = math.prod(self.shape[1:])
        array = np.fromfile(
            self.path, kind, (end - first) * row, offset=self.offset + first * row * kind.itemsize
        )
        if array.size != (end - first) * row:
            raise UserError(
                f"{self.path}: is shorter than its header says, at {self.name}; copy or download it again"
            )
        array = array.reshape(end - first, *self.shape[1:])
        if self.scale is None:
            return array
        blocks = self.scale.rows(first // SCALE_BLOCK, -(-end // SCALE_BLOCK)).astype(np.float32)
        block_of_row = np.arange(first, end) // SCALE_BLOCK - first // SCALE_BLOCK
        return array.astype(np.float32) * np.repeat(blocks, SCALE_BLOCK, 1)[:, : self.shape[1]][block_of_row]


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, from one file or from the files of its index.

    Raises UserError for incomplete files, and for files outside of the folder.
    """
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file():
        weight_map = read_json(inside(folder, INDEX, folder)).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(f, str) for f in weight_map.values())
        ):
            raise UserError(f"{index}: has no weight_map, which names the file of each tensor")
        if single.is_file() and SINGLE not in weight_map.values():
            raise UserError(
                f"{folder}: has {SINGLE}, but {INDEX} names other files. Remove whichever is not the model"
            )
        headers = {
            file: read_header(inside(folder, file, f"{index}: weight_map"))
            for file in sorted(set(weight_map.values()))
        }
        found = {name: tensor for header in headers.values() for name, tensor in header.items()}
        for name, file in weight_map.items():
            if name not in headers[file]:
                raise UserError(f"{folder / file}: has no tensor {name}, although {INDEX} places it there")
            found[name] = headers[file][name]
        return join_scales(found)
    if single.is_file():
        return join_scales(read_header(inside(folder, SINGLE, folder)))
    others = sorted(
        path.name
        for path in folder.glob("*")
        if path.suffix in (".bin", ".pt", ".pth", ".msgpack", ".h5", ".safetensors")
    )
    raise UserError(
        f"{folder}: has no {SINGLE} and no {INDEX}"
        + (f"; there is {others[0]}, which is not read" if others else "")
    )


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, from its header.

    Raises UserError if it is no complete safetensors file.
    """
    try:
        with path.open("rb") as file:
            if problem := lfs_problem(file.read(64)):
                raise UserError(f"{path}: {problem}")
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            text = file.read(length) if 0 < length <= min(size - 8, HEADER_BYTES) else b"null"
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file, although {INDEX} names it") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    try:
        header = parse_json(text, path)
    except UserError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path}: is not a safetensors file")
    header.pop("__metadata__", None)
    tensors, at = {}, 8 + length
    for name, about in sorted(header.items(), key=lambda item: offsets(item[1])):
        begin, end = offsets(about)
        if begin < 0 or not isinstance(about.get("dtype"), str) or not whole_numbers(about.get("shape")):
            raise UserError(f"{path}: {name} is not a tensor in its header: {json.dumps(about)[:200]}")
        tensor = Tensor(name, path, about["dtype"], tuple(about["shape"]), 8 + length + begin)
        if tensor.dtype in FLOATS and tensor.nbytes != end - begin:
            raise UserError(
                f"{path}: {name} has {end - begin} bytes, but {list(tensor.shape)} in {tensor.dtype} "
                f"takes {tensor.nbytes}"
            )
        if 8 + length + end > size:
            raise UserError(
                f"{path}: is shorter than its header says ({size} bytes, but {name} ends at "
                f"{8 + length + end})"
            )
        if tensor.offset != at:
            raise UserError(
                f"{path}: {name} begins at byte {tensor.offset}, but the tensor before it ends at {at}"
            )
        tensors[name], at = tensor, 8 + length + end
    if at != size:
        raise UserError(f"{path}: is longer than its header says ({size} bytes, but its tensors end at {at})")
    return tensors


def offsets(about: Any) -> tuple[int, int]:
    """The byte offsets (begin, end) in a tensor's header; (-1, -1) if there are none or they are
    malformed.
    """
    found = about.get("data_offsets") if isinstance(about, dict) else None
    return (
        (found[0], found[1])
        if isinstance(found, list) and whole_numbers(found) and len(found) == 2
        else (-1, -1)
    )


def whole_numbers(value: Any) -> bool:
    """True for a list of integers that are 0 or larger."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def join_scales(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with the scales of 8-bit tensors moved into `Tensor.scale`.

    Raises UserError for missing scales.
    """
    joined = {}
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv") and name.removesuffix("_scale_inv") in tensors:
            continue
        if tensor.dtype.startswith("F8"):
            scale = tensors.get(f"{name}_scale_inv")
            if (
                scale is None
                or scale.dtype not in FLOATS
                or scale.dtype.startswith("F8")
                or len(tensor.shape) != 2
            ):
                raise UserError(
                    f"{tensor.path}: {name} is {tensor.dtype} and has no {name}_scale_inv of floats; "
                    "8-bit weights must be matrices with scales"
                )
            blocks = tuple(-(-n // SCALE_BLOCK) for n in tensor.shape)
            if scale.shape != blocks:
                raise UserError(
                    f"{tensor.path}: {scale.name} has shape {scale.shape}, but blocks of {SCALE_BLOCK} x "
                    f"{SCALE_BLOCK} require {blocks}"
                )
            tensor = Tensor(name, tensor.path, tensor.dtype, tensor.shape, tensor.offset, scale)
        joined[name] = tensor
    return joined


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if the file is missing or holds no object."""
    try:
        tree = parse_json(path.read_bytes(), path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return tree


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is to be written."""

    name: str
    dtype: str
    """Its dtype in the file: float32, bfloat16 or float16."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in the file."""
        return math.prod(self.shape) * np.dtype(FLOATS[NAMES[self.dtype]]).itemsize


def shards(tensors: list[PlannedTensor], max_bytes: int) -> list[list[PlannedTensor]]:
    """The tensors of each file, in order: at most `max_bytes` each, or a single larger tensor."""
    files: list[list[PlannedTensor]] = []
    room = -1
    for tensor in tensors:
        if not files or tensor.nbytes > room:
            files.append([])
            room = max_bytes
        files[-1].append(tensor)
        room -= tensor.nbytes
    return files


def shard_names(count: int) -> list[str]:
    """The names of a model's `count` files."""
    return [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def write_header(file: BinaryIO, tensors: list[PlannedTensor]) -> None:
    """Writes the length and the header of a file; the tensors' bytes must follow in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + tensor.nbytes
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    file.write(len(text).to_bytes(8, "little") + text)


def write_index(folder: Path, files: list[list[PlannedTensor]], names: list[str]) -> None:
    """Writes the index of a folder: the file of each tensor."""
    total = sum(tensor.nbytes for tensors in files for tensor in tensors)
    weight_map = {tensor.name: name for tensors, name in zip(files, names, strict=True) for tensor in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def row_ranges(length: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Divides `length` rows into ranges (first, end) of `max_rows` rows, the last one of the rest."""
    for first in range(0, length, max(1, max_rows)):
        yield first, min(first + max(1, max_rows), length)
