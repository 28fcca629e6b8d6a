"""Turns the name of a source into a TFDS dataset in array_record files, built once where need be."""

from __future__ import annotations

import contextlib
import glob
import importlib
import io
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError, nearest
from llm_jax.data import cache
from llm_jax.data.config import DataConfig
from llm_jax.data.documents import SUFFIXES, holds, read_documents

_LOCAL_VERSION = 2  # of the rules that make documents from files: raise it when they change
_DOCUMENTS_PER_FILE = 100_000
# TFDS finds the datasets in these (wikipedia and c4 among them) only once they are imported.
_OLD_TFDS_MODULES = ("question_answering", "summarization", "text", "translate")
_DOWNLOAD_RETRIES = 4  # with growing pauses, 3 s altogether; TFDS's own 10 take minutes to say that there is no network


@dataclass(frozen=True)
class Source:
    """A prepared dataset: where it lies, and a fingerprint of what is in it."""

    name: str
    """As the user wrote it."""
    path: Path
    """The folder with `dataset_info.json` and the array_record files."""
    split: str
    """In TFDS's slicing language."""
    text_key: str
    fingerprint: str
    """sha256 hex over the content and how it was cut into documents."""

    def records(self) -> Any:
        """Random access to the records (TFDS `as_data_source`): a sequence of dicts, the text as bytes."""
        with quiet_tfds() as tfds:
            return tfds.builder_from_directory(self.path).as_data_source(self.split)

    def size(self) -> tuple[int, int]:
        """(documents, bytes); the bytes are those of the records, slightly more than the text."""
        with quiet_tfds() as tfds:
            splits = tfds.builder_from_directory(self.path).info.splits
            share = splits[self.split].num_examples / sum(splits[self.split].shard_lengths or [1])
            return splits[self.split].num_examples, int(splits[self.split].num_bytes * share)


def resolve(name: str, data: DataConfig, log: Callable[[str], None]) -> Source:
    """Finds the dataset that `name` stands for and builds or downloads it if it is not there yet.

    Raises UserError where there is no such file, folder or dataset, or nothing in it.
    """
    if name == "stdlib":
        return _stdlib(name, data)
    if name.startswith("tfds:"):
        return _tfds(name, name.removeprefix("tfds:"), data, log)
    path = Path(name).expanduser()
    with readable(name):
        prepared, there = (path / "dataset_info.json").exists(), path.exists()
    if prepared:
        return _prepared(name, path, data)
    if there or glob.has_magic(name) or name.endswith(SUFFIXES) or name.startswith((".", "/", "~")):
        return _local(name, path, data, log)
    return _tfds(name, name, data, log)


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """What the file system has against reading a source is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"data.source={name}: cannot read it: {error.strerror}") from error


@contextlib.contextmanager
def quiet_tfds() -> Iterator[Any]:
    """TFDS without its progress bars, chatter and warnings (it imports no TensorFlow by itself)."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            yield tfds
    finally:
        absl.setLevel(level)


def _stdlib(name: str, data: DataConfig) -> Source:
    with quiet_tfds():  # the module defines a TFDS builder
        from llm_jax.data.stdlib_text import StdlibText, stdlib_fingerprint
    content = stdlib_fingerprint()
    target = data.cache_path() / "datasets" / f"stdlib-{content[:16]}"

    def build(folder: Path) -> None:
        with quiet_tfds():
            StdlibText(data_dir=folder, file_format="array_record").download_and_prepare()

    cache.build_once(target, build)
    (path,) = target.glob("stdlib_text/*.*.*")
    return Source(name, path, "train", "text", content)


def _prepared(name: str, path: Path, data: DataConfig) -> Source:
    """Any dataset that TFDS prepared: its name, version and shard sizes stand for its content."""
    with quiet_tfds() as tfds:
        builder = tfds.builder_from_directory(path)
        if builder.info.file_format.value != "array_record":
            raise UserError(
                f"data.source={name}: prepared as {builder.info.file_format.value}, which has no random access; "
                f"prepare it again with `tfds build --file_format=array_record`"
            )
        _check_text(name, builder, data)
        try:
            info = builder.info.splits[data.split]
        except (KeyError, ValueError):
            raise UserError(f"data.split={data.split}: {name} has no such split; {nearest(data.split, builder.info.splits)}") from None
        shards = [[s.name, s.shard_lengths, s.num_bytes] for s in builder.info.splits.values()]
        content = cache.fingerprint("tfds", builder.info.full_name, shards, data.split, data.text_key)
        if info.num_examples == 0:
            raise UserError(f"data.source={name}: split {data.split} has no documents")
    return Source(name, path, data.split, data.text_key, content)


def _check_text(name: str, builder: Any, data: DataConfig) -> None:
    """Raises UserError unless the records of a TFDS dataset have text where it is looked for."""
    features = builder.info.features
    if data.text_key not in features:
        raise UserError(f"data.text_key={data.text_key}: {name} has no such field; {nearest(data.text_key, features)}")
    if not (features[data.text_key].np_dtype is np.dtype(object) and features[data.text_key].shape == ()):
        raise UserError(f"data.text_key={data.text_key}: {name} has no text there, but {features[data.text_key]}")


