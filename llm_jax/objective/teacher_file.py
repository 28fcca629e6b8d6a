"""A teacher's likeliest tokens in a file, in its stead: for each trained position of a run's rows k tokens
with their log-probabilities, and that of all others together.

`python -m llm_jax.run.save_teacher` makes one. It is found by the rows' content, so it can't be read for
other tokens than it was made from.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.array_file import read_arrays
from llm_jax.core.errors import UserError
from llm_jax.core.files import user_path

IDS, LOGP = "teacher_ids", "teacher_logp"
"""The arrays that are added to a batch: `divergence.TopTokens`."""
ROW_KEYS = ("tokens", "targets", "weights", "segments", "positions")
KIND = "llm_jax teacher 1"
"""The text `kind` of a file: what it is, and the version of its format."""
HASH_BYTES = 16


def row_hashes(batch: Mapping[str, np.ndarray]) -> list[bytes]:
    """16 bytes for each row of a batch, that depend on all of its arrays."""
    columns = [np.ascontiguousarray(batch[name]) for name in ROW_KEYS]
    rows = range(len(columns[0]))
    joined = (b"".join(column[row].tobytes() for column in columns) for row in rows)
    return [hashlib.blake2b(row, digest_size=HASH_BYTES).digest() for row in joined]


@dataclass(frozen=True)
class TeacherFile:
    """An open file."""

    path: Path
    about: Mapping[str, str]
    """kind, teacher, teacher_sha256, temperature, vocab, tokenizer, corpus, seed, rows: how it was made."""
    rows: Mapping[bytes, int]
    """The hash of each row → its number in `starts_N`."""
    starts_N: np.ndarray
    """int64 [rows + 1]: where each row's positions begin in the arrays below."""
    ids_PK: np.ndarray
    """int32 or smaller, of each trained position."""
    logp_PJ: np.ndarray
    """float32; J = K + 1, the last for all other tokens."""

    @property
    def k(self) -> int:
        """How many tokens each position has."""
        return self.ids_PK.shape[1]

    def of(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of a batch [B, T, ...]. Raises UserError for a row that the file does not have."""
        trained_BT = batch["weights"] > 0
        ids = np.zeros((*trained_BT.shape, self.k), np.int32)
        logp = np.zeros((*trained_BT.shape, self.k + 1), np.float32)
        for row, digest in enumerate(row_hashes(batch)):
            if not trained_BT[row].any():
                continue
            found = self.rows.get(digest)
            if found is None:
                raise UserError(
                    f"objective.teacher_file={self.path}: lacks a row of this run. Make it anew "
                    "with the run's own words: python -m llm_jax.run.save_teacher"
                )
            begin, end = int(self.starts_N[found]), int(self.starts_N[found + 1])
            ids[row, trained_BT[row]] = self.ids_PK[begin:end]
            logp[row, trained_BT[row]] = self.logp_PJ[begin:end]
        return {IDS: ids, LOGP: logp}

    def check(self, corpus: Any, settings: Any, temperature: float) -> None:
        """Raises UserError where the file was made for other data, another tokenizer, seed or temperature, or
        for fewer rows than a run has.

        corpus: the run's `data.Corpus`. settings: its `TrainConfig`.
        """
        key = f"objective.teacher_file={self.path}"
        needed = (settings.steps + settings.rollback.most_skipped) * settings.batch_size
        for name, here, what in (
            ("tokenizer", corpus.tokenizer.fingerprint, "another tokenizer"),
            ("corpus", corpus.fingerprint, "other data, or another template"),
            (
                "seed",
                str(settings.seed),
                f"train.seed={self.about['seed']}, and this run's is {settings.seed}",
            ),
            ("length", str(settings.sequence_length), f"train.sequence_length={self.about['length']}"),
        ):
            if self.about[name] != here:
                raise UserError(f"{key}: was made with {what}. Make it anew with this run's own words")
        if float(self.about["temperature"]) != temperature:
            raise UserError(
                f"{key}: holds log-probabilities at the temperature {self.about['temperature']}, and "
                f"objective.temperature={temperature}. Use the same, or make it anew"
            )
        if int(self.about["rows"]) < needed:
            raise UserError(
                f"{key}: has the first {int(self.about['rows']):,} rows of the data, and "
                f"train.steps={settings.steps} needs {needed:,}. Make it anew with this run's own words"
            )


def open_teacher_file(path: str) -> TeacherFile:
    """An open file. Raises UserError where there is none."""
    file = user_path(path)
    if not file.is_file():
        raise UserError(
            f"objective.teacher_file={path}: there is no such file; llm_jax.run.save_teacher makes one"
        )
    about = file.stat()
    return _open(file, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=4)
def _open(file: Path, *version: int) -> TeacherFile:
    about, arrays = read_arrays(file)
    if about.get("kind") != KIND:
        raise UserError(
            f"objective.teacher_file={file}: is of another kind; llm_jax.run.save_teacher makes one"
        )
    hashes = arrays["rows"].tobytes()
    rows = {hashes[at : at + HASH_BYTES]: at // HASH_BYTES for at in range(0, len(hashes), HASH_BYTES)}
    return TeacherFile(file, about, rows, np.asarray(arrays["starts"]), arrays["ids"], arrays["logp"])


@dataclass(frozen=True)
class WithTeacher:
    """Batches with the teacher's likeliest tokens."""

    corpus: Any
    file: TeacherFile

    def batch(self, step: int, rows: range | None = None) -> dict[str, np.ndarray]:
        """The global batch at `step`, or only its `rows`."""
        batch = self.corpus.batch(step, rows)
        return {**batch, **self.file.of(batch)}

    def held_out_batches(self, batch_size: int, limit: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """The held-out batches, in order."""
        for batch in self.corpus.held_out_batches(batch_size, limit):
            yield {**batch, **self.file.of(batch)}
