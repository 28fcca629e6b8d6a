"""Reads the header of a GGUF file: its metadata, and where its tensors are.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, in
little-endian order. The `gguf` library has a reader too; it makes an array of each string, which takes many
times as long for a large vocabulary, and it trusts the lengths in the file.
"""

from __future__ import annotations

import functools
import hashlib
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import lfs_problem

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of metadata that are numbers or booleans → their codes in `struct`."""
STRING, ARRAY = 8, 9
ALIGNMENT = 32
"""The tensors begin at multiples of it, unless `general.alignment` is another number."""
MOST_DIMS = 4
MOST_VALUES = 10_000_000
"""More values than any array of metadata has (a vocabulary's, its merges): checked before they are made."""
KINDS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip
"""The number of a type of tensors → its name, the weights in a block, and the bytes of a block."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is in a file, and how it is stored."""

    kind: str
    """The name of its type: F32, Q4_K, ..."""
    shape: tuple[int, ...]
    """In NumPy's order: the last dim is contiguous, and divided into blocks."""
    offset: int
    """The offset of its first byte in the file."""
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a file holds beside the bytes of its tensors."""

    path: Path
    metadata: dict[str, Any]
    """Key → a number, a boolean, a string, or a list of these."""
    tensors: dict[str, StoredTensor]
    sha256: str
    """Hex, of the bytes of the header."""


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file: by its name or, as Ollama's files have none that says so, its first
    bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """The header of a GGUF file, which is kept in memory until the file changes. Raises UserError for a file
    that is damaged, or has tensors of a type that isn't read."""
    try:
        stat = path.stat()
        return _read_header(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error


@functools.lru_cache(maxsize=4)
def _read_header(path: Path, size: int, changed: int) -> Header:
    with path.open("rb") as file:
        start = file.read(64)
        check_start(start, path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return HeaderReader(path, content).header()
            except struct.error:
                raise UserError(
                    f"{path}: ends inside of its header, at byte {size:,}. Copy or download it again"
                ) from None


def check_start(start: bytes, path: Path) -> None:
    """Raises UserError unless a file that begins so is a GGUF file of a version that is read."""
    if problem := lfs_problem(start):
        raise UserError(f"{path}: {problem}")
    if start[:4] != MAGIC:
        found = "is empty" if not start else f"begins with {start[:4]!r}, not {MAGIC!r}: is no GGUF file"
        raise UserError(f"{path}: {found}. Copy or download it again")
    version = int.from_bytes(start[4:8], "little")
    if version % 2**16 == 0 and version:
        raise UserError(
            f"{path}: is a GGUF file of a big-endian machine, which isn't read. Take the usual one"
        )
    if version not in VERSIONS:
        raise UserError(
            f"{path}: is of version {version} of GGUF; must be one of {', '.join(map(str, VERSIONS))}. "
            "Convert it anew with llama.cpp"
        )


class HeaderReader:
    """Reads the values of a header one after the other. Raises struct.error where the file ends first."""

    def __init__(self, path: Path, content: mmap.mmap):
        self.path, self.content, self.at = path, content, len(MAGIC) + 4

    def header(self) -> Header:
        tensors, keys = self.number("Q"), self.number("Q")
        metadata = self.pairs(keys, lambda: self.value(self.number("I")), "the key")
        found = self.pairs(tensors, self.tensor, "the tensor")
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise UserError(f"{self.path}: general.alignment={alignment}: must be a whole number above 0")
        digest = hashlib.sha256(memoryview(self.content)[: self.at]).hexdigest()
        start = -(-self.at // alignment) * alignment
        placed = {name: self.placed(name, start, *about) for name, about in found.items()}
        return Header(self.path, metadata, placed, digest)

    def pairs(self, count: int, read: Any, what: str) -> dict[str, Any]:
        """`count` names, each with the value that `read` returns."""
        made: dict[str, Any] = {}
        for _ in range(count):  # a wrong count ends at the file's end
            name = self.string()
            if name in made:
                raise UserError(f"{self.path}: has {what} {name} twice. Download another file")
            made[name] = read()
        return made

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        raw = self.bytes(self.number("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: has {raw[:40]!r} in its header, which is no UTF-8") from None

    def bytes(self, length: int) -> bytes:
        if length > len(self.content) - self.at:
            raise struct.error
        self.at += length
        return self.content[self.at - length : self.at]

    def value(self, kind: int) -> Any:
        """A value of the metadata, of a type by its number."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise UserError(
                f"{self.path}: has metadata of type {kind}, which GGUF doesn't have. Copy it again"
            )
        item, count = self.number("I"), self.number("Q")
        if count > MOST_VALUES:
            raise UserError(f"{self.path}: has an array of {count:,} values; must be at most {MOST_VALUES:,}")
        if item == STRING:
            return [self.string() for _ in range(count)]
        if item not in NUMBERS:
            raise UserError(f"{self.path}: has metadata that is an array of type {item}, which isn't read")
        code = NUMBERS[item]
        return list(struct.unpack(f"<{count}{code}", self.bytes(count * struct.calcsize(f"<{code}"))))

    def tensor(self) -> tuple[tuple[int, ...], int, int]:
        """(shape, number of the type, offset from the first tensor) of a tensor."""
        dims = self.number("I")
        if not 1 <= dims <= MOST_DIMS:
            raise UserError(
                f"{self.path}: has a tensor of {dims} dims; must be 1 to {MOST_DIMS}. Copy it again"
            )
        shape = tuple(self.number("Q") for _ in range(dims))[::-1]  # GGUF has the contiguous dim first
        return shape, self.number("I"), self.number("Q")

    def placed(self, name: str, start: int, shape: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
        """A tensor whose bytes are known to be in the file, where the first tensor begins at `start`."""
        if kind not in KINDS:
            read = ", ".join(known for known, *_ in KINDS.values())
            raise UserError(
                f"{self.path}: {name} is {kind_name(kind)}, which isn't read; must be one of {read}. Take "
                "another file of the model"
            )
        known, block, block_bytes = KINDS[kind]
        row = shape[-1] if shape else 1
        if row % block:
            raise UserError(f"{self.path}: {name} has rows of {row} in {known}, whose blocks are of {block}")
        nbytes = math.prod(shape) // block * block_bytes
        if start + offset + nbytes > len(self.content):
            raise UserError(
                f"{self.path}: is shorter than its header says ({len(self.content):,} bytes, but {name} "
                f"ends at {start + offset + nbytes:,}). Copy or download it again"
            )
        return StoredTensor(known, shape, start + offset, nbytes)


def kind_name(kind: int) -> str:
    """The name that GGUF has for the number of a type of tensors."""
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType(kind).name
    except ValueError:
        return f"of type {kind}"
