"""What a user can choose about the corpus and its tokenizer."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from llm_jax.core.errors import UserError, check_choice

TOKENIZER_KINDS = ("bpe", "unigram")


@dataclass(frozen=True)
class DataConfig:
    """Which text is trained on, and how its documents are told apart and split."""

    source: str = "stdlib"
    """`stdlib`, `tfds:NAME[/CONFIG][:VERSION]`, a prepared TFDS folder, or a file, glob or folder of
    .txt, .jsonl and .parquet (the first two also .gz or .zst)."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Source -> weight, a share of rows (they need not sum to one); when not empty, replaces `source`."""
    text_key: str = "text"
    """The field of JSONL, Parquet or TFDS records that holds the text."""
    split: str = "train"
    """The TFDS split that is read, in TFDS's slicing language: `train`, `train[:10%]`."""
    tfds_dir: str = ""
    """Where TFDS keeps its prepared datasets; "" = $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    document_bytes: int = 4096
    """.txt files are cut into documents of at most this many bytes, at paragraph borders where there are any."""
    document_separator: str = ""
    r"""Text that stands between the documents of a .txt file ("\n\n", "<|endoftext|>"); "" = none does.
    Here \n, \r and \t written out mean the line end, carriage return and tab that a shell makes hard to give."""
    held_out_fraction: float = 0.02
    """Share of documents never trained on, 0 to 1, chosen by the hash of a document's bytes (at least one)."""
    cache_dir: str = ""
    """Where built datasets, tokenizers and tokens are kept; "" = $LLM_JAX_CACHE or ~/.cache/llm_jax."""
    workers: int = 0
    """Processes that tokenise; 0 = one per core."""

    def sources(self) -> dict[str, float]:
        """Source -> weight. Raises UserError for a weight that is not positive and finite, and a source without a name."""
        for name, weight in self.mixture.items():
            if not 0 < weight < math.inf:
                raise UserError(f"data.mixture: weight {weight} of '{name}' must be above 0 and finite (leave it out instead)")
        sources = dict(self.mixture) or {self.source: 1.0}
        if "" in sources:
            raise UserError(f"data.{'mixture' if self.mixture else 'source'}: the name of a source is empty; give stdlib, a path, or tfds:NAME")
        return sources

    def separator(self) -> str:
        """The text between documents, its written-out control characters resolved."""
        return self.document_separator.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t")

    def cache_path(self) -> Path:
        """The folder that `cache_dir` stands for."""
        return Path(self.cache_dir or os.environ.get("LLM_JAX_CACHE") or "~/.cache/llm_jax").expanduser()

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        self.sources()
        if not 0 < self.held_out_fraction < 1:
            raise UserError(f"data.held_out_fraction={self.held_out_fraction}: must be above 0 and below 1, e.g. 0.02")
        if self.document_bytes < 64:
            raise UserError(f"data.document_bytes={self.document_bytes}: must be at least 64 bytes")
        if self.workers < 0:
            raise UserError(f"data.workers={self.workers}: must be 0 (one per core) or more")


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens: SentencePiece, trained on the corpus; or whatever a file has."""

    vocab: int = 8192
    """Pieces in a trained vocabulary, its 4 control pieces and 256 byte pieces included."""
    kind: str = "bpe"
    """`bpe` or `unigram` (slower to train)."""
    file: str = ""
    """A SentencePiece model or Hugging Face's tokenizer.json (or a folder with one) used as it is instead of training;
    `vocab` and `kind` are then the file's."""
    sample_bytes: int = 8_000_000
    """At most this much training text is read to train it, bytes (spread over the whole corpus)."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_choice("tokenizer.kind", self.kind, TOKENIZER_KINDS)
        if self.vocab < 261:
            raise UserError(f"tokenizer.vocab={self.vocab}: must be at least 261 (4 control, 256 byte pieces, 1 character)")
        if self.sample_bytes < 1:
            raise UserError(f"tokenizer.sample_bytes={self.sample_bytes}: must be above 0, e.g. 8000000")
