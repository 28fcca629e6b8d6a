"""Examples as an encoder makes them, for people: each token, and whether it is trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.text import Text

from llm_jax.core.errors import UserError
from llm_jax.core.files import write_atomic
from llm_jax.core.tables import make_console
from llm_jax.core.templates import render
from llm_jax.data.encoder import Encoded, Encoder
from llm_jax.data.sources import Source
from llm_jax.data.token_cache import encoded_examples
from llm_jax.data.token_labels import VISIBLE, Vocabulary
from llm_jax.data.tokenizer import Tokenizer

TRAINED = ("black on green", "black on bright_green")
"""Styles of trained tokens, in turn, so that their ends can be seen; others are plain and dim, in turn."""
OTHER = ("", "dim")


class ShownToken(NamedTuple):
    """One token of an example."""

    id: int
    label: str
    """Its text, white space made visible."""
    trained: bool
    ends_line: bool


@dataclass(frozen=True)
class ShownExample:
    """One example of a document."""

    where: str
    """Its file and line."""
    held_out: bool
    part: str
    """Which of the document's examples it is, and its label or margin; empty for the only one without."""
    tokens: tuple[ShownToken, ...]
    left_out: str = ""
    """Why it is not trained."""

    @property
    def title(self) -> str:
        """What it is, in a line."""
        kind = (
            f"left out: {self.left_out}"
            if self.left_out
            else f"{len(self.tokens):,} tokens, {self.trained:,} trained"
        )
        return ", ".join(filter(None, [self.where, self.part, "held out" if self.held_out else "", kind]))

    @property
    def trained(self) -> int:
        """The number of its trained tokens."""
        return sum(token.trained for token in self.tokens)


def shown_examples(
    source: Source,
    encoder: Encoder | None,
    tokenizer: Tokenizer,
    held_out: Callable[[bytes], bool],
    first: int,
) -> Iterator[ShownExample]:
    """The examples of the first documents of a source.

    held_out: whether a document with this text is held out. first: the number of documents. Raises
    UserError for one that the encoder can't encode.
    """
    records, vocabulary = source.records(), Vocabulary(tokenizer)
    in_words = getattr(encoder, "about", lambda value: "")
    for i in range(min(first, len(records))):
        raw, where = source.text(records, i), functools.partial(source.where, i)
        text = raw.decode("utf-8", "replace")
        if encoder is None:
            made = [as_text(text, tokenizer)]
        else:
            made = encoded_examples(encoder, text, tokenizer, where)
        names = parts(made, encoder)
        for part, example in zip(names, made, strict=True):
            tokens = shown_tokens(example, vocabulary)
            about = "" if example.left_out else in_words(example.value)
            name = ", ".join(filter(None, [part, about]))
            yield ShownExample(where(), held_out(raw), name, tokens, example.left_out)


def as_text(text: str, tokenizer: Tokenizer) -> Encoded:
    """A document without an encoder: BOS + text + EOS, all trained but BOS, which nothing predicts."""
    ids = np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id])
    return Encoded(ids, np.minimum(np.arange(len(ids)), 1).astype(np.uint8))


def parts(made: Sequence[Encoded], encoder: Encoder | None) -> list[str]:
    """A name for each example of a document: the encoder's own (chosen, rejected), or numbers."""
    own = getattr(encoder, "parts", ())
    if len(own) == len(made):
        return list(own)
    return [f"{i} of {len(made)}" if len(made) > 1 else "" for i in range(1, len(made) + 1)]


def shown_tokens(example: Encoded, vocabulary: Vocabulary) -> tuple[ShownToken, ...]:
    """The tokens of an example. The first one counts as not trained, as in a row."""
    return tuple(
        ShownToken(token.id, token.label, bool(i and weight), token.label.endswith(VISIBLE["\n"]))
        for i, (token, weight) in enumerate(
            zip(vocabulary.tokens(example.tokens), example.weights, strict=True)
        )
    )


def print_examples(examples: Sequence[ShownExample]) -> None:
    """Prints examples, trained tokens coloured; in ⟦ ⟧ where the output has no colours."""
    console = make_console()
    for example in examples:
        console.print(f"\n{example.title}", style="bold")
        text = Text()
        for i, token in enumerate(example.tokens):
            before = i > 0 and example.tokens[i - 1].trained
            if not console.is_terminal and token.trained != before:
                text.append("⟦" if token.trained else "⟧")
            text.append(token.label, (TRAINED if token.trained else OTHER)[i % 2])
            text.append("\n" * token.ends_line)
        if not console.is_terminal and example.tokens and example.tokens[-1].trained:
            text.append("⟧")
        console.print(text, soft_wrap=True)


def write_page(path: Path, title: str, notes: Sequence[str], examples: Sequence[ShownExample]) -> None:
    """Writes examples as an HTML page. notes: lines above them. Raises UserError if it can't be written."""
    page = render("llm_jax.data", "shown_examples.html.jinja", title=title, notes=notes, examples=examples)
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(f"html={path}: can't be written ({error.strerror})") from error
