"""Adds control tokens to a tokenizer, such as those that a chat template writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_jax.core.files import write_atomic
from llm_jax.data import cache
from llm_jax.data.huggingface_tokenizer import HuggingFaceTokenizer
from llm_jax.data.load_tokenizer import load_tokenizer
from llm_jax.data.plain_text import added_token
from llm_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.data.tokenizer import ABOUT_NAME, JSON_NAME, MODEL_NAME, Tokenizer


def missing(tokenizer: Tokenizer, names: Sequence[str]) -> list[str]:
    """The names that are not among a tokenizer's control tokens."""
    return [name for name in names if name not in tokenizer.control_tokens]


def with_control(
    tokenizer: Tokenizer, names: Sequence[str], folder: Path, log: Callable[[str], None]
) -> Tokenizer:
    """The tokenizer with control tokens of these names; the last one ends a generated text too.

    New ones get the ids after all others. Every text has the ids that it had. It is built once, in the cache
    `folder`.
    """
    new = missing(tokenizer, names)
    if not names or (not new and tokenizer.control_tokens[names[-1]] in tokenizer.eos_ids):
        return tokenizer
    key = cache.fingerprint("control", 1, tokenizer.fingerprint, list(names))
    target = folder / "tokenizers" / key[:32]
    cache.build_once(target, lambda temporary: _write(tokenizer, new, names[-1], temporary))
    made = load_tokenizer(target)
    added = ", ".join(f"{name} ({made.control_tokens[name]})" for name in new) or "no token"
    log(f"tokenizer: {added} added; generation stops at {names[-1]} too")
    return made


def _write(tokenizer: Tokenizer, new: list[str], stop: str, folder: Path) -> None:
    """Writes a tokenizer's files with new control tokens, and what ends a text into its about.json."""
    tokenizer.save(folder)
    ids = {**tokenizer.control_tokens, **{name: tokenizer.vocab_size + i for i, name in enumerate(new)}}
    if isinstance(tokenizer, SentencePieceTokenizer):
        write_atomic(folder / MODEL_NAME, _with_pieces(tokenizer.model, new))
    else:
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        tree = json.loads((folder / JSON_NAME).read_bytes())
        tree["added_tokens"] = [*(tree.get("added_tokens") or []), *(added_token(ids[n], n) for n in new)]
        write_atomic(folder / JSON_NAME, json.dumps(tree, ensure_ascii=False).encode())
    about = json.loads((folder / ABOUT_NAME).read_text())
    about |= {"vocab_size": tokenizer.vocab_size + len(new), "eos_ids": [*tokenizer.eos_ids, ids[stop]]}
    write_atomic(folder / ABOUT_NAME, json.dumps(about, indent=2).encode() + b"\n")


def _with_pieces(model: bytes, names: list[str]) -> bytes:
    """A SentencePiece model with control pieces after all others."""
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2
    proto = protocol.ModelProto.FromString(model)
    for name in names:
        proto.pieces.add(piece=name, score=0.0, type=protocol.ModelProto.SentencePiece.CONTROL)
    return proto.SerializeToString()
