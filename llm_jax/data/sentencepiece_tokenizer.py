"""SentencePiece tokenizers that give back the text they were given, byte for byte."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.files import write_atomic
from llm_jax.data.config import TokenizerConfig
from llm_jax.data.tokenizer import ABOUT_NAME, MODEL_NAME, is_lossless

TRAINER_VERSION = 1  # of the options below: raise it when they change, so that no old tokenizer is taken
SPACE = "\u2581"  # SentencePiece writes a space so; the character itself has to go through byte pieces
_STRETCH_CHARS = 1 << 16  # longer text is encoded in stretches, so that memory and time stay linear
_SENTENCE_CHARS = 4096


class SentencePieceTokenizer:
    """A SentencePiece model: text to token ids and back.

    A tokenizer that was trained here is lossless: `decode(encode(text)) == text` for any text that is valid
    Unicode, and the bytes of its pieces sum to the bytes of the text. One from a file may normalise (`lossless`).
    """

    def __init__(self, model: bytes, origin: str = "tokenizer.file") -> None:
        """`model` is a serialised SentencePiece model. Raises UserError if it is not, or has no EOS."""
        import sentencepiece

        self.model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{origin}: not a SentencePiece model") from error
        self.vocab_size: int = self._processor.vocab_size()
        self.eos_id: int = self._processor.eos_id()
        if self.eos_id < 0:
            raise UserError(f"{origin}: has no EOS piece; documents are stored as BOS, text, EOS")
        bos_id: int = self._processor.bos_id()
        self.bos_id = bos_id if bos_id >= 0 else self.eos_id
        self.pad_id: int = max(self._processor.pad_id(), 0)  # stands where segments are 0, so any id would do
        self.eos_ids: tuple[int, ...] = (self.eos_id,)
        self.lossless = is_lossless(self)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS or EOS. Raises UserError for half a surrogate pair."""
        return list(itertools.chain.from_iterable(self.encode_chunks(text)))

    def encode_chunks(self, text: str) -> Iterator[list[int]]:
        """What `encode` gives, a bounded stretch of text at a time."""
        try:
            for stretch in _stretches(text, _STRETCH_CHARS):
                for i, part in enumerate(stretch.split(SPACE)):
                    yield (self._space_ids if i else []) + self._processor.encode(part)
        except RuntimeError as error:
            raise UserError(f"cannot encode text that is not valid Unicode: {text[:40]!r}") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; control pieces are silent, bytes that are not UTF-8 become U+FFFD."""
        return self._processor.decode([int(i) for i in ids])

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: the UTF-8 bytes that each piece stands for; 0 for control and unknown pieces."""
        sizes = np.zeros(self.vocab_size, np.int32)
        for i in range(self.vocab_size):
            if self._processor.is_byte(i):
                sizes[i] = 1
            elif not (self._processor.is_control(i) or self._processor.is_unknown(i) or self._processor.is_unused(i)):
                sizes[i] = len(self._processor.id_to_piece(i).replace(SPACE, " ").encode())
        return sizes

    def pieces(self) -> list[str]:
        """The text of every piece as SentencePiece writes it, for looking at."""
        return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

    def save(self, folder: Path | str) -> None:
        """Writes `tokenizer.model`, and an `about.json` of its size, control ids and fingerprint."""
        about = {
            "format": "sentencepiece",
            "vocab_size": self.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "lossless": self.lossless,
            "sha256": self.fingerprint,
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomic(Path(folder) / MODEL_NAME, self.model)
        write_atomic(Path(folder) / ABOUT_NAME, json.dumps(about, indent=2).encode() + b"\n")

    @functools.cached_property
    def _space_ids(self) -> list[int]:
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        return ids if all(self._processor.is_byte(i) for i in ids) else self._processor.encode(SPACE)


def train(texts: Iterable[str], config: TokenizerConfig) -> SentencePieceTokenizer:
    """Trains a tokenizer; the same texts and settings give the same model on any number of cores.

    Pieces may hold line ends, indents and whole phrases: code is mostly those. On the standard library with
    4,096 pieces that gives 3.8 bytes a token; words alone give 3.2. Raises UserError when the vocabulary is
    too large or too small for the texts, with the limit.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for text in texts for part in _stretches(text, _SENTENCE_CHARS)),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_by_unicode_script=False,
            # Unigram's suffix arrays are too slow over whole lines.
            split_by_whitespace=config.kind == "unigram",
            max_sentencepiece_length=16,
            max_sentence_length=8 * _SENTENCE_CHARS,
            character_coverage=0.9995,  # rarer characters are bytes
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=4,  # not the core count: sums over threads, and the model file, depend on it
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _training_error(str(error), config) from error
    return SentencePieceTokenizer(model.getvalue(), "tokenizer")


def _training_error(message: str, config: TokenizerConfig) -> Exception:
    if found := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return UserError(f"tokenizer.vocab={config.vocab}: too large for this text; at most {found[1]}")
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(f"tokenizer.vocab={config.vocab}: too small for the characters of this text; at least {found[1]}")
    if "sentences_.empty()" in message or "(all_chars_count) > (0)" in message:
        return UserError("tokenizer: there is no text to train it on in the sample; raise tokenizer.sample_bytes or give tokenizer.file")
    return RuntimeError(message)


def _stretches(text: str, limit: int) -> Iterator[str]:
    """`text` in stretches of at most `limit` characters, cut before a line where there is one."""
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start + limit // 2, start + limit)
        end = end if end > 0 else start + limit
        yield text[start:end]
        start = end
    yield text[start:]
