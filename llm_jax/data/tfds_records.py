"""Records of TFDS datasets as JSON, as objectives that read records expect them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def record_json(record: Mapping[str, Any]) -> bytes:
    """A record in JSON. A sequence of objects (TFDS: an object of sequences) is a list of objects.

    >>> record_json({"messages": {"role": [b"user"], "content": np.array([b"a"], object)}, "id": np.int64(3)})
    b'{"messages": [{"role": "user", "content": "a"}], "id": 3}'
    """
    return json.dumps({key: plain(value) for key, value in record.items()}, ensure_ascii=False).encode()


def plain(value: Any) -> Any:
    """A value of a record as JSON has it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        fields = {key: plain(inner) for key, inner in value.items()}
        sizes = {len(inner) if isinstance(inner, list) else -1 for inner in fields.values()}
        if len(sizes) == 1 and sizes != {-1}:
            return [dict(zip(fields, items, strict=True)) for items in zip(*fields.values(), strict=True)]
        return fields
    return value
