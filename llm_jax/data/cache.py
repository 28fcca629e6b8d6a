"""Folders that are built once, appear whole or not at all, and are named by what is in them."""

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
    """sha256 hex of JSON-able parts, the same on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def build_once(target: Path, build: Callable[[Path], None]) -> bool:
    """Makes the folder `target` by `build(temporary folder)` and a rename; False if it was there already.

    Two processes that build the same target at once both do the work, and the first to end wins: no lock, as
    locks do not hold on every cluster's file system. What a killed builder of this machine left is removed.
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
    """Raises UserError where the file system lets nothing more be written to the cache in `folder`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError with the system's words in it
        words = next((os.strerror(code) for code in _CANNOT_WRITE if os.strerror(code) in str(error)), None)
        if words is None:
            raise
        raise UserError(f"data.cache_dir={folder}: cannot write there: {words}; make room, or choose another folder") from error


def publish(temporary: Path, target: Path) -> None:
    """Renames a finished folder into place, or drops it where another process was first."""
    try:
        temporary.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_beside(target: Path) -> Path:
    """A name beside `target` that says which process of which machine is writing it."""
    return target.with_name(f"{target.name}.tmp-{socket.gethostname()}-{os.getpid()}")


def remove_abandoned(target: Path) -> None:
    """Removes temporary folders of `target` whose process on this machine is dead."""
    for path in target.parent.glob(f"{target.name}.tmp-{socket.gethostname()}-*"):
        try:
            os.kill(int(path.name.rsplit("-", 1)[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (PermissionError, ValueError):
            pass  # alive under another user, or not one of ours


def file_sha256(path: Path, cache: Path) -> str:
    """sha256 hex of a file's bytes, remembered by (path, size, modification time) so that it is read once."""
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
