"""Reads a GGUF file's metadata key by key, so that no key that may change the model is ignored silently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError, one_of
from llm_jax.huggingface.gguf.header import Header

ARCHITECTURE = "general.architecture"


class MetadataReader:
    """Reads the keys that a file has for its architecture: `llama.block_count` is `block_count` here.

    A key that no method takes makes `finish` raise.
    """

    def __init__(self, header: Header):
        self.header = header
        self.architecture = header.metadata.get(ARCHITECTURE)
        self.taken: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """The value of a key; `default` if it is absent."""
        self.taken.add(name)
        return self.header.metadata.get(f"{self.architecture}.{name}", default)

    def whole(self, name: str, default: int | None = None) -> int:
        """The value of a key that is a whole number above 0. Raises UserError where there is neither it nor a
        default."""
        value = self.take(name, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise self.wrong(name, value, "a whole number above 0")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """The value of a key that is a number, as the shortest decimal that rounds to it in float32: files
        have float32, and 1e-05 is meant by 9.99999975e-06."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(name, value, "a number")
        return float(str(np.float32(value)))

    def require(self, name: str, *supported: Any) -> None:
        """Raises UserError where a key is there with another value than these."""
        value = self.take(name)
        if value is not None and value not in supported:
            raise self.wrong(name, value, " or ".join(map(str, supported)))

    def choice(self, name: str, choices: Mapping[str, Any], default: str) -> Any:
        """The entry of `choices` that the value of a key names."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(name, value, f"one of {', '.join(choices)}")
        return choices[value]

    def wrong(self, name: str, value: Any, expected: str) -> UserError:
        """The error for the value of a key; None: there is none."""
        key = f"{self.header.path}: {self.architecture}.{name}"
        if value is None:
            return UserError(f"{key} is missing from the metadata. Take another file of the model")
        return UserError(f"{key}={value}: is not supported; must be {expected}")

    def finish(self) -> None:
        """Raises UserError for a key of the architecture that nothing took: it may change what the model
        computes."""
        prefix = f"{self.architecture}."
        for key, value in self.header.metadata.items():
            if key.startswith(prefix) and key.removeprefix(prefix) not in self.taken:
                shown = f"[{len(value)} values]" if isinstance(value, list) and len(value) > 4 else value
                raise UserError(
                    f"{self.header.path}: {key}={shown}: is unknown, and may change what the model computes"
                )


def architecture_of(header: Header, known: Mapping[str, Any]) -> str:
    """The architecture of a file. Raises UserError unless it is one of `known`, and for a part of a model."""
    name = header.metadata.get(ARCHITECTURE)
    if not isinstance(name, str):
        raise UserError(
            f"{header.path}: {ARCHITECTURE} is missing from the metadata; it names the model's family"
        )
    if (files := header.metadata.get("split.count", 1)) != 1:
        raise UserError(
            f"{header.path}: split.count={files}: is one of {files} files of a model. Join them with "
            "llama-gguf-split --merge"
        )
    if name not in known:
        raise UserError(f"{header.path}: {ARCHITECTURE}={name}: is not read; {one_of(name, known)}")
    return name
