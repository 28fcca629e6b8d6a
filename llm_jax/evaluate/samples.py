"""The file of a task's samples: one JSON object a line, compressed by zstd, appended to batch by batch.

Each batch is a whole zstd frame (RFC 8878 lets frames follow each other), so `zstdcat` reads the file at any
time, and what a killed evaluation leaves is cut off at the end of the last whole frame.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from llm_jax.core.errors import UserError

Sample = Mapping[str, Any]
"""What a model did with one item, in JSON's types; `task_scores` has the keys."""
ENDING = ".samples.jsonl.zst"


def append_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Appends samples as one frame, which is on the disk when this returns. Raises UserError where the file
    can't be written."""
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    try:
        with path.open("ab") as file:
            file.write(zstandard.ZstdCompressor().compress(lines.encode()))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror})") from error


def read_samples(path: Path, mend: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The samples of a file, in its order; none where there is no file.

    What follows the last whole frame is not read: a kill leaves a frame unfinished, and a crash of the
    machine may leave zeros. mend: cuts that off, so that others can follow, and is called with a line that
    says so. Raises UserError for a file that is no such file.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    found, end = [], 0
    for text, after in _frames(content, path):
        found += [json.loads(line) for line in text.decode().split("\n") if line]
        end = after
    if mend and end < len(content):
        os.truncate(path, end)
        mend(
            f"{path}: {len(content) - end:,} bytes of an unfinished batch are cut off; {len(found)} samples "
            "stay"
        )
    return found


def _frames(content: bytes, path: Path) -> Iterator[tuple[bytes, int]]:
    """(the bytes of each whole frame, where it ends)."""
    at = 0
    while at < len(content):
        reader = zstandard.ZstdDecompressor().decompressobj()
        try:
            text = reader.decompress(content[at:])
        except zstandard.ZstdError as error:
            if at:
                return
            raise UserError(f"{path}: is no file of samples ({error}). Remove it") from error
        if not reader.eof:
            return
        at = len(content) - len(reader.unused_data)
        yield text, at
