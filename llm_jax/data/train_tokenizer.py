"""The tokenizer of a corpus: read from a file, or trained once on a sample of the documents and kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from llm_jax.data import cache
from llm_jax.data.config import TokenizerConfig
from llm_jax.data.load_tokenizer import load_tokenizer
from llm_jax.data.sentencepiece_tokenizer import TRAINER_VERSION, train
from llm_jax.data.sources import Source
from llm_jax.data.token_cache import all_held_out_error, document_hash, held_out_mask
from llm_jax.data.tokenizer import Tokenizer


def tokenizer_for(
    sources: list[tuple[Source, float]],
    config: TokenizerConfig,
    held_out_fraction: float,
    folder: Path,
    log: Callable[[str], None],
) -> Tokenizer:
    """The tokenizer that `config` asks for; `sources` are with their weights, by which they share the sample.

    Raises UserError for a file that is no tokenizer, or a vocabulary that the text does not fill.
    """
    if config.file:
        loaded = load_tokenizer(config.file)
        warning = "" if loaded.lossless else "; it changes some text (normalises it, puts a space before it, or has no byte pieces)"
        log(f"tokenizer: {config.file}, {loaded.vocab_size:,} pieces{warning}")
        return loaded
    settings = [TRAINER_VERSION, config.kind, config.vocab, config.sample_bytes, held_out_fraction]
    key = cache.fingerprint("tokenizer", settings, [[source.fingerprint, weight] for source, weight in sources])
    target = folder / "tokenizers" / key[:32]
    total = sum(weight for _, weight in sources)

    def texts() -> Iterator[str]:
        for source, weight in sources:
            yield from sample(source, math.ceil(config.sample_bytes * weight / total), held_out_fraction)

    started = time.monotonic()
    trained_now = cache.build_once(target, lambda temporary: train(texts(), config).save(temporary))
    how = f"trained in {time.monotonic() - started:.0f} s" if trained_now else "cached"
    log(f"tokenizer: {config.kind}, {config.vocab:,} pieces ({how})")
    return load_tokenizer(target)


def vocabulary_size(config: TokenizerConfig) -> int:
    """The pieces of the tokenizer that `config` asks for. A trained one has as many as it was asked for, or training raises."""
    return load_tokenizer(config.file).vocab_size if config.file else config.vocab


def sample(source: Source, limit: int, held_out_fraction: float) -> list[str]:
    """At most `limit` bytes of training documents from all over a source, the same ones every time.

    Of a document longer than an eighth of `limit` the beginning is taken. None of the documents is held out.
    """
    records = source.records()
    texts: list[str] = []
    hashes: list[int] = []
    room = limit
    for i in _spread(len(records)):
        if room <= 0:
            break
        raw: bytes = records[i][source.text_key]
        start = raw[: min(room, max(limit // 8, 1))]
        room -= len(start)
        # A character that the cut went through is dropped; bytes that are not UTF-8 are no help either.
        texts.append(start.decode("utf-8", "ignore"))
        hashes.append(document_hash(raw))
    held_out_N = held_out_mask(np.array(hashes, np.uint64), held_out_fraction)
    if held_out_N.all() and len(texts) == len(records):
        raise all_held_out_error(source.name, held_out_fraction, len(texts))
    return [text for text, held_out in zip(texts, held_out_N, strict=True) if not held_out]


def _spread(count: int) -> Iterator[int]:
    """All of `range(count)`, any beginning of which is evenly spread (steps of the golden ratio)."""
    step = max(round(count * 0.618), 1)
    while math.gcd(step, count) != 1:
        step += 1
    return (k * step % count for k in range(count))
