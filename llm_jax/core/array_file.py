"""Arrays in one file, with a few texts about them: written from memory or from other files, and read by
mapping.

The format is safetensors' (a length, a JSON header with names, dtypes, shapes and offsets, then the bytes),
so other programs read it too. `huggingface/safetensors.py` reads models, by rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.files import replacing

DTYPES = {"U8": "uint8", "U16": "uint16", "U32": "uint32", "I32": "int32", "I64": "int64", "F32": "float32"}
"""The names of dtypes in the header → NumPy's."""
NAMES = {kind: name for name, kind in DTYPES.items()}
ABOUT = "__metadata__"
MOST_HEADER = 1_000_000
"""The longest header, in bytes: a length is read before anything of it is checked."""
BLOCK = 1 << 24
"""Bytes that are copied at once."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes a file that other processes see whole or not at all. The arrays may be mapped from other
    files."""
    header: dict[str, Any] = {ABOUT: dict(about)}
    at = 0
    for name, array in arrays.items():
        end = at + array.nbytes
        header[name] = {
            "dtype": NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    with replacing(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            flat = np.ascontiguousarray(array).reshape(-1)
            step = max(1, BLOCK // flat.itemsize)
            for first in range(0, len(flat), step):
                file.write(flat[first : first + step].tobytes())


def read_about(path: Path) -> tuple[dict[str, Any], int]:
    """(the header, the offset of the first byte of the arrays). Raises UserError for a file of another
    kind."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= MOST_HEADER else b""
        header = json.loads(text)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except ValueError:
        header = None
    if not isinstance(header, dict) or not isinstance(header.get(ABOUT), dict):
        raise UserError(f"{path}: is no file of arrays that llm_jax wrote")
    return header, 8 + length


def read_arrays(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """(the texts, the arrays, mapped). Raises UserError for a file of another kind, and for one that is
    cut."""
    header, start = read_about(path)
    about, arrays = header.pop(ABOUT), {}
    for name, array in header.items():
        kind, shape = np.dtype(DTYPES[array["dtype"]]), tuple(array["shape"])
        begin, end = array["data_offsets"]
        if start + end > path.stat().st_size or end - begin != math.prod(shape) * kind.itemsize:
            raise UserError(f"{path}: is shorter than its header says; copy or make it again")
        empty = np.zeros(shape, kind)  # nothing can be mapped
        arrays[name] = np.memmap(path, kind, "r", start + begin, shape) if end > begin else empty
    return about, arrays
