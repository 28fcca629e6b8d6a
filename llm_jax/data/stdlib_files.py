"""The files of this machine's Python standard library that are text: the built-in corpus."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_SUFFIXES = (".py", ".txt", ".rst")
# Installed packages, and tests, which some distributions leave out, are not part of the corpus.
_NOT_CORPUS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "ensurepip"}
)


def stdlib_documents() -> Iterator[tuple[str, bytes]]:
    """(relative path, content) of each text file in order of paths, except the few that are not UTF-8."""
    root = Path(sysconfig.get_path("stdlib"))
    names = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in _NOT_CORPUS]  # skips thousands of files
        names += [
            (Path(folder) / name).relative_to(root).as_posix() for name in files if name.endswith(_SUFFIXES)
        ]
    for name in sorted(names):
        content = (root / name).read_bytes()
        if content.strip() and _is_utf8(content):
            yield name, content


def stdlib_fingerprint() -> str:
    """sha256 hex over every document's path and content (reads about 13 MB, 0.1 s)."""
    digest = hashlib.sha256()
    for name, content in stdlib_documents():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
