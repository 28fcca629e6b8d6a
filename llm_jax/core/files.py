"""Files and folders: atomic writes, locks, and readers that expect damage."""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from llm_jax.core.arithmetic import finite
from llm_jax.core.errors import UserError

DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
)


def user_path(name: Path | str) -> Path:
    """The path that a user named, with the home folder in place of ~ or ~USER. Raises UserError where that is
    unknown.

    A shell puts it there only for words that begin with ~, not in key=~/value.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(
            f"{name}: there is no home folder {Path(name).parts[0]} (no such user, or HOME isn't set); write "
            "the path out"
        ) from None


def check_writable(run_dir: Path, key: str = "run_dir") -> None:
    """Raises UserError, naming the key, where a folder can't be made or written to. Makes nothing: it is a
    check before any computing."""
    there = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{key}={run_dir}: {there} is a file; choose a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}={run_dir}: {there} can't be written to; choose another folder")


def make_folder(folder: Path, key: str) -> None:
    """Makes a folder, with those above it. Raises UserError, naming the key, where the system doesn't."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={folder}: can't be made ({error.strerror}); choose another folder") from error


def disk_problem(error: BaseException | None) -> str:
    """The file system's message (No space left on device, ...) if that is the cause of an error; empty if it
    isn't."""
    while error is not None:
        for code in DISK:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(
                error
            ):  # TensorStore's errors contain the text
                name = getattr(error, "filename", None)
                return os.strerror(code) + (f" ({name})" if name else "")
        error = error.__cause__ or error.__context__
    return ""


def inside(folder: Path, name: str, where: object) -> Path:
    """The path of a file of `folder` whose name comes from elsewhere: from an index, a list of checksums, or
    an archive that the folder was unpacked from.

    Raises UserError, which names `where` first, for a path that leaves the folder: absolute, by "..", or by a
    symbolic link. The links of a Hugging Face Hub cache are followed, from snapshots/REVISION to the blobs
    beside it.
    """
    pure = PurePosixPath(name)
    no_name = any(c == "\0" or "\ud800" <= c <= "\udfff" for c in name)
    if no_name or not pure.parts or pure.is_absolute() or ".." in pure.parts:
        raise UserError(
            f"{where}: names the file {name!r}; only files inside of {folder} are read. Mend the name"
        )
    root, real = (Path(os.path.realpath(path)) for path in (folder, folder / name))
    blobs = [
        above.parent.parent / "blobs" for above in (root, *root.parents) if above.parent.name == "snapshots"
    ]
    if not any(real.is_relative_to(allowed) for allowed in (root, *blobs)):
        raise UserError(
            f"{folder / name}: is a symbolic link to {real}, outside of its folder, and is not followed. "
            "Copy that file here, if it is meant"
        )
    return folder / name


def parse_json(text: str | bytes, where: object) -> Any:
    """The value that a JSON text from elsewhere holds.

    Raises UserError, which names `where` first, for invalid JSON, values nested too deeply, and an object
    with two values for one key; and for bytes that are no text in UTF-8.
    """
    text = text_of(text, str(where)) if isinstance(text, bytes) else text
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not valid JSON ({error})") from error


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of pairs. Raises ValueError where a key has two values."""
    made = dict(pairs)
    if len(made) < len(pairs):
        for key, value in pairs:
            if made[key] != value:
                raise ValueError(f"{key!r} is given twice")
    return made


BUSY = "another process is running in this folder"


class Busy(UserError):
    """Another process holds the folder."""


@contextlib.contextmanager
def locked(run_dir: Path, log: Callable[[str], None], shared: bool = False) -> Iterator[None]:
    """Locks a run folder, which must exist, for this process; the system releases the lock however the
    process ends.

    shared: other processes may hold a shared lock at the same time.
    Raises Busy if another process of this machine (of the cluster, where its file system has locks) holds it.
    """
    folder = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"run_dir={run_dir}: {BUSY}; wait for it, or choose another") from None
        except OSError as error:
            log(
                f"run_dir={run_dir}: its file system has no locks ({error.strerror}); make sure that no "
                "other process uses the folder"
            )
        yield
    finally:
        os.close(folder)


Fields = Mapping[str, Any]
"""Names of a record's fields → their types. A field whose type allows None may be missing."""


def has_fields(record: Any, fields: Fields) -> bool:
    """Whether a value of a JSON file is an object with these fields. (true is no number.)"""
    return isinstance(record, dict) and all(
        isinstance(record.get(name), kind) and not isinstance(record.get(name), bool)
        for name, kind in fields.items()
    )


