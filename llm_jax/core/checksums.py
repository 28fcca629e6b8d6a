"""Checksums of a folder's files, which detect a flipped bit, a truncated file and a missing one.

They are in the file SHA256SUMS beside the files, which `sha256sum --check SHA256SUMS` reads too; its last
line is a sum over itself.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm_jax.core.errors import UserError
from llm_jax.core.files import inside, sync_folder

NAME = "SHA256SUMS"
THREADS = 4
"""Files that are read at once; hashing releases the GIL."""


class Damaged(Exception):
    """A file of a folder is missing, or differs from its checksum."""


def write(folder: Path) -> None:
    """Writes the sums of all files under a folder; they and the files are on the disk when this returns."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != NAME
    )
    with ThreadPoolExecutor(THREADS, "checksums") as pool:
        sums = list(pool.map(lambda name: durable_sum(folder / name), names))
    lines = "".join(f"{value}  {name}\n" for value, name in zip(sums, names, strict=True))
    (folder / NAME).write_text(f"{lines}# {text_sum(lines)}\n")
    durable_sum(folder / NAME)
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(path)


def check(folder: Path, share: int = 0, shares: int = 1) -> None:
    """Raises Damaged, naming a file, if a file of the folder is missing or differs from its checksum.

    It reads one of `shares` equal shares of the files, so that several processes can divide the work.
    """
    expected = read(folder)[share::shares]

    def problem(entry: tuple[str, str]) -> str:
        value, name = entry
        try:
            return (
                ""
                if file_sum(inside(folder, name, folder / NAME)) == value
                else f"{name} is not what was written: its checksum differs"
            )
        except FileNotFoundError:
            return f"{name} is missing"
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(THREADS, "checksums") as pool:
        for found in pool.map(problem, expected):
            if found:
                raise Damaged(found)


def read(folder: Path) -> list[tuple[str, str]]:
    """(sum, name) of every file. Raises Damaged where there are no sums, or these are damaged themselves."""
    try:
        content = (folder / NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{NAME} is missing") from None
    lines, _, own = content.decode(errors="replace").rpartition("# ")
    if own != f"{text_sum(lines)}\n":
        raise Damaged(f"{NAME} is not what was written")
    return [(value, name) for value, _, name in (line.partition("  ") for line in lines.splitlines())]


def text_sum(text: str) -> str:
    """sha256 hex of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_sum(path: Path) -> str:
    """sha256 hex of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def durable_sum(path: Path) -> str:
    """sha256 hex of a file, which is on the disk (fsync) when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
