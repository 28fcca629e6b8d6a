"""The one place where a context and its continuation become token ids. Imports no JAX.

The convention: the text of both is encoded at once, as the model would see it. What is scored are the tokens
after those that the context alone begins with too (the common token prefix), so a token that holds the end of
the context and the beginning of the continuation is scored, and counted as merged. At most one BOS stands
before the context: always for a model that was trained here, whose documents begin with BOS; for an open
model where its tokenizer's files put one before every text. With a chat template the context is the user's
turn and the continuation begins the model's; the template then writes BOS, if any. Nothing is cut in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from llm_jax.core.errors import UserError
from llm_jax.data import Tokenizer
from llm_jax.evaluate.chat_prompts import ChatPrompts

if TYPE_CHECKING:  # it opens models, with JAX
    from llm_jax.pretrained.source import ModelSource

TooLongPolicy = Literal["refuse", "skip", "left"]
"""What is done with a context and continuation that are longer than the model: raise before anything is
scored, leave the item out, or leave out the beginning of the context. Each is counted."""


class EncodedRequest(NamedTuple):
    """A context and its continuation as token ids."""

    context: tuple[int, ...]
    """Never empty; BOS is its first, where the convention puts one."""
    continuation: tuple[int, ...]
    """The tokens that are scored; never empty."""
    merged: bool
    """Whether the first scored token holds text of the context too."""
    dropped: int
    """Tokens that were left out at the beginning of the context, after BOS."""


@dataclass(frozen=True)
class Convention:
    """How text becomes token ids for a model, and how many of them it can read."""

    bos: int | None
    """The token before every context; None: there is none, and only an empty context becomes `prefix`."""
    prefix: int
    """The token that an empty context stands for: the model's BOS, or its EOS where it has no BOS."""
    length: int | None
    """Most tokens that the model can read: those of context and continuation but the last. None: any number,
    for a model that was trained here with rotary positions."""
    too_long: TooLongPolicy = "refuse"
    trained: int | None = None
    """Tokens of the rows that the model was trained on, where that is known; more than that can be read, but
    is counted."""
    chat: ChatPrompts | None = None
    """Contexts are turns of a user, in this model's chat template; None: they are continued as they are."""

    @property
    def line(self) -> str:
        """The convention in words, as it is printed with every score and written in every result."""
        bos = (
            f"BOS (id {self.bos}) before every context"
            if self.bos is not None
            else f"no BOS, as in the tokenizer's files; an empty context is the token {self.prefix}"
        )
        most = f"at most {self.length:,} tokens, too_long={self.too_long}" if self.length else "no limit"
        rows = f", trained on rows of {self.trained:,}" if self.trained else ""
        bos = self.chat.line if self.chat else bos
        return f"{bos}; boundary by common token prefix; {most}{rows}"

    def start(self) -> list[int]:
        """The tokens before the text of a context."""
        return [] if self.bos is None or self.chat else [self.bos]

    def ids(self, tokenizer: Tokenizer, context: str, continuation: str = "") -> list[int]:
        """The ids of a text, without `start`."""
        if self.chat:
            return self.chat.ids(context, continuation)
        text = context + continuation
        return tokenizer.encode(text) if text else []


def convention_of(
    source: ModelSource,
    tokenizer: Tokenizer,
    too_long: TooLongPolicy = "refuse",
    chat: ChatPrompts | None = None,
) -> Convention:
    """The convention of a model: that of its training. chat: for contexts as turns of a user.

    Of an open model the length is its configuration's number of positions. A model that was trained here has
    an end only where its positions are learned.
    """
    model, rows = source.experiment.model, source.experiment.train.sequence_length
    loaded = source.folder is not None or source.base is not None
    length = model.positions if loaded or model.position == "learned" else None
    bos = tokenizer.bos_id if not loaded or tokenizer.puts_bos else None
    return Convention(bos, tokenizer.bos_id, length, too_long, None if loaded else rows, chat)


def encode(tokenizer: Tokenizer, convention: Convention, context: str, continuation: str) -> EncodedRequest:
    """The ids of a context and its continuation.

    Raises UserError for a continuation without tokens; `TooLong` for more tokens than the model can read,
    unless the convention cuts contexts, and always where the continuation alone is too long.
    """
    before = convention.ids(tokenizer, context)
    whole = convention.ids(tokenizer, context, continuation)
    if not whole:
        raise UserError(f"the continuation {continuation[:40]!r} has no tokens")
    # A continuation may add no token (a tokenizer that drops spaces): then the last one is scored.
    shared = min(common_prefix(before, whole), len(whole) - 1)
    start = convention.start()
    if whole[: len(start)] == start:  # the tokenizer put BOS there itself
        start = []
    text, scored = [*start, *whole[:shared]], whole[shared:]
    if not text:
        text = [convention.prefix]
    kept = cut_left(text, convention, len(scored))
    return EncodedRequest(tuple(kept), tuple(scored), shared < len(before), len(text) - len(kept))


def encode_prompt(
    tokenizer: Tokenizer, convention: Convention, context: str, new_tokens: int
) -> EncodedRequest:
    """The ids of a context that the model is to continue with at least `new_tokens` tokens, which are
    counted among those that it can read; nothing is scored. Raises `TooLong`."""
    ids = convention.ids(tokenizer, context)
    start = convention.start()
    text = ids if ids[: len(start)] == start and start else [*start, *ids]
    text = text or [convention.prefix]
    kept = cut_left(text, convention, new_tokens)
    return EncodedRequest(tuple(kept), (), False, len(text) - len(kept))


def cut_left(text: list[int], convention: Convention, scored: int) -> list[int]:
    """The tokens of a context, as many as can be read before so many scored ones; BOS stays. Raises
    `TooLong` where some must go and the convention doesn't cut, or cutting doesn't help."""
    if convention.length is None:
        return text
    room = convention.length + 1 - scored  # the last token is never read
    if len(text) <= room:
        return text
    bos = text[:1] if text[0] == convention.bos else []
    if convention.too_long != "left" or room < len(bos) + 1:
        raise TooLong(len(text) + scored - 1, convention.length)
    return [*bos, *text[len(text) - (room - len(bos)) :]]


class TooLong(UserError):
    """A context and its continuation have more tokens than the model can read."""

    def __init__(self, tokens: int, length: int) -> None:
        super().__init__(f"has {tokens:,} tokens, and the model reads {length:,}")
        self.tokens = tokens


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def shown_ids(tokenizer: Tokenizer, encoded: EncodedRequest, most: int = 12) -> str:
    """The first and last tokens of a context and the scored ones, for a line that shows what is read."""
    names = tokenizer.vocabulary()

    def text(ids: Sequence[int]) -> str:
        shown = " ".join(names[i] if i < len(names) else str(i) for i in ids)
        return shown.replace("\n", "\\n").replace("\r", "\\r")

    ids = encoded.context
    context = text(ids) if len(ids) <= most else f"{text(ids[: most // 2])} … {text(ids[-most // 2 :])}"
    return f"{context} | {text(encoded.continuation[:most])}"


def check_one_bos(convention: Convention, context: Sequence[int]) -> None:
    """Raises AssertionError where BOS comes twice: a bug that spoils every score in silence."""
    if convention.bos is not None and Counter(context[:2])[convention.bos] > 1:
        raise AssertionError(f"two BOS (id {convention.bos}) begin a context")
