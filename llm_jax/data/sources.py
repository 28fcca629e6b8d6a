"""Finds the TFDS dataset that the name of a source stands for, and builds it if it is missing."""

from __future__ import annotations

import array
import bisect
import contextlib
import glob
import importlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError, nearest
from llm_jax.core.files import inside, parse_json, read_json, user_path
from llm_jax.core.format import counted
from llm_jax.data import cache
from llm_jax.data.config import DataConfig
from llm_jax.data.documents import (
    MISSING,
    SUFFIXES,
    WHOLE_RECORD,
    check_pointer,
    contains,
    field_names,
    field_of,
    numbered_records,
)
from llm_jax.data.generated import GENERATED, generated_documents, generated_fingerprint
from llm_jax.data.stdlib_files import stdlib_fingerprint
from llm_jax.data.text_files import find_text_files, same_content
from llm_jax.data.tfds_datasets import quiet_tfds, write_documents
from llm_jax.data.tfds_records import record_json

_LOCAL_VERSION = 2  # of the rules that turn files into documents: raise it when they change
_COUNTS = "counts.json"
"""The file beside a dataset of local files with counts of their documents and of what was left out."""
_LINES = "lines.npy"
"""The file beside it with the line of each document in its file (of Parquet: the row), from 1; 0: unknown."""
# TFDS finds the datasets in these modules (such as wikipedia and c4) only once they are imported.
_OLD_TFDS_MODULES = ("question_answering", "summarization", "text", "translate")
_DOWNLOAD_RETRIES = (
    4  # with growing pauses, 3 s in all; TFDS's default of 10 takes minutes to fail without a network
)


@dataclass(frozen=True)
class Source:
    """A prepared dataset: its folder, and a fingerprint of its content."""

    name: str
    """Its name in `data.source` or `data.mixture`."""
    path: Path
    """The folder with `dataset_info.json` and the array_record files."""
    split: str
    """The split to read, in TFDS's slicing notation."""
    text_key: str
    """The field of a record that holds the text."""
    fingerprint: str
    """sha256 hex over the content and how it was divided into documents."""
    files: tuple[str, ...] = ()
    """The names of the local files that it was made of."""

    @property
    def holds_records(self) -> bool:
        """Whether its documents are whole records of a TFDS dataset, in JSON."""
        return self.text_key == WHOLE_RECORD

    def records(self) -> Any:
        """A sequence of the records with random access (TFDS `as_data_source`): dicts, with the text as
        bytes.
        """
        with quiet_tfds() as tfds:
            return tfds.builder_from_directory(self.path).as_data_source(self.split)

    def text(self, records: Any, i: int) -> bytes:
        """The text of record `i` of `records()`. Raises UserError if its file is damaged."""
        try:
            record, problem = records[i], "has no text"
            found = record_json(record) if self.holds_records else field_of(record, self.text_key)
        except RuntimeError as error:  # array_record raises no narrower type
            found, problem = None, f"cannot be read: {_first_line(error)}"
        if not isinstance(found, bytes):  # array_record returns empty records of a file that is cut off
            raise UserError(
                f"data.source={self.name}: record {i:,} in {self.path} {problem}; its files are damaged: "
                "remove them and prepare them again"
            )
        return found

    def where(self, i: int) -> str:
        """Where record `i` is from, for a line about it: its file and line if these are known."""
        if (self.path / _LINES).is_file():
            ends = read_json(self.path / _COUNTS)["ends"]
            line = int(np.load(self.path / _LINES, mmap_mode="r")[i])
            if line:
                return f"{self.files[bisect.bisect_right(ends, i)]}:{line}"
        return f"{self.name}, document {i + 1:,}"

    def size(self) -> tuple[int, int]:
        """(documents, bytes) of the split; the bytes are those of the records, slightly more than
        the text.
        """
        with quiet_tfds() as tfds:
            splits = tfds.builder_from_directory(self.path).info.splits
            share = splits[self.split].num_examples / sum(splits[self.split].shard_lengths or [1])
            return splits[self.split].num_examples, int(splits[self.split].num_bytes * share)


