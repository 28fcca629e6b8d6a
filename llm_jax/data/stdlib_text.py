"""The built-in corpus, as a TFDS builder: text and code of this machine's Python standard library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from llm_jax.data.stdlib_files import stdlib_documents


class StdlibText(tfds.core.GeneratorBasedBuilder):
    """The standard library with one document per file: about 700 documents, 12 MB, no download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict({"path": tfds.features.Text(), "text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, content in stdlib_documents():
            yield name, {"path": name, "text": content}
