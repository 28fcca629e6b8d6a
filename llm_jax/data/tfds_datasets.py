"""TFDS without its noise, and datasets of documents that are written with it."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_DOCUMENTS_PER_FILE = 100_000


@contextlib.contextmanager
def quiet_tfds() -> Iterator[Any]:
    """A context with TFDS, without its progress bars, output and warnings (it doesn't import TensorFlow by
    itself).
    """
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


def write_documents(folder: Path, documents: Iterable[bytes]) -> int:
    """Writes documents to a TFDS dataset with the feature "text"; returns how many. It needs memory for a few
    thousand at a time. Without any document nothing is written.
    """
    with quiet_tfds() as tfds:
        identity = tfds.core.dataset_info.DatasetIdentity(
            name="local_text", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=__name__
        )
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        info = tfds.core.DatasetInfo(builder=identity, features=features)
        writer = tfds.core.SequentialWriter(
            info, max_examples_per_shard=_DOCUMENTS_PER_FILE, file_format="array_record"
        )
        writer.initialize_splits(["train"])
        pending: list[dict[str, bytes]] = []
        pending_bytes = count = 0
        for text in documents:
            pending.append({"text": text})
            pending_bytes += len(text)
            count += 1
            if (
                pending_bytes > 8 << 20 or len(pending) > 4096
            ):  # each call rewrites the metadata, so documents are written in batches
                writer.add_examples({"train": pending})
                pending, pending_bytes = [], 0
        if count:
            writer.add_examples({"train": pending})
            writer.close_all()
    return count