def resolve(name: str, data: DataConfig, log: Callable[[str], None]) -> Source:
    """The dataset that `name` stands for, which is built or downloaded if it is missing.

    Raises UserError if there is no such file, folder or dataset, or if it is empty.
    """
    local = glob.has_magic(name) or name.endswith(SUFFIXES) or user_path(name).exists()
    if name in GENERATED:
        return _generated(name, data)
    is_records = name != "stdlib" and (local or name.startswith("tfds:"))
    if data.text_key == WHOLE_RECORD and not is_records:
        raise UserError(
            f"data.source={name}: this objective reads records, not texts; give .jsonl or .parquet, "
            f"tfds:NAME, or one of {', '.join(GENERATED)}"
        )
    if name == "stdlib":
        return _stdlib(name, data)
    if name.startswith("tfds:"):
        return _tfds(name, name.removeprefix("tfds:"), data, log)
    if "://" in name:
        raise UserError(f"data.source={name}: no address is read; download the data, and give its path")
    path = user_path(name)
    with readable(name):
        prepared, there = _is_prepared(name, path), path.exists()
    if prepared:
        return _prepared(name, path, data)
    if there or glob.has_magic(name) or name.endswith(SUFFIXES) or name.startswith((".", "/", "~")):
        return _local(name, path, data, log)
    return _tfds(name, name, data, log)


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """A context that turns the file system's errors while reading a source into UserErrors."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename not in (None, name) else ""
        raise UserError(f"data.source={name}: cannot be read: {error.strerror}{where}") from error


def _stdlib(name: str, data: DataConfig) -> Source:
    with quiet_tfds():  # the module defines a TFDS builder
        from llm_jax.data.stdlib_text import StdlibText
    content = stdlib_fingerprint()
    target = data.cache_path() / "datasets" / f"stdlib-{content[:16]}"

    def build(folder: Path) -> None:
        with quiet_tfds():
            StdlibText(data_dir=folder, file_format="array_record").download_and_prepare()

    cache.build_once(target, build)
    (path,) = target.glob("stdlib_text/*.*.*")
    return Source(name, path, "train", "text", content)


def _generated(name: str, data: DataConfig) -> Source:
    """The built-in records of this name. Raises UserError for an objective that reads texts."""
    if data.text_key != WHOLE_RECORD:
        raise UserError(
            f"data.source={name}: holds conversations; use an objective that reads them, such as sft"
        )
    content = generated_fingerprint(name)
    target = data.cache_path() / "datasets" / f"{name}-{content[:16]}"
    cache.build_once(target, lambda folder: write_documents(folder, generated_documents(name)))
    return Source(name, target, "train", "text", content)


def _is_prepared(name: str, path: Path) -> bool:
    """Whether a folder is a dataset that TFDS has prepared. `datasets` writes a dataset_info.json too, which
    doesn't name the dataset, beside files of other kinds."""
    if not (path / "dataset_info.json").is_file():
        return False
    where = f"data.source={name}: {path / 'dataset_info.json'}"
    found = parse_json(inside(path, "dataset_info.json", where).read_bytes(), where)
    return isinstance(found, dict) and "name" in found


def _prepared(name: str, path: Path, data: DataConfig) -> Source:
    """A dataset that TFDS has prepared; its fingerprint is that of its name, version and shard sizes."""
    _check_names(name, path)
    with quiet_tfds() as tfds:
        try:
            builder = tfds.builder_from_directory(path)
            for split in builder.info.splits.values():
                _ = split.filepaths  # raises for a template that it can't fill in
        except Exception as error:  # TFDS lets through what its parsers raise
            raise UserError(f"data.source={name}: TFDS can't read it: {_first_line(error)}") from error
        if builder.info.file_format.value != "array_record":
            raise UserError(
                f"data.source={name}: is prepared as {builder.info.file_format.value}, which has no "
                "random access; "
                f"prepare it again with `tfds build --file_format=array_record`"
            )
        _check_text(name, builder, data)
        try:
            info = builder.info.splits[data.split]
        except (KeyError, ValueError):
            raise UserError(
                f"data.split={data.split}: {name} has no such split; "
                f"{nearest(data.split, builder.info.splits)}"
            ) from None
        for shard in map(Path, info.filepaths):
            with readable(name):
                check_pointer(shard)
        shards = [[s.name, s.shard_lengths, s.num_bytes] for s in builder.info.splits.values()]
        content = cache.fingerprint("tfds", builder.info.full_name, shards, data.split, data.text_key)
        if info.num_examples < 1:
            raise UserError(f"data.source={name}: split {data.split} has no documents")
    return Source(name, path, data.split, data.text_key, content)