def _tfds(name: str, dataset: str, data: DataConfig, log: Callable[[str], None]) -> Source:
    with quiet_tfds() as tfds:
        for module in _OLD_TFDS_MODULES:
            importlib.import_module(f"tensorflow_datasets.{module}")
        valid = tfds.list_builders(with_community_datasets=False)
        base = re.split("[/:]", dataset)[0]
        if base not in valid:
            what = "TFDS dataset" if name != dataset else "file, folder or TFDS dataset"
            hint = nearest(base, ["stdlib", *valid])
            if not hint.startswith("did you mean"):  # all 245 names would be no hint
                hint = "give stdlib, a path, or tfds:NAME with a name of tensorflow.org/datasets"
            raise UserError(f"data.source={name}: no {what} of that name; {hint}")
        try:
            builder = tfds.builder(dataset, data_dir=data.tfds_dir or None, file_format="array_record", try_gcs=False)
        except (ValueError, AssertionError, tfds.core.DatasetNotFoundError) as error:
            raise UserError(f"data.source={name}: {_first_line(error)}") from error
        _check_text(name, builder, data)
        prepared = builder.is_prepared()
    if not prepared:
        log(f"corpus {name}: downloading and preparing it in {builder.data_path}")
        with quiet_tfds():
            importlib.import_module("tensorflow_datasets.core.download.downloader").MAX_RETRIES = _DOWNLOAD_RETRIES  # type: ignore[attr-defined]
            before = _leftovers(builder)
            try:
                builder.download_and_prepare()
            except Exception as error:  # TFDS lets through whatever the network or its code raises
                for path in sorted(_leftovers(builder) - before, reverse=True):  # files before their folders
                    with contextlib.suppress(OSError):  # a folder that holds more than was left now
                        path.rmdir() if path.is_dir() else path.unlink()
                raise UserError(f"data.source={name}: TFDS could not prepare it: {_first_line(error)}") from error
    return _prepared(name, Path(builder.data_path), data)


def _leftovers(builder: Any) -> set[Path]:
    """What of a dataset in TFDS's folder is not whole, and the folders it lies in: all but finished downloads and versions."""
    root = Path(builder.data_dir)
    while root.name != builder.name:
        root = root.parent
    downloads = root.parent / "downloads"
    whole = {path for path in root.rglob("*") if path.is_file() and (path.parent / "dataset_info.json").exists()}
    partial = [path for path in (downloads / builder.name).rglob("*") if path.is_dir() or ".tmp." in path.name]
    folders = [root.parent, root, downloads, downloads / "extracted", downloads / builder.name]
    return {*root.rglob("*"), *partial, *(folder for folder in folders if folder.exists())} - whole


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _local(name: str, path: Path, data: DataConfig, log: Callable[[str], None]) -> Source:
    with readable(name):
        files = _files(name, path)
        for file in files:
            file.open("rb").close()
    rules = [_LOCAL_VERSION, data.text_key, data.document_bytes, data.separator()]
    content = cache.fingerprint("local", rules, [[_kind(file), cache.file_sha256(file, data.cache_path())] for file in files])
    target = data.cache_path() / "datasets" / f"local-{content[:16]}"
    if not target.exists():
        log(f"corpus {name}: reading {len(files):,} file{'s'[: len(files) != 1]}")
    cache.build_once(target, lambda folder: _write_dataset(folder, name, files, data))
    return Source(name, target, "train", "text", content)


def _kind(file: Path) -> str:
    return next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if file.name.endswith(suffix))


def _files(name: str, path: Path) -> list[Path]:
    """The files that a path, folder or glob stands for, in path order."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"data.source={name}: must end in one of {', '.join(SUFFIXES)}")
        return [path]
    found = sorted(path.rglob("*")) if path.is_dir() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 (absolute patterns too)
    files = [file for file in found if file.is_file() and file.name.endswith(SUFFIXES)]
    if not files:
        if not found and not path.is_dir():
            hint = "nothing matches the pattern" if glob.has_magic(name) else _near_path(path)
            raise UserError(f"data.source={name}: no such file or folder; {hint}")
        raise UserError(f"data.source={name}: no files that end in one of {', '.join(SUFFIXES)}")
    return files


def _near_path(path: Path) -> str:
    """What a path that is not there may have meant: a name beside the first part of it that is missing."""
    missing = next(part for part in (*reversed(path.parents), path) if not part.exists())
    hint = nearest(str(missing), [str(beside) for beside in missing.parent.iterdir()])
    return hint if hint.startswith("did you") else f"{missing.parent} has no '{missing.name}'"


def _write_dataset(folder: Path, name: str, files: list[Path], data: DataConfig) -> None:
    """Streams the documents of files into a TFDS dataset; memory is bounded by one document and one block."""
    text_files = [file for file in files if ".txt" in file.suffixes[-2:]]
    if data.separator() and text_files and not any(holds(file, data.separator().encode()) for file in text_files):
        raise UserError(f"data.document_separator={data.document_separator}: is nowhere in the .txt files of {name}; '' cuts by data.document_bytes")
    with quiet_tfds() as tfds:
        identity = tfds.core.dataset_info.DatasetIdentity(
            name="local_text", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=__name__
        )
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        info = tfds.core.DatasetInfo(builder=identity, features=features)
        writer = tfds.core.SequentialWriter(info, max_examples_per_shard=_DOCUMENTS_PER_FILE, file_format="array_record")
        writer.initialize_splits(["train"])
        pending: list[dict[str, bytes]] = []
        pending_bytes = documents = 0
        for file in files:
            texts = read_documents(file, text_key=data.text_key, document_bytes=data.document_bytes, separator=data.separator())
            for text in texts:
                pending.append({"text": text})
                pending_bytes += len(text)
                documents += 1
                if pending_bytes > 8 << 20 or len(pending) > 4096:  # each call rewrites the metadata: not one a document
                    writer.add_examples({"train": pending})
                    pending, pending_bytes = [], 0
        if not documents:
            what = files[0] if len(files) == 1 else "every file"
            raise UserError(f"data.source={name}: no documents: {what} is empty, or has nothing but white space")
        writer.add_examples({"train": pending})
        writer.close_all()
