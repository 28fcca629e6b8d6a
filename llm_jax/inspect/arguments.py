"""The arguments of `python -m llm_jax.inspect`, checked before a model is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from llm_jax.core.command import input_text
from llm_jax.core.errors import UserError, require
from llm_jax.pretrained import arguments
from llm_jax.pretrained.arguments import whole_number

KEYS = ("text", "file", "ids", "tokens", "layers", "word", "contexts", "tokenizers", "diff", "out")
MAX_TOKENS = 1024
"""Tokens of a text that a page shows."""


@dataclass(frozen=True)
class InspectArguments:
    """A command line of inspect, checked."""

    path: str
    text: str
    """Empty if `ids` are given instead."""
    origin: str
    """The key and value that the text comes from, for errors."""
    ids: tuple[int, ...] = ()
    out: str = ""
    tokens: int | None = None
    """Shows only the first N tokens of the text; None: all."""
    layers: tuple[int, ...] | None = None
    """Layers whose attention maps are shown; None: all."""
    word: str = ""
    contexts: tuple[str, str] | None = None
    tokenizers: tuple[str, ...] = ()
    diff: str = ""
    diff_step: int | None = None
    opening: dict[str, Any] = field(default_factory=dict)
    """Arguments of `open_model`: layout, mesh, dtype and step."""


def check_arguments(line: arguments.Asked) -> InspectArguments:
    """Checks what can be checked without opening the model. Raises UserError that names the key."""
    given = line.values
    if ("word" in given) != ("contexts" in given):
        there, missing = ("word", "contexts") if "word" in given else ("contexts", "word")
        raise UserError(f"{there}={given[there]}: needs {missing}= too, as in word=bank contexts='They rowed to the bank|She went to the bank'")
    contexts = tuple(part.strip() for part in given["contexts"].split("|")) if "contexts" in given else None
    require(contexts is None or (len(contexts) == 2 and all(contexts)), "contexts", given.get("contexts"), "two texts with a | between them")
    require("word" not in given or bool(given["word"].strip()), "word", given.get("word"), "a word")
    text, origin = read_text(given)
    require(given.get("diff") != "", "diff", "", "a run, or RUN@STEP")
    diff, diff_step = split_step(given.get("diff", ""))
    tokens = line.whole("tokens", 2)  # the second is predicted from the first
    require(tokens is None or tokens <= MAX_TOKENS, "tokens", tokens, f"at most {MAX_TOKENS}: a page holds no more")
    return InspectArguments(
        path=str(line.paths[0]),
        text=text,
        origin=origin,
        ids=tuple(whole_number("ids", part) for part in given["ids"].split(",")) if "ids" in given else (),
        out=given.get("out", ""),
        tokens=tokens,
        layers=tuple(whole_number("layers", part) for part in given["layers"].split(",")) if "layers" in given else None,
        word=given.get("word", "").strip(),
        contexts=(contexts[0], contexts[1]) if contexts else None,
        tokenizers=tuple(part.strip() for part in given.get("tokenizers", "").split(",") if part.strip()),
        diff=diff,
        diff_step=diff_step,
        opening=line.opening,
    )


def read_text(given: dict[str, str]) -> tuple[str, str]:
    """(the text, the key and value that it comes from). The text is empty if ids=... are given."""
    sources = [key for key in ("text", "file", "ids") if key in given]
    if not sources:
        raise UserError("text=TEXT is missing (or file=PATH, or ids=1,2,3)")
    if len(sources) > 1:
        raise UserError(f"{' and '.join(f'{key}=' for key in sources)} are given. Give one of them")
    if "ids" in given:
        return "", f"ids={given['ids'][:40]}"
    if "text" in given:
        require(bool(given["text"]), "text", "", "some text")
        return given["text"], f"text={given['text'][:40]}{'…' if len(given['text']) > 40 else ''}"
    text = input_text("file", given["file"])
    if not text:
        raise UserError(f"file={given['file']}: is empty. Give a file with text")
    return text, f"file={given['file']}"


def split_step(value: str) -> tuple[str, int | None]:
    """Splits RUN@STEP into (run, step); step is None without an @STEP.

    >>> split_step("runs/a@200"), split_step("runs/a")
    (('runs/a', 200), ('runs/a', None))
    """
    found = re.fullmatch(r"(.+)@(\d+)", value)
    return (found[1], int(found[2])) if found else (value, None)