def _check_names(name: str, path: Path) -> None:
    """Raises UserError where the files of a prepared dataset name what TFDS would import or read elsewhere: a
    class that isn't its own (it imports the module of any), or files outside of the folder.
    """
    for file, keys in (
        ("features.json", ("pythonClassName", "python_class_name", "type")),
        ("dataset_info.json", ("filepathTemplate", "filepath_template")),
    ):
        where = f"data.source={name}: {path / file}"
        found = parse_json(inside(path, file, where).read_bytes(), where) if (path / file).is_file() else None
        for key, text in _texts(found):
            own = text.startswith("tensorflow_datasets.") if file == "features.json" else "/" not in text
            if key in keys and not own:
                raise UserError(
                    f"{where}: {key}={text}: is neither a class of TFDS nor a file of this folder"
                )


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with its key."""
    if isinstance(tree, str):
        yield key, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _texts(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value, key)


def _check_text(name: str, builder: Any, data: DataConfig) -> None:
    """Raises UserError unless the records of a TFDS dataset have text under `data.text_key`."""
    if data.text_key == WHOLE_RECORD:
        return
    features = _as_dict(builder.info.features)
    feature = field_of(features, data.text_key)
    if feature is MISSING:
        raise UserError(
            f"data.text_key={data.text_key}: {name} has no such field; "
            f"{nearest(data.text_key, field_names(features))}"
        )
    if isinstance(feature, dict) or feature.np_dtype is not np.dtype(object) or feature.shape != ():
        raise UserError(f"data.text_key={data.text_key}: {name} has no text there, but {feature}")


def _as_dict(features: Any) -> Any:
    """The features of a TFDS dataset, those that have fields as dicts."""
    if not hasattr(features, "items"):
        return features
    return {name: _as_dict(inner) for name, inner in features.items()}


def _tfds(name: str, dataset: str, data: DataConfig, log: Callable[[str], None]) -> Source:
    with quiet_tfds() as tfds:
        for module in _OLD_TFDS_MODULES:
            importlib.import_module(f"tensorflow_datasets.{module}")
        valid = tfds.list_builders(with_community_datasets=False)
        base = re.split("[/:]", dataset)[0]
        if base not in valid:
            what = "TFDS dataset" if name != dataset else "file, folder or TFDS dataset"
            hint = nearest(base, ["stdlib", *valid])
            if not hint.startswith("did you mean"):  # 245 names are too many to list
                hint = "give stdlib, a path, or tfds:NAME with a name of tensorflow.org/datasets"
            raise UserError(f"data.source={name}: no {what} of that name; {hint}")
        try:
            builder = tfds.builder(
                dataset, data_dir=data.tfds_dir or None, file_format="array_record", try_gcs=False
            )
        except (ValueError, AssertionError, tfds.core.DatasetNotFoundError) as error:
            raise UserError(f"data.source={name}: {_first_line(error)}") from error
        _check_text(name, builder, data)
        prepared = builder.is_prepared()
    if not prepared:
        log(f"corpus {name}: downloading and preparing it in {builder.data_path}")
        with quiet_tfds():
            importlib.import_module(
                "tensorflow_datasets.core.download.downloader"
            ).MAX_RETRIES = _DOWNLOAD_RETRIES  # type: ignore[attr-defined]
            before = _leftovers(builder)
            try:
                builder.download_and_prepare()
            except Exception as error:  # TFDS lets through whatever the network or its code raises
                for path in sorted(_leftovers(builder) - before, reverse=True):  # files before their folders
                    with contextlib.suppress(OSError):  # the folder holds files of others
                        path.rmdir() if path.is_dir() else path.unlink()
                raise UserError(
                    f"data.source={name}: TFDS could not prepare it: {_first_line(error)}"
                ) from error
    return _prepared(name, Path(builder.data_path), data)


def _leftovers(builder: Any) -> set[Path]:
    """The incomplete files of a dataset in TFDS's folder, and their folders: all except finished downloads
    and versions.
    """
    root = Path(builder.data_dir)
    while root.name != builder.name:
        root = root.parent
    downloads = root.parent / "downloads"
    complete = {
        path for path in root.rglob("*") if path.is_file() and (path.parent / "dataset_info.json").exists()
    }
    partial = [
        path for path in (downloads / builder.name).rglob("*") if path.is_dir() or ".tmp." in path.name
    ]
    folders = [root.parent, root, downloads, downloads / "extracted", downloads / builder.name]
    return {*root.rglob("*"), *partial, *(folder for folder in folders if folder.exists())} - complete


def _first_line(error: Exception) -> str:
    return (
        f"{type(error).__name__}: "
        f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    )


def _local(name: str, path: Path, data: DataConfig, log: Callable[[str], None]) -> Source:
    with readable(name):
        files = _files(name, path, log)
        for file in files:
            check_pointer(file)
        sums = [cache.file_sha256(file, data.cache_path()) for file in files]
    if twice := same_content(files, sums):
        (file, earlier), *more = twice
        also = f" and {len(more):,} more" if more else ""
        log(f"corpus {name}: documents come twice: {file.name} is {earlier.name} again{also}")
    rules = [_LOCAL_VERSION, data.text_key, data.document_bytes, data.separator()]
    kinds = [_kind(file) for file in files]
    content = cache.fingerprint("local", rules, [[kind, one] for kind, one in zip(kinds, sums, strict=True)])
    what = "records" if data.text_key == WHOLE_RECORD else "local"
    target = data.cache_path() / "datasets" / f"{what}-{content[:16]}"
    if not target.exists():
        log(f"corpus {name}: reading {counted(len(files), 'file')}")
    cache.build_once(target, lambda folder: _write_dataset(folder, name, files, data))
    for line in _without_text(target, files):
        log(f"corpus {name}: {line}")
    return Source(name, target, "train", "text", content, tuple(file.name for file in files))


def _without_text(target: Path, files: list[Path]) -> list[str]:
    """What was left out of a dataset when it was built, for lines; nothing for datasets of older versions,
    which didn't count it."""
    counts = read_json(target / _COUNTS)
    lines = []
    if count := counts.get("without_text"):
        lines.append(
            f"{count:,} of {counts['records']:,} records have no text (null, empty or only white space) and "
            "are left out"
        )
    if empty := [files[i].name for i in counts.get("files_without_documents", [])]:
        lines.append(f"{counted(len(empty), 'file')} without documents: {', '.join(empty[:3])}")
    return lines


