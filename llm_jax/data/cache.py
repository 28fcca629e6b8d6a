"""Cached folders: built once, named by a fingerprint of their content, and visible only when complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import write_atomic

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def fingerprint(*parts: Any) -> str:
    """sha256 hex of values that JSON can express; equal on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def build_once(target: Path, build: Callable[[Path], object]) -> bool:
    """Makes the folder `target` by `build(temporary folder)` and a rename; returns False if it exists
    already.

    If two processes build one target at once, both do the work and the first to finish wins: there is no
    lock, because locks are not reliable on every cluster's file system. Folders left by killed builders of
    this machine are removed.
    """
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target)
    temporary = temporary_beside(target)
    temporary.mkdir()
    try:
        build(temporary)
        publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A context that raises UserError if the cache in `folder` can't be written: no space, no quota, no
    permission.
    """
    try:
        yield
    except (
        OSError,
        RuntimeError,
    ) as error:  # array_record raises RuntimeError with the system's message in it
        message = next((os.strerror(code) for code in _CANNOT_WRITE if os.strerror(code) in str(error)), None)
        if message is None:
            raise
        raise UserError(
            f"data.cache_dir={folder}: cannot be written: {message}; make room, or choose another folder"
        ) from error


def publish(temporary: Path, target: Path) -> None:
    """Renames a finished folder into place, or removes it if another process was first."""
    try:
        temporary.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_beside(target: Path) -> Path:
    """A path beside `target` that contains the host and process id of its writer."""
    return target.with_name(f"{target.name}.tmp-{socket.gethostname()}-{os.getpid()}")


def remove_abandoned(target: Path) -> None:
    """Removes temporary folders of `target` whose writer on this machine is dead."""
    for path in target.parent.glob(f"{target.name}.tmp-{socket.gethostname()}-*"):
        try:
            os.kill(int(path.name.rsplit("-", 1)[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (PermissionError, ValueError):
            pass  # alive under another user, or a name of another kind


def file_sha256(path: Path, cache: Path) -> str:
    """sha256 hex of a file's bytes, cached by (path, size, modification time) so that the file is
    read once.
    """
    stat = path.stat()
    memo = cache / "hashes" / f"{fingerprint(str(path.resolve()))[:32]}.json"
    key = [stat.st_size, stat.st_mtime_ns]
    if memo.exists():
        remembered = json.loads(memo.read_text())
        if remembered["key"] == key:
            return remembered["sha256"]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(memo, json.dumps({"key": key, "sha256": digest}).encode())
    return digest
