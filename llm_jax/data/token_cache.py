"""Tokenises a corpus once, in parallel shards that survive a kill, into memory-mapped files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import EXIT_USER_ERROR, UserError
from llm_jax.core.files import write_atomic
from llm_jax.data import cache
from llm_jax.data.encoder import Encoded, Encoder
from llm_jax.data.load_tokenizer import load_tokenizer
from llm_jax.data.sources import Source
from llm_jax.data.tokenizer import Tokenizer

_VERSION = 1  # of the files' format: raise it when it changes
WEIGHTS = "weights"
"""The file with the weights of tokens; there is none without an encoder."""
VALUES = "values.npy"
"""The file with the numbers of documents; there is none without an encoder."""
DOCUMENTS = "documents.npy"
"""The file of a shard with the hashes of its documents' bytes."""
_SHARD_BYTES = 4 << 20
_MOST_SHARDS = 4096


@dataclass(frozen=True)
class TokenStore:
    """The tokens of every document of a source, mapped from disk."""

    tokens: np.ndarray
    """uint16 or uint32, all documents end to end, each BOS + text + EOS."""
    starts_N: np.ndarray
    """int64, the offset of each document in `tokens`."""
    lengths_N: np.ndarray
    """int64, the number of tokens of each document."""
    bytes_N: np.ndarray
    """int64, UTF-8 bytes of text in each document."""
    hashes_N: np.ndarray
    """uint64, `held_out_hash` of each document: it decides between training and held out."""
    invalid: int
    """The number of documents with bytes that are not valid UTF-8."""
    copies: int
    """The number of documents that are copies of others, byte for byte; 0 if the cache is older than this."""
    left_out: Mapping[str, tuple[int, int]]
    """Why examples were left out → (how many, the number of the first document, from 1)."""
    weights: np.ndarray | None = None
    """uint8, 1 for each token whose prediction is trained, else 0; None: all are trained."""
    values_N: np.ndarray | None = None
    """float32, `Encoded.value` of each document; None without an encoder."""
    fingerprint: str = ""
    """Identifies source, tokenizer and encoder."""


def document_hash(text: bytes) -> int:
    """64 bits of the sha256 of a document's bytes: independent of its source, its place in it, and the
    tokenizer.
    """
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def held_out_hash(raw: bytes, encoder: Encoder | None = None) -> int:
    """The hash that decides whether a document is held out: of its bytes, or of the encoder's group for
    it."""
    group = getattr(encoder, "group", None)
    return document_hash(raw if group is None else group(raw.decode("utf-8", "replace")).encode())


def held_out_mask(hashes_N: np.ndarray, fraction: float) -> np.ndarray:
    """bool [N]: True for the held-out documents, whose hashes are in the lowest `fraction` of the range of
    hashes.

    If no document's is, the one with the lowest hash is held out.
    """
    bound = max(np.uint64(min(int(fraction * 2**64), 2**64 - 1)), hashes_N.min(initial=np.uint64(2**64 - 1)))
    return hashes_N <= bound


def all_held_out_error(name: str, fraction: float, documents: int, copies: int, groups: int) -> UserError:
    """The error for a source whose documents are all held out. The numbers are those of `why_few`."""
    why = why_few(documents, copies, groups)
    if why and groups == 1:
        return UserError(
            f"data.source={name}: all {documents:,} documents are held out and none is left to train on: "
            f"{why}. Give other documents"
        )
    return UserError(
        f"data.held_out_fraction={fraction}: all {documents} documents of {name} are held out and none is "
        "left to train on; "
        f"use a smaller fraction, or more and different documents (smaller data.document_bytes for .txt)"
        + (f" ({documents:,} documents: {why})" if why else "")
    )


def why_few(documents: int, copies: int, groups: int) -> str:
    """Why documents are not as many as they seem when some are held out; empty where most are different.

    copies: of the documents, those that are equal to others. groups: so many are held out by themselves.

    >>> why_few(30, 29, 1)
    'they are all equal, and equal documents are held out together'
    >>> why_few(30, 0, 2)
    'they have only 2 prompts, and what has one prompt is held out together'
    """
    different = documents - copies
    if copies and 2 * different <= documents:
        which = "they are all equal" if different == 1 else f"only {different:,} of them are different"
        return f"{which}, and equal documents are held out together"
    if 0 < 2 * groups <= different:
        which = "they all have one prompt" if groups == 1 else f"they have only {groups:,} prompts"
        return f"{which}, and what has one prompt is held out together"
    return ""


def tokenize(
    source: Source, tokenizer: Tokenizer, folder: Path, workers: int, encoder: Encoder | None = None
) -> tuple[TokenStore, bool]:
    """The tokens of `source` from the cache in `folder`, and True if the cache had them; else they are built
    first.

    A killed build leaves its finished shards for the next one. Two processes may build at the same time. With
    an encoder, everything is encoded in this process, because a worker can't import the file that defines it.
    """
    own = [encoder.fingerprint] if encoder else []
    key = cache.fingerprint("tokens", _VERSION, source.fingerprint, tokenizer.fingerprint, *own)
    target = folder / "tokens" / key[:32]
    cached = target.exists()
    if not cached:
        _build(target, source, tokenizer, workers, encoder)
    return dataclasses.replace(_open(target), fingerprint=key), cached