def read_json_lines(
    path: Path, fields: Fields = MappingProxyType({}), strict: bool = False, tail: int | None = None
) -> list[dict[str, Any]]:
    """The objects of a file with one a line (metrics.jsonl, faults.jsonl), in order; none where there is no
    file.

    A last line without its end is being written, or was left by a kill, and is not read; nor are other lines
    that are no object with these fields, or ValueError is raised if `strict`. tail: reads only so many bytes
    at the end of the file.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - tail) if tail else 0)
        text = file.read().decode(errors="replace")
    found = []
    for line in text[: text.rfind("\n") + 1].split("\n"):
        try:
            found += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError):
            if strict:
                raise
    return [one for one in found if has_fields(one, fields)]


def drop_torn_line(path: Path) -> bool:
    """Cuts off a last line that a kill left without its end. Returns whether there was one."""
    if not path.exists():
        return False
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) == len(content):
        return False
    with path.open("r+b") as file:
        file.truncate(len(whole))
    return True


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to, which takes its place in the end; whatever goes wrong, `path`
    stays as it was."""
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file that other processes see whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all; numbers that are not finite become null."""
    write_atomic(
        path, json.dumps({k: finite(v) for k, v in content.items()}, indent=2, allow_nan=False) + "\n"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is no file. Raises UserError, naming the file, for a damaged
    one."""
    if not path.exists():
        return {}
    text = text_of(path.read_bytes(), str(path))
    try:
        found = parse_json(text, path)
    except UserError as error:
        raise UserError(f"{path}: is damaged, not JSON ({error.__cause__}); remove it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: is damaged, no JSON object; remove it")
    return found


def sync_folder(folder: Path) -> None:
    """Waits until the entries of a folder are on the disk (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_new_folder(folder: Path, key: str) -> None:
    """Raises UserError where a folder can't be made: something is in it, or it can't be written to."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{key}={folder}: exists and is not empty; choose another, or remove it")
    check_writable(folder, key)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, which takes its name in the end; whatever goes wrong, nothing
    is left of it."""
    part = folder.absolute().parent / f".{folder.name}.{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
        yield part
        if folder.is_dir():
            folder.rmdir()  # `check_new_folder` has seen that it is empty
        part.rename(folder)
        sync_folder(folder.absolute().parent)
    except OSError as error:
        raise UserError(f"{folder}: can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The first bytes of what Git leaves in place of a file that Git LFS keeps."""
BOM = codecs.BOM_UTF8
"""The byte order mark that Windows editors put before UTF-8."""


def lfs_problem(start: bytes) -> str:
    """The end of an error line where a file, by its first bytes, is a pointer of Git LFS; "" if it isn't."""
    return "is a pointer of Git LFS, not the file; fetch it with `git lfs pull`" * start.startswith(
        LFS_POINTER
    )


def text_problem(start: bytes) -> str:
    """What a file is, by its first bytes, if it is no text in UTF-8, and what to do: the end of an error
    line; "" for text.

    >>> text_problem("hi".encode("utf-32"))
    'is UTF-32; convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)'
    """
    if problem := lfs_problem(start):
        return problem
    for magic, kind in (
        (b"\x1f\x8b", "compressed by gzip; unpack it, or name it .gz if it is data"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it, or name it .zst if it is data"),
        (b"PK\x03\x04", "a zip archive; unpack it"),
        (b"PAR1", "a Parquet file, not text; its name must end in .parquet"),
    ):
        if start.startswith(magic):
            return f"is {kind}"
    if start and not start.strip(b"\0"):
        return "begins with zero bytes, as a file that wasn't written to its end; copy it again"
    coding = json.detect_encoding(start).upper()
    marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    if coding.startswith("UTF-8") or not (marked or 3 * start.count(0) >= len(start)):
        return ""
    coding = coding[:6] + coding[6:].replace("-", "")
    return f"is {coding}; convert it to UTF-8 (iconv -f {coding} -t UTF-8)"


def text_of(content: bytes, where: str) -> str:
    """The text in UTF-8 of a file's bytes, without a byte order mark. Raises UserError that begins with
    `where` for anything else."""
    if problem := text_problem(content[:64]):
        raise UserError(f"{where}: {problem}")
    try:
        return content.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is no text in UTF-8 (byte {error.start})") from error


def json_line(line: str, path: object) -> Any:
    """The value of a line of JSONL. Raises ValueError, with the command that writes lines where `path` is
    something else: an array, or objects over several lines.

    >>> json_line('[{"a": 1},', "x.jsonl")
    Traceback (most recent call last):
    ValueError: it begins an array; jq -c '.[]' x.jsonl writes an object a line
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        if line.lstrip().startswith("["):
            raise ValueError(f"it begins an array; jq -c '.[]' {path} writes an object a line") from None
        if not isinstance(error, json.JSONDecodeError):
            raise ValueError(str(error)) from None
        problem = f"{error.msg} (column {error.colno})"
        if error.pos >= len(line.rstrip()) or error.msg == "Extra data":
            problem += f"; each line must hold one object: jq -c . {path} writes it so"
        raise ValueError(problem) from None
