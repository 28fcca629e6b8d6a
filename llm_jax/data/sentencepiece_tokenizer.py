"""SentencePiece tokenizers; those that are trained here are lossless."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.files import write_atomic
from llm_jax.data.config import TokenizerConfig
from llm_jax.data.tokenizer import ABOUT_NAME, MODEL_NAME, text_changes

TRAINER_VERSION = 2  # of the options below: raise it when they change, so that no cached tokenizer is used
SPACE = "\u2581"  # SentencePiece's character for a space; the character itself is encoded as bytes
_CHUNK_CHARS = 1 << 16  # longer text is encoded in chunks, so that memory and time stay linear
_SENTENCE_CHARS = 4096
_RESERVED = "\u2585"  # SentencePiece skips a sentence with its sign for the unknown; it is encoded as bytes


class SentencePieceTokenizer:
    """Encodes and decodes text with a SentencePiece model.

    A tokenizer that was trained here is lossless: `decode(encode(text)) == text` for any text that is valid
    Unicode, and the `token_bytes` of its tokens sum to the bytes of the text. One from a file may normalise
    (`lossless`).
    """

    def __init__(
        self, model: bytes, origin: str = "tokenizer.file", about: Mapping[str, Any] | None = None
    ) -> None:
        """`model` is a serialised SentencePiece model. Raises UserError if it is not, or has no EOS.

        about: what `save` wrote beside it, for the tokens that end a generated text.
        """
        import sentencepiece

        self.model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{origin}: is not a SentencePiece model") from error
        self.vocab_size: int = self._processor.vocab_size()
        self.eos_id: int = self._processor.eos_id()
        if self.eos_id < 0:
            raise UserError(f"{origin}: has no EOS token, with which documents end; give another model")
        bos_id: int = self._processor.bos_id()
        self.bos_id = bos_id if bos_id >= 0 else self.eos_id
        self.puts_bos = bos_id >= 0  # as Llama and Gemma, whose models come with such files, are trained
        self.pad_id: int = max(self._processor.pad_id(), 0)  # padding has segment 0, so any id would do
        controls = [i for i in range(self.vocab_size) if self._processor.is_control(i)]
        more = [i for i in (about or {}).get("eos_ids", []) if i in controls]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys([self.eos_id, *more]))
        self.remarks = text_changes(self, [self._processor.id_to_piece(i) for i in controls])
        self.lossless = not self.remarks
        if " " in self.decode(self.encode("a" * (_CHUNK_CHARS + 1))):
            self.remarks += (f"a space comes before each {_CHUNK_CHARS:,} characters of a text",)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS or EOS. Raises UserError for half a surrogate pair."""
        return list(itertools.chain.from_iterable(self.encode_chunks(text)))

    def encode_with_control(self, text: str) -> list[int]:
        """The ids of `encode`, but names of control tokens are these tokens."""
        names = "|".join(re.escape(name) for name in sorted(self.control_tokens, key=len, reverse=True))
        ids: list[int] = []
        for i, part in enumerate(re.split(f"({names})", text)):  # every second part is a name
            ids += [self.control_tokens[part]] if i % 2 else self.encode(part)
        return ids

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(the ids of `encode_with_control`, where each token begins and ends in the text, in characters)."""
        names = "|".join(re.escape(name) for name in sorted(self.control_tokens, key=len, reverse=True))
        found = list(self._spans(re.split(f"({names})", text)))
        return [token for token, _ in found], [span for _, span in found]

    def _spans(self, parts: list[str]) -> Iterator[tuple[int, tuple[int, int]]]:
        """The tokens of texts (every first) and names of control tokens (every second) end to end, each with
        its place."""
        at = 0
        for i, part in enumerate(parts):
            if i % 2:
                yield self.control_tokens[part], (at, at + len(part))
                at += len(part)
                continue
            for chunk in _chunks(part, _CHUNK_CHARS):
                for text in re.split(f"({SPACE})", chunk):
                    if text == SPACE:
                        yield from ((token, (at, at + 1)) for token in self._space_ids)
                    else:
                        made = self._processor.encode(text, out_type="offset_mapping")
                        for token, (begin, end) in zip(made["ids"], made["offsets"], strict=True):
                            yield token, (at + begin, at + end)
                    at += len(text)

    @functools.cached_property
    def control_tokens(self) -> dict[str, int]:
        """The ids of the control tokens, by name."""
        ids = filter(self._processor.is_control, range(self.vocab_size))
        return {self._processor.id_to_piece(i): i for i in ids}

    def encode_chunks(self, text: str) -> Iterator[list[int]]:
        """The ids of `encode` in order, for a bounded chunk of text at a time."""
        try:
            for chunk in _chunks(text, _CHUNK_CHARS):
                for i, part in enumerate(chunk.split(SPACE)):
                    yield (self._space_ids if i else []) + self._processor.encode(part)
        except RuntimeError as error:
            raise UserError(f"cannot encode text that is not valid Unicode: {text[:40]!r}") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without control tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._processor.decode([int(i) for i in ids])

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: the UTF-8 bytes of text of each token; 0 for control, unknown and unused tokens."""
        sizes = np.zeros(self.vocab_size, np.int32)
        for i in range(self.vocab_size):
            if self._processor.is_byte(i):
                sizes[i] = 1
            elif not (
                self._processor.is_control(i) or self._processor.is_unknown(i) or self._processor.is_unused(i)
            ):
                sizes[i] = len(self._processor.id_to_piece(i).replace(SPACE, " ").encode())
        return sizes

    def vocabulary(self) -> list[str]:
        """The string of every token as SentencePiece writes it, by id."""
        return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

    def save(self, folder: Path | str) -> None:
        """Writes `tokenizer.model`, and an `about.json` of its size, control ids and fingerprint."""
        about = {
            "format": "sentencepiece",
            "vocab_size": self.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            **({"eos_ids": self.eos_ids} if len(self.eos_ids) > 1 else {}),
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
    """Trains a tokenizer. Equal texts and settings give an equal model on any number of cores.

    Tokens may contain line ends, indents and whole phrases, of which code consists. On the standard library,
    4,096 such tokens give 3.8 bytes per token; tokens within words give 3.2. Raises UserError, with the
    limit, if the vocabulary is too large or too small for the texts.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(
                part
                for text in texts
                for usable in text.split(_RESERVED)
                for part in _chunks(usable, _SENTENCE_CHARS)
            ),
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
            character_coverage=0.9995,  # rarer characters are encoded as bytes
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=4,  # fixed, since the model depends on the number of threads
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _training_error(str(error), config) from error
    return SentencePieceTokenizer(with_space(model.getvalue()), "tokenizer")


def with_space(model: bytes) -> bytes:
    """A trained model that has a piece for a space. SentencePiece leaves it out where fewer than 1 in 2,000
    characters are spaces: each would be the three bytes of U+2581, and decode to that.

    The piece takes the place of the last one of several characters, which is BPE's last merge and unigram's
    least likely piece; without any, that of the rarest character, which then is bytes.
    """
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2
    proto = protocol.ModelProto.FromString(model)
    normal = [piece for piece in proto.pieces if piece.type == protocol.ModelProto.SentencePiece.NORMAL]
    if not normal or any(piece.piece == SPACE for piece in normal):
        return model
    ([piece for piece in normal if len(piece.piece) > 1] or normal)[-1].piece = SPACE
    return proto.SerializeToString()


def _training_error(message: str, config: TokenizerConfig) -> Exception:
    if found := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return UserError(f"tokenizer.vocab={config.vocab}: too large for this text; at most {found[1]}")
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"tokenizer.vocab={config.vocab}: too small for the characters of this text; at least {found[1]}"
        )
    if "sentences_.empty()" in message or "(all_chars_count) > (0)" in message:
        return UserError(
            "tokenizer: the sample has no text to train it on; raise tokenizer.sample_bytes or give "
            "tokenizer.file"
        )
    return RuntimeError(message)


def _chunks(text: str, limit: int) -> Iterator[str]:
    """Divides `text` into chunks of at most `limit` characters, between lines if possible."""
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start + limit // 2, start + limit)
        end = end if end > 0 else start + limit
        yield text[start:end]
        start = end
    yield text[start:]
