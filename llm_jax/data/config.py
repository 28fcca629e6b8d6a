"""The configuration of the corpus, its tokenizer, and the form of conversations."""

from __future__ import annotations

import datetime
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llm_jax.core.errors import UserError, check_choice
from llm_jax.core.files import user_path

TOKENIZER_KINDS = ("bpe", "unigram")
TrainOn = Literal["assistant", "completion", "last_turn", "all"]
TooLong = Literal["drop", "error", "cut"]


@dataclass(frozen=True)
class DataConfig:
    """The text to train on, how it is divided into documents, and which of them are held out."""

    source: str = "stdlib"
    """`stdlib`, `tasks` or `task_pairs` (conversations), `tfds:NAME[/CONFIG][:VERSION]`, a prepared TFDS
    folder, or a file, glob or folder of .txt, .jsonl and .parquet (the first two also .gz or .zst). Hidden
    files of a folder are not read."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Source -> weight, its share of rows (weights need not sum to one); if not empty, it
    replaces `source`.
    """
    text_key: str = "text"
    """The field of JSONL, Parquet or TFDS records that holds the text; in JSONL and Parquet `meta.text` is
    the field `text` of the field `meta`. Records without text (null, empty) are left out, and counted."""
    split: str = "train"
    """The TFDS split to read, in TFDS's slicing notation: `train`, `train[:10%]`."""
    tfds_dir: str = ""
    """The folder of TFDS's prepared datasets; "" = $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    document_bytes: int = 4096
    """.txt files are divided into documents of at most this many bytes, between paragraphs if possible."""
    document_separator: str = ""
    r"""Text between the documents of a .txt file ("\n\n", "<|endoftext|>"); "" = none.

    The two characters \n, \r or \t stand for line end, carriage return and tab, which are hard to type in a
    shell.
    """
    held_out_fraction: float = 0.02
    """The share of documents that is held out, 0 to 1, selected by a hash of each document (at least one
    document).
    """
    cache_dir: str = ""
    """The folder for built datasets, tokenizers and tokens; "" = $LLM_JAX_CACHE or ~/.cache/llm_jax."""
    workers: int = 0
    """The number of processes that tokenise; 0 = one per core."""
    train_on: TrainOn = "assistant"
    """Which tokens of a conversation are trained: `assistant`, all that the model says; `completion`, its
    answer to a prompt (in a conversation without one, its last turn); `last_turn`; `all`."""
    too_long: TooLong = "drop"
    """What happens to an example that is longer than a row: it is left out, and counted (`drop`); it is an
    error; it is `cut` at its end, without its stop token."""

    def sources(self) -> dict[str, float]:
        """Source -> weight.

        Raises UserError for a weight that is not positive and finite, and for an empty name.
        """
        for name, weight in self.mixture.items():
            if not 0 < weight < math.inf:
                raise UserError(
                    f"data.mixture: weight {weight} of '{name}' must be above 0 and finite (leave it out "
                    "instead)"
                )
        sources = dict(self.mixture) or {self.source: 1.0}
        if "" in sources:
            raise UserError(
                f"data.{'mixture' if self.mixture else 'source'}: the name of a source is empty; give "
                "stdlib, a path, or tfds:NAME"
            )
        return sources

    def separator(self) -> str:
        """`document_separator` with \\n, \\r and \\t replaced by the characters that they stand for."""
        return self.document_separator.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t")

    def cache_path(self) -> Path:
        """The folder of the cache, with the default of `cache_dir` resolved."""
        return user_path(self.cache_dir or os.environ.get("LLM_JAX_CACHE") or "~/.cache/llm_jax")

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        self.sources()
        if not 0 < self.held_out_fraction < 1:
            raise UserError(
                f"data.held_out_fraction={self.held_out_fraction}: must be above 0 and below 1, e.g. 0.02"
            )
        if self.document_bytes < 64:
            raise UserError(f"data.document_bytes={self.document_bytes}: must be at least 64 bytes")
        if self.workers < 0:
            raise UserError(f"data.workers={self.workers}: must be 0 (one per core) or more")


@dataclass(frozen=True)
class ChatConfig:
    """The form of conversations: how they become a text."""

    template: str = ""
    """`chatml`, a file with a Jinja2 template, or (empty) the template in the folder of the model that the
    run starts from.
    """
    date: str = ""
    """The day, YYYY-MM-DD, that a template gets which writes today's: tokens must not depend on the day."""

    def check(self) -> None:
        """Raises UserError for a date that is none."""
        try:
            valid = not self.date or datetime.date.fromisoformat(self.date).isoformat() == self.date
        except ValueError:
            valid = False
        if not valid:
            raise UserError(f"chat.date={self.date}: must be a day as YYYY-MM-DD, e.g. 2026-01-31")


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer: SentencePiece trained on the corpus, or one from a file."""

    vocab: int = 8192
    """The number of tokens of a trained vocabulary, including its 4 control tokens and 256 bytes."""
    kind: str = "bpe"
    """`bpe` or `unigram` (slower to train)."""
    file: str = ""
    """A SentencePiece model or a Hugging Face tokenizer.json (or a folder with one) to use instead of
    training; `vocab` and `kind` are then ignored.
    """
    sample_bytes: int = 8_000_000
    """The maximum bytes of training text that it is trained on, spread over the whole corpus."""
    control: tuple[str, ...] = ()
    """Control tokens to be added where the tokenizer lacks them, such as those that a chat template writes;
    generation stops at the last one too.
    """

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_choice("tokenizer.kind", self.kind, TOKENIZER_KINDS)
        if self.vocab < 261:
            raise UserError(
                f"tokenizer.vocab={self.vocab}: must be at least 261 (4 control tokens, 256 bytes, 1 "
                "character)"
            )
        if self.sample_bytes < 1:
            raise UserError(f"tokenizer.sample_bytes={self.sample_bytes}: must be above 0, e.g. 8000000")
        for name in self.control:
            if not name or name.split() != [name] or self.control.count(name) > 1:
                raise UserError(
                    f"tokenizer.control={name}: must be names without spaces, each once, e.g. <|im_end|>"
                )