def _build(target: Path, source: Source, tokenizer: Tokenizer, workers: int, encoder: Encoder | None) -> None:
    partial = target.with_name(f"{target.name}.partial")
    tokenizer.save(partial / "tokenizer")
    job = {**dataclasses.asdict(source), "path": str(source.path)}
    write_atomic(partial / "source.json", json.dumps(job).encode())
    count, size = source.size()
    shards = max(1, min(count, -(-size // _SHARD_BYTES), _MOST_SHARDS))
    bounds = [count * i // shards for i in range(shards + 1)]
    ranges = list(itertools.pairwise(bounds))
    missing = [(begin, end) for begin, end in ranges if not _shard(partial, begin, end).exists()]
    try:
        if encoder is not None:
            tokenize_shards(partial, missing, encoder=encoder)
        else:
            _run(partial, missing, min(workers or _cores(), len(missing)))
        cache.build_once(target, lambda temporary: _join([_shard(partial, *r) for r in ranges], temporary))
    except Exception:
        if not target.exists():  # else another process finished first and removed these shards
            raise
    shutil.rmtree(partial, ignore_errors=True)


def _cores() -> int:
    """The number of cores that this process may use; a cluster's scheduler may allow fewer than the machine
    has.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shard(partial: Path, begin: int, end: int) -> Path:
    return partial / f"{begin:012d}-{end:012d}"


def _run(partial: Path, missing: list[tuple[int, int]], workers: int) -> None:
    """Tokenises shards in this process, or in `workers` fresh ones.

    Forks of a process with JAX's threads may hang, and `multiprocessing` would import the main program, and
    JAX with it, in each process.
    """
    if workers <= 1:
        return tokenize_shards(partial, missing)
    package = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(workers):
            shards = [f"{begin}:{end}" for begin, end in missing[i::workers]]
            command = [sys.executable, "-m", "llm_jax.data.tokenize_worker", str(partial), *shards]
            environment = {**os.environ, "PYTHONPATH": path}
            process = subprocess.Popen(
                command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
            )
            processes.append(process)
        for process in processes:
            _, errors = process.communicate()
            if process.returncode == EXIT_USER_ERROR:
                raise UserError(errors.decode(errors="replace").strip())
            if process.returncode:
                raise RuntimeError(
                    "a tokenising process ended with "
                    f"{process.returncode}:\n{errors.decode(errors='replace')}"
                )
    finally:
        for process in processes:
            process.kill()
            process.wait()


def tokenize_shards(
    partial: Path, ranges: list[tuple[int, int]], parent: int | None = None, encoder: Encoder | None = None
) -> None:
    """Tokenises ranges of documents, each into its own folder, which appears once it is complete.

    Returns early, between shards, if the process `parent` no longer exists.
    """
    job = json.loads((partial / "source.json").read_text())
    source = Source(**{**job, "path": Path(job["path"])})
    tokenizer = load_tokenizer(partial / "tokenizer")
    records = source.records()
    for begin, end in ranges:
        if parent is not None and os.getppid() != parent:
            return
        write = functools.partial(
            _write_shard,
            records=records,
            source=source,
            tokenizer=tokenizer,
            begin=begin,
            end=end,
            encoder=encoder,
        )
        with cache.writable(partial.parents[1]):
            cache.build_once(_shard(partial, begin, end), write)


def _write_shard(
    folder: Path,
    *,
    records: Any,
    source: Source,
    tokenizer: Tokenizer,
    begin: int,
    end: int,
    encoder: Encoder | None,
) -> None:
    dtype = _dtype(tokenizer)
    lengths: list[int] = []
    sizes: list[int] = []
    hashes: list[int] = []
    documents: list[int] = []
    values: list[float] = []
    invalid = 0
    left_out: dict[str, tuple[int, int]] = {}
    with contextlib.ExitStack() as files:
        file = files.enter_context((folder / "tokens").open("wb"))
        weights_file = files.enter_context((folder / WEIGHTS).open("wb")) if encoder is not None else None
        for i in range(begin, end):
            raw = source.text(records, i)
            text = raw.decode("utf-8", "replace")
            invalid += "\ufffd" in text and not _is_utf8(raw)
            start = file.tell()
            if encoder is not None and weights_file is not None:
                where = functools.partial(source.where, i)
                for example in encoded_examples(encoder, text, tokenizer, where):
                    file.write(np.asarray(example.tokens, dtype).tobytes())
                    weights_file.write(np.asarray(example.weights, np.uint8).tobytes())
                    lengths.append(len(example.tokens))
                    values.append(example.value)
                    if example.left_out:
                        count, first = left_out.get(example.left_out, (0, i + 1))
                        left_out[example.left_out] = count + 1, first
            else:
                for ids in itertools.chain(
                    [[tokenizer.bos_id]], tokenizer.encode_chunks(text), [[tokenizer.eos_id]]
                ):
                    file.write(np.array(ids, dtype).tobytes())
                lengths.append((file.tell() - start) // np.dtype(dtype).itemsize)
            # its bytes are counted once, with the first example that it makes
            sizes += [len(text.encode()), *[0] * (len(lengths) - len(sizes) - 1)]
            documents.append(document_hash(raw))
            hashes += [held_out_hash(raw, encoder)] * (len(lengths) - len(hashes))
    np.save(folder / "lengths.npy", np.array(lengths, np.int64))
    np.save(folder / "bytes.npy", np.array(sizes, np.int64))
    if encoder is not None:
        np.save(folder / VALUES, np.array(values, np.float32))
    np.save(folder / "hashes.npy", np.array(hashes, np.uint64))
    np.save(folder / DOCUMENTS, np.array(documents, np.uint64))
    about = {
        "dtype": np.dtype(dtype).name, "documents": end - begin, "invalid": invalid, "left_out": left_out
    }  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about))


def encoded_examples(
    encoder: Encoder, text: str, tokenizer: Tokenizer, where: Callable[[], str]
) -> list[Encoded]:
    """The examples of a document, checked. Raises UserError, naming `where`, for a document or an encoder
    that makes none."""
    try:
        examples = encoder.encode(text, tokenizer)
    except UserError as error:
        raise UserError(f"{where()}: {error}") from error
    for example in examples:
        check_encoded(example.tokens, example.weights, tokenizer, where)
    return examples


def check_encoded(tokens: Any, weights: Any, tokenizer: Tokenizer, where: Callable[[], str]) -> None:
    """Raises UserError for the result of an encoder that can't be stored as it is."""
    ids, trained = np.asarray(tokens), np.asarray(weights)
    if ids.shape != trained.shape or ids.ndim != 1:
        raise UserError(
            f"{where()}: the encoder returned {ids.size} tokens and {trained.size} weights. "
            "Give a weight a token"
        )
    if ids.size and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
        raise UserError(
            f"{where()}: the encoder returned ids from {ids.min()} to {ids.max()}, outside the vocabulary"
        )
    if not np.isin(trained, (0, 1)).all():
        raise UserError(f"{where()}: the encoder returned weights other than 0 and 1")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _dtype(tokenizer: Tokenizer) -> type:
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32


def _join(shards: list[Path], folder: Path) -> None:
    """Joins shards into one set of files, so that nothing depends on how the work was divided."""
    for name in ("tokens", *([WEIGHTS] if (shards[0] / WEIGHTS).exists() else [])):
        with (folder / name).open("wb") as out:
            for shard in shards:
                with (shard / name).open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
    for name in ("lengths.npy", "bytes.npy", "hashes.npy", VALUES):
        if (shards[0] / name).exists():
            np.save(folder / name, np.concatenate([np.load(shard / name) for shard in shards]))
    abouts = [json.loads((shard / "about.json").read_text()) for shard in shards]
    left_out: dict[str, tuple[int, int]] = {}
    for reason, (count, first) in (item for about in abouts for item in about["left_out"].items()):
        before, earliest = left_out.get(reason, (0, first))
        left_out[reason] = before + count, min(earliest, first)
    files = [shard / DOCUMENTS for shard in shards]  # a shard may be older than this file
    files = [file if file.exists() else file.with_name("hashes.npy") for file in files]
    documents_N = np.concatenate([np.load(file) for file in files])
    about = {
        "dtype": abouts[0]["dtype"],
        "invalid": sum(about["invalid"] for about in abouts),
        "copies": len(documents_N) - len(np.unique(documents_N)),
        "left_out": left_out,
    }
    (folder / "about.json").write_text(json.dumps(about))


def _open(folder: Path) -> TokenStore:
    about = json.loads((folder / "about.json").read_text())
    lengths_N = np.load(folder / "lengths.npy", mmap_mode="r")
    return TokenStore(
        tokens=_mapped(folder / "tokens", about["dtype"]),
        starts_N=np.cumsum(lengths_N) - lengths_N,
        lengths_N=lengths_N,
        bytes_N=np.load(folder / "bytes.npy", mmap_mode="r"),
        hashes_N=np.load(folder / "hashes.npy", mmap_mode="r"),
        invalid=about["invalid"],
        copies=about.get("copies", 0),
        left_out=about.get("left_out", {}),
        weights=_mapped(folder / WEIGHTS, "uint8") if (folder / WEIGHTS).exists() else None,
        values_N=np.load(folder / VALUES, mmap_mode="r") if (folder / VALUES).exists() else None,
    )


def _mapped(file: Path, dtype: str) -> np.ndarray:
    """The numbers in a file, mapped; an empty file can't be."""
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.zeros(0, dtype)