def _kind(file: Path) -> str:
    return next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if file.name.endswith(suffix))


def _files(name: str, path: Path, log: Callable[[str], None] = lambda line: None) -> list[Path]:
    """The text files of a path, folder or glob pattern, ordered by path. Logs what is there and not read."""
    found = find_text_files(name, path)
    if left_out := found.left_out():
        log(f"corpus {name}: {counted(len(found.read), 'file')} read; not read: {left_out}")
    return found.read


def _write_dataset(folder: Path, name: str, files: list[Path], data: DataConfig) -> None:
    """Writes the documents of files to a TFDS dataset, and beside it which lines they are and what was left
    out.
    """
    text_files = [file for file in files if ".txt" in file.suffixes[-2:]]
    if (
        data.separator()
        and text_files
        and not any(contains(file, data.separator().encode()) for file in text_files)
    ):
        raise UserError(
            f"data.document_separator={data.document_separator}: is nowhere in the .txt files of {name}; "
            "'' divides them by data.document_bytes"
        )
    lines = array.array("I")
    ends: list[int] = []  # the number of documents up to the end of each file
    without_text = 0

    def documents() -> Iterator[bytes]:
        nonlocal without_text
        for file in files:
            numbered = numbered_records(
                file, text_key=data.text_key, document_bytes=data.document_bytes, separator=data.separator()
            )
            for line, text in numbered:
                if text is None:
                    without_text += 1
                    continue
                lines.append(line)
                yield text
            ends.append(len(lines))

    if not write_documents(folder, documents()):
        what = files[0] if len(files) == 1 else "every file"
        raise UserError(f"data.source={name}: no documents: {what} is empty or only white space or null")
    counts = {
        "records": len(lines) + without_text,
        "without_text": without_text,
        "files_without_documents": [i for i, end in enumerate(ends) if end == (ends[i - 1] if i else 0)],
        "ends": ends,
    }
    np.save(folder / _LINES, np.array(lines, np.uint32))
    (folder / _COUNTS).write_text(json.dumps(counts))
